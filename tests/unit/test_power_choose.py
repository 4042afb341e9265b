"""Which meter a worker gets, and that every step down is named."""

import os
from pathlib import Path

import pytest

from workers.errors import MeterUnavailable
from workers.power import choose
from workers.power.choose import open_meter
from workers.power.rapl import RaplMeter
from workers.simulated_counter import SimulatedCounter
from workers.types import MeterSpec


@pytest.fixture
def no_rapl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choose, "RaplMeter", lambda: RaplMeter(tmp_path))


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(gpu_uuids: tuple[str, ...]) -> None:
        raise MeterUnavailable(f"no driver for {gpu_uuids}")

    monkeypatch.setattr(choose, "open_nvml", refuse)


def test_simulated_engine_is_read_by_its_own_counter() -> None:
    """No real device burns what it claims to."""
    meter, notes = open_meter(MeterSpec(), gpu_uuids=("GPU-1",), pids=(), counter=SimulatedCounter(idle_watts=1.0))
    assert (meter.name, notes) == ("simulated:counter", ())


@pytest.mark.usefixtures("no_rapl")
def test_cpu_engine_falls_to_the_model_and_says_why() -> None:
    """RAPL is tried first; a reader of the figures must know that it was not to be had."""
    meter, notes = open_meter(MeterSpec(), gpu_uuids=(), pids=(os.getpid(),), counter=None)
    assert meter.name == "modelled:cpu-seconds"
    assert [note.split(":")[0] for note in notes] == ["meter_downgrade"]
    assert "no rapl meter" in notes[0]


def test_cpu_engine_takes_rapl_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured beats modelled."""
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "1000"), ("energy_uj", "5")):
        (package / name).write_text(text)
    monkeypatch.setattr(choose, "RaplMeter", lambda: RaplMeter(tmp_path))
    meter, notes = open_meter(MeterSpec(), gpu_uuids=(), pids=(os.getpid(),), counter=None)
    assert (meter.name, notes) == ("rapl:package-0", ())


@pytest.mark.usefixtures("no_nvml")
def test_gpu_engine_without_nvml_is_modelled_and_says_so() -> None:
    """RAPL knows nothing of a GPU and is not even tried; the engine serves, and its grade says what it is worth."""
    meter, notes = open_meter(MeterSpec(), gpu_uuids=("GPU-1",), pids=(os.getpid(),), counter=None)
    assert meter.name == "modelled:cpu-seconds"
    assert notes == ("meter_downgrade: no nvml meter: no driver for ('GPU-1',)",)


@pytest.mark.usefixtures("no_nvml")
def test_named_meter_is_used_or_fails() -> None:
    """Who asked for a measurement must not silently get a model."""
    with pytest.raises(MeterUnavailable, match="no driver"):
        open_meter(MeterSpec(kind="nvml"), gpu_uuids=("GPU-1",), pids=(os.getpid(),), counter=None)


def test_model_takes_its_watts_from_the_spec() -> None:
    """Both assumptions are the operator's."""
    spec = MeterSpec(kind="modelled", watts_per_cpu_second=0.0, idle_watts=0.0)
    meter, _ = open_meter(spec, gpu_uuids=(), pids=(os.getpid(),), counter=None)
    assert meter.read().counter_mj == 0


def test_engine_in_this_process_is_modelled_by_it() -> None:
    """Without process ids the engine runs here."""
    meter, _ = open_meter(MeterSpec(kind="modelled"), gpu_uuids=(), pids=(), counter=None)
    assert meter.read().counter_mj >= 0


def test_file_of_a_counter_is_enough(tmp_path: Path) -> None:
    """An observer holds no engine."""
    path = str(tmp_path / "counter")
    SimulatedCounter(idle_watts=100.0, path=path).publish(2.0)
    spec = MeterSpec(kind="simulated", counter_path=path)
    meter, _ = open_meter(spec, gpu_uuids=(), pids=(), counter=None)
    assert meter.read().counter_mj == 200_000


def test_simulated_meter_without_anything_to_read_names_the_key() -> None:
    """The remedy is in the message."""
    with pytest.raises(MeterUnavailable, match=r"meter\.counter_path"):
        open_meter(MeterSpec(kind="simulated"), gpu_uuids=(), pids=(), counter=None)


@pytest.mark.usefixtures("no_rapl")
def test_nothing_to_be_had_lists_what_was_tried() -> None:
    """Every refusal is in the last word."""
    with pytest.raises(MeterUnavailable, match=r"no rapl meter.*no modelled meter"):
        open_meter(MeterSpec(), gpu_uuids=(), pids=(2**30,), counter=None)
