"""Minutes of load with aborts, slow readers and worker kills leave no byte, no credit, no joule and no process behind.

JOULEWAY_SOAK_S says how long (1,800 s); the figures are recorded in ``benchmarks/results/soak.json``.
"""

import os

import pytest

from benchmarks.record import record
from benchmarks.soak import run

pytestmark = pytest.mark.soak

DURATION_S = float(os.environ.get("JOULEWAY_SOAK_S", "1800"))


@pytest.mark.timeout(DURATION_S + 600)
def test_nothing_is_left_behind() -> None:
    """Memory flat after the first third, credits and in-flight accounts 0, the balance exact, no orphan process."""
    values = run(duration_s=DURATION_S, seed=0)
    record(
        "soak" if DURATION_S >= 1800 else "soak_short",
        values,
        command=f"JOULEWAY_SOAK_S={DURATION_S:g} make soak-load",
        what="load on simulated engines through `jouleway serve` and Ray with aborts, slow readers and worker kills",
    )
    assert [] == values["problems"]
    assert values["kills"] >= DURATION_S // 60 - 2
    assert values["ended"]["stream"] > values["kills"]
