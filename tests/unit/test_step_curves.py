"""What a worker says of its engine's cost crosses the boundary whole, and says where it was measured."""

import math

import msgspec
import pytest

from workers.step_curves import StepCurves

CURVES = StepCurves(time_s=(0.1, 0.0, 0.0, 0.0), energy_joules=(1.0, 0.0, 0.0, 0.0), idle_watts=1.0)


@pytest.mark.parametrize("batch_range", [(0.0, math.inf), (8.0, 691.0)])
def test_a_range_without_an_end_crosses_the_wire(batch_range: tuple[float, float]) -> None:
    curves = msgspec.structs.replace(CURVES, batch_range=batch_range)
    assert curves == msgspec.msgpack.decode(msgspec.msgpack.encode(curves), type=StepCurves)


@pytest.mark.parametrize(("num_sequences", "expected"), [(7, True), (8, False), (691, False), (691.5, True)])
def test_what_lies_outside_is_extrapolated(num_sequences: float, expected: bool) -> None:
    """Both ends were measured; where nobody said a range, everything was."""
    assert expected is msgspec.structs.replace(CURVES, batch_range=(8.0, 691.0)).is_extrapolated(num_sequences)
    assert not CURVES.is_extrapolated(num_sequences)
