"""The NVML meter through the real pynvml, against a stand-in library compiled from C."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from workers.errors import MeterUnavailable, WorkerError
from workers.power.device_meter import STALLED_AFTER_S, DeviceLost, DeviceMeter
from workers.power.nvml import NvmlLibrary, names_of, open_nvml, uuids_of_visible_devices, wrong_distribution
from workers.types import Grade

ROOT = Path(__file__).resolve().parents[2]
NOT_SUPPORTED, TIMEOUT = 3, 10
FIRST = "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd"
SECOND = "GPU-00000001-aaaa-bbbb-cccc-dddddddddddd"


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nvml_stand_in", ROOT / "tests/nvml_stand_in/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StandIn:
    """Scripted GPUs whose virtual time is also the meter's clock."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.stand_in_advance_ms.argtypes = [ctypes.c_longlong]
        library.stand_in_set.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_longlong]
        library.stand_in_true_mj.restype = ctypes.c_longlong
        self.now_ms = 0

    def clear(self, num_gpus: int) -> None:
        self._library.stand_in_clear(num_gpus)
        self.now_ms = 0

    def clock(self) -> float:
        return self.now_ms / 1000

    def sleep(self, duration_s: float) -> None:
        duration_ms = max(round(duration_s * 1000), 1)
        self.now_ms += duration_ms
        self._library.stand_in_advance_ms(duration_ms)

    def set(self, gpu: int = 0, **values: int) -> None:
        for name, value in values.items():
            assert self._library.stand_in_set(gpu, name.encode(), value) == 0, f"the stand-in knows no {name}"

    def true_mj(self, gpu: int = 0) -> int:
        return int(self._library.stand_in_true_mj(gpu))

    def driver_absent(self) -> None:
        self._library.stand_in_driver_absent(1)

    @property
    def num_open(self) -> tuple[int, int]:
        """(initialisations, event sets) that were not given back."""
        return self._library.stand_in_num_inits(), self._library.stand_in_num_event_sets()


@pytest.fixture(scope="session")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = load_builder()
    if builder.compiler() is None:
        pytest.skip("no C compiler (gcc or cc) for the NVML stand-in")
    # Not NVML's own name: nothing else in this process must find it.
    return Path(builder.build(tmp_path_factory.mktemp("nvml"), name="stand_in.so"))


@pytest.fixture
def gpus(library_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    import pynvml

    library = ctypes.CDLL(str(library_path))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    stand_in = StandIn(library)
    stand_in.clear(1)
    return stand_in


def opened(gpus: StandIn, *uuids: str) -> DeviceMeter:
    return open_nvml(uuids or (FIRST,), clock=gpus.clock, sleep=gpus.sleep, samples_itself=False)


# -- the counter


def test_counter_is_read_at_its_tick(gpus: StandIn) -> None:
    """A window's edge is where the counter moved, not where somebody looked."""
    meter = opened(gpus)
    gpus.sleep(0.730)
    reading = meter.read()
    assert (reading.at_s, reading.counter_mj, reading.grade, reading.fault) == (0.8, 1_000_000 + 240_000, Grade.A, "")


def test_quantised_counter_gives_the_exact_power_between_edges(gpus: StandIn) -> None:
    """100 ms ticks cost nothing when both edges of a window lie on one."""
    meter = opened(gpus)
    gpus.sleep(0.033)
    first = meter.read()
    gpus.sleep(4.957)
    second = meter.read()
    watts = (second.counter_mj - first.counter_mj) / 1000 / (second.at_s - first.at_s)
    assert watts == pytest.approx(300, rel=1e-3)


def test_two_readings_within_a_tick_do_not_invent_energy(gpus: StandIn) -> None:
    """A refresh slower than the wait: the second reading stands where the counter last moved."""
    gpus.set(refresh_ms=1_000)
    meter = opened(gpus)
    gpus.sleep(0.999)
    first = meter.read()
    second = meter.read()
    assert (first.at_s, first.counter_mj) == (pytest.approx(1.0, abs=0.002), 1_300_000)
    assert (second.at_s, second.counter_mj) == (first.at_s, first.counter_mj)


def test_reset_counter_is_named_and_never_steps_back(gpus: StandIn) -> None:
    """What it shows after the reset was used since; what it showed before stays counted."""
    meter = opened(gpus)
    gpus.sleep(1)
    before = meter.read()
    gpus.set(counter_mj=0)
    gpus.sleep(2)
    after = meter.read()
    assert after.fault.startswith(f"counter_reset: {FIRST}")
    assert after.grade == Grade.C
    assert after.counter_mj - before.counter_mj == 300 * 2_100
    gpus.sleep(1)
    assert meter.read().fault == ""


def test_stuck_counter_is_downgraded_and_made_good(gpus: StandIn) -> None:
    """No change for 5 s at 300 W: grade C, named, and the energy of the standstill is there."""
    meter = opened(gpus)
    gpus.sleep(1)
    before = meter.read()
    gpus.set(stuck=1)
    gpus.sleep(5.2)
    after = meter.read()
    assert after.fault.startswith("counter_stalled")
    assert after.grade == Grade.C
    assert meter.name == "nvml:integrated-power"
    expected_mj = 300 * (after.at_s - before.at_s) * 1000
    assert after.counter_mj - before.counter_mj == pytest.approx(expected_mj, rel=0.02)
    assert any("counter_stalled" in word for word in meter.health())


def test_stalled_meter_keeps_integrating(gpus: StandIn) -> None:
    """After the downgrade every reading adds what power times time says; the downgrade stays in the health."""
    meter = opened(gpus)
    gpus.set(stuck=1)
    gpus.sleep(STALLED_AFTER_S + 0.1)
    first = meter.read()
    gpus.set(watts=500)
    gpus.sleep(2)
    second = meter.read()
    assert second.counter_mj - first.counter_mj == pytest.approx((300 + 500) / 2 * 2_000, rel=0.01)
    assert (second.grade, second.fault) == (Grade.C, "")
    assert any("counter_stalled" in word for word in meter.health())


def test_standing_counter_without_power_is_no_fault(gpus: StandIn) -> None:
    """A board that draws nothing has nothing to count."""
    gpus.set(watts=0)
    meter = opened(gpus)
    gpus.sleep(30)
    reading = meter.read()
    assert (reading.grade, reading.fault, reading.counter_mj) == (Grade.A, "", 1_000_000)


def test_short_standstill_closes_no_window(gpus: StandIn) -> None:
    """Below the bound the reading stands at the last move: a silent 0 cannot come out of it."""
    meter = opened(gpus)
    gpus.sleep(1)
    before = meter.read()
    gpus.set(stuck=1)
    gpus.sleep(3)
    reading = meter.read()
    assert (reading.at_s, reading.counter_mj, reading.fault) == (before.at_s, before.counter_mj, "")
    gpus.set(stuck=0)
    gpus.sleep(0.5)
    assert meter.read().counter_mj - before.counter_mj == pytest.approx(300 * 3_800, rel=0.06)


# -- gaps and losses


def test_gap_of_a_counter_is_bridged_by_the_counter(gpus: StandIn) -> None:
    """3 s without an answer: the meter is unavailable, then the counter has the whole gap."""
    meter = opened(gpus)
    gpus.sleep(1)
    before = meter.read()
    gpus.set(energy_error=TIMEOUT)
    gpus.sleep(3)
    with pytest.raises(MeterUnavailable, match="cannot be read"):
        meter.read()
    gpus.set(energy_error=0)
    after = meter.read()
    assert after.counter_mj - before.counter_mj == 300 * round((after.at_s - before.at_s) * 1000)
    assert (after.grade, after.fault) == (Grade.A, "")


def test_gap_between_power_samples_is_named(gpus: StandIn) -> None:
    """Beyond 3 s nobody knows what power did: the trapezoid stands in, and says so."""
    gpus.set(energy_error=NOT_SUPPORTED)
    meter = opened(gpus)
    gpus.sleep(1)
    assert meter.read().fault == ""
    gpus.sleep(3.2)
    assert meter.read().fault.startswith("power_gap")


def test_lost_gpu_makes_the_meter_unavailable(gpus: StandIn) -> None:
    """Fallen off the bus: no reading rather than a wrong one."""
    meter = opened(gpus)
    gpus.set(lost=1)
    with pytest.raises(DeviceLost, match=FIRST):
        meter.read()


def test_gpu_that_comes_back_is_found_again(gpus: StandIn) -> None:
    """After a reset of the device its new counter is a named reset."""
    meter = opened(gpus)
    gpus.sleep(1)
    before = meter.read()
    gpus.set(lost=1)
    with pytest.raises(DeviceLost):
        meter.read()
    gpus.set(lost=0, counter_mj=500)
    gpus.sleep(1)
    after = meter.read()
    assert after.fault.startswith("counter_reset")
    assert after.counter_mj > before.counter_mj


def test_one_lost_gpu_of_two_is_not_hidden_by_the_other(gpus: StandIn) -> None:
    """A sum with a part missing is no sum; once it is back nothing of the other was lost."""
    gpus.clear(2)
    meter = opened(gpus, FIRST, SECOND)
    before = meter.read()
    gpus.set(1, lost=1)
    gpus.sleep(2)
    with pytest.raises(DeviceLost, match=SECOND):
        meter.read()
    gpus.set(1, lost=0)
    after = meter.read()
    assert after.counter_mj - before.counter_mj == 600 * round((after.at_s - before.at_s) * 1000)


# -- what a board can do


def test_two_gpus_are_summed_by_uuid(gpus: StandIn) -> None:
    """Exactly the engine's GPUs: the third one's energy is somebody else's."""
    gpus.clear(3)
    gpus.set(0, watts=100)
    gpus.set(1, watts=5_000)
    gpus.set(2, watts=200)
    meter = opened(gpus, FIRST, "GPU-00000002-aaaa-bbbb-cccc-dddddddddddd")
    before = meter.read()
    gpus.sleep(1)
    after = meter.read()
    assert before.counter_mj == 1_000_000 + 3_000_000 + 300 * round(before.at_s * 1000)
    assert after.counter_mj - before.counter_mj == 300 * round((after.at_s - before.at_s) * 1000)


def test_reset_of_one_of_two_gpus_is_seen_in_the_sum(gpus: StandIn) -> None:
    """A small counter's reset cannot hide behind a large one's progress."""
    gpus.clear(2)
    gpus.set(0, watts=10, counter_mj=100_000)
    gpus.set(1, watts=700)
    meter = opened(gpus, FIRST, SECOND)
    gpus.sleep(1)
    meter.read()
    gpus.set(0, counter_mj=0)
    gpus.sleep(5)
    assert meter.read().fault.startswith(f"counter_reset: {FIRST}")


def test_power_is_integrated_without_a_counter(gpus: StandIn) -> None:
    """NOT_SUPPORTED: grade C, named, and close to what was really used."""
    gpus.set(energy_error=NOT_SUPPORTED)
    meter = opened(gpus)
    before, true_before_mj = meter.read(), gpus.true_mj()
    for watts in (300, 320, 310, 290, 305):
        gpus.set(watts=watts)
        gpus.sleep(0.05)
        after = meter.read()
    assert (after.grade, meter.name) == (Grade.C, "nvml:integrated-power")
    assert any(word.startswith("no_energy_counter") for word in meter.health())
    assert after.counter_mj - before.counter_mj == pytest.approx(gpus.true_mj() - true_before_mj, rel=0.05)


def test_field_191_stands_in_for_the_call(gpus: StandIn) -> None:
    """A board that knows only the newer field keeps grade A."""
    gpus.set(energy_error=NOT_SUPPORTED, field_energy_error=0)
    meter = opened(gpus)
    gpus.sleep(1)
    assert (meter.read().grade, meter.name) == (Grade.A, "nvml:energy-counter")


def test_module_scope_is_said_and_graded_down(gpus: StandIn) -> None:
    """The module's counter holds its CPU, too: it must not pass for the GPU's."""
    gpus.set(energy_error=NOT_SUPPORTED, module_error=0)
    meter = opened(gpus)
    gpus.sleep(1)
    assert meter.read().grade == Grade.C
    assert any(word.startswith("scope: module") for word in meter.health())


def test_power_usage_stands_in_for_the_fields(gpus: StandIn) -> None:
    """Older drivers do not know fields 185 and 186."""
    gpus.set(energy_error=NOT_SUPPORTED, field_power_error=NOT_SUPPORTED)
    meter = opened(gpus)
    before = meter.read()
    gpus.sleep(1)
    assert meter.read().counter_mj - before.counter_mj == 300_000


def test_board_without_energy_and_power_is_refused(gpus: StandIn) -> None:
    """Better no meter than a silent 0."""
    gpus.set(energy_error=NOT_SUPPORTED, power_error=NOT_SUPPORTED)
    with pytest.raises(MeterUnavailable, match="neither energy nor power"):
        opened(gpus)
    assert gpus.num_open[0] == 0


@pytest.mark.parametrize("uuid", [FIRST, f"MIG-{FIRST}"])
def test_mig_is_the_whole_gpu_and_says_so(gpus: StandIn, uuid: str) -> None:
    """An instance has no counter of its own: grade C."""
    gpus.set(mig=1)
    meter = opened(gpus, uuid)
    gpus.sleep(1)
    assert meter.read().grade == Grade.C
    assert any(word.startswith("mig") for word in meter.health())


def test_board_that_knows_no_mig_is_whole(gpus: StandIn) -> None:
    """NOT_SUPPORTED is the answer of every board before Ampere."""
    gpus.set(mig=-1)
    assert opened(gpus).read().grade == Grade.A


# -- health


def test_xids_ecc_and_throttling_are_in_words(gpus: StandIn) -> None:
    """What an operator has to know of the board, as of the last reading."""
    meter = opened(gpus)
    gpus.set(xid=79, uncorrected=2, throttle=0x04 | 0x40 | 0x01)
    assert meter.health() == ()
    meter.read()
    assert meter.health() == (
        f"xid 79: the GPU has fallen off the bus on {FIRST}",
        f"ecc: 2 uncorrected errors on {FIRST}",
        f"throttled: power cap on {FIRST}",
        f"throttled: hardware thermal limit on {FIRST}",
    )


def test_xid_of_a_lost_gpu_is_kept_for_its_return(gpus: StandIn) -> None:
    """The event that explains the loss is read before the board is gone for good."""
    meter = opened(gpus)
    gpus.set(xid=79, lost=1)
    with pytest.raises(DeviceLost):
        meter.read()
    gpus.set(lost=0)
    meter.read()
    assert any(word.startswith("xid 79") for word in meter.health())


def test_missing_events_are_a_note(gpus: StandIn) -> None:
    """Containers often hide them; energy does not depend on it."""
    gpus.set(events_error=NOT_SUPPORTED)
    meter = opened(gpus)
    assert meter.health() == (f"no_xid_events: {FIRST}",)
    assert meter.read().grade == Grade.A


def test_closing_gives_everything_back(gpus: StandIn) -> None:
    """Initialisations and event sets return to zero, once."""
    meter = opened(gpus)
    assert gpus.num_open == (1, 1)
    meter.close()
    meter.close()
    assert gpus.num_open == (0, 0)


# -- opening


def test_unknown_uuid_is_named(gpus: StandIn) -> None:
    """The GPU that is configured is not here."""
    with pytest.raises(MeterUnavailable, match="GPU-nowhere"):
        opened(gpus, "GPU-nowhere")


def test_only_gpu_needs_no_uuid(gpus: StandIn) -> None:
    """A workstation has one; with two the engine's own must be named."""
    assert open_nvml((), clock=gpus.clock, sleep=gpus.sleep).read().counter_mj >= 1_000_000
    gpus.clear(2)
    with pytest.raises(MeterUnavailable, match=r"2 GPUs are here.*give the worker gpus"):
        open_nvml((), clock=gpus.clock, sleep=gpus.sleep)


def test_absent_driver_is_unavailable(gpus: StandIn) -> None:
    """With the remedy that an operator tries first."""
    gpus.driver_absent()
    with pytest.raises(MeterUnavailable, match="nvidia-smi"):
        opened(gpus)


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"nvidia-ml-py": "13.615.71"}, ""),
        ({"nvidia-ml-py": "13.615.71", "pynvml": "12.0.0"}, ""),
        ({"nvidia-ml-py": "13.615.71", "pynvml": "11.5.3"}, "pynvml 11.5.3 shadows"),
        ({"pynvml": "8.0.4"}, "pynvml 8.0.4 shadows"),
        ({}, "nvidia-ml-py is not installed"),
    ],
)
def test_wrong_distribution_is_detected(versions: dict[str, str], problem: str) -> None:
    """The unofficial package shadows NVIDIA's module of the same name."""
    found = wrong_distribution(versions.get)
    assert problem in found
    assert bool(found) == bool(problem)


def test_library_is_refused_where_another_package_took_its_name(gpus: StandIn) -> None:
    """Not even loaded: its bindings may answer, wrongly."""
    versions: Callable[[str], str | None] = {"pynvml": "11.5.3"}.get
    with pytest.raises(MeterUnavailable, match="pip uninstall pynvml"):
        NvmlLibrary(version_of=versions)
    assert gpus.num_open[0] == 0


def test_library_is_found_by_its_own_name(tmp_path: Path) -> None:
    """In a process of its own: the loader's path, pynvml's CDLL("libnvidia-ml.so.1"), the choice by auto."""
    builder = load_builder()
    if builder.compiler() is None:
        pytest.skip("no C compiler (gcc or cc) for the NVML stand-in")
    builder.build(tmp_path, name="libnvidia-ml.so.1")
    script = (
        "from workers.power.choose import open_meter\n"
        "from workers.types import MeterSpec\n"
        f"meter, notes = open_meter(MeterSpec(), gpu_uuids=({FIRST!r},), pids=(), counter=None)\n"
        "print(meter.name, notes, meter.read().counter_mj)\n"
    )
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(tmp_path),
        "JOULEWAY_STAND_IN_GPUS": "1",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.returncode) == ("nvml:energy-counter () 1000000", 0), run.stderr


# -- which GPUs are ours


def test_visible_indices_become_uuids_in_their_order(gpus: StandIn) -> None:
    """Ray names GPUs by PCI index; the order that it chose is kept, and NVML is given back."""
    gpus.clear(3)
    assert (SECOND.replace("00000001", "00000002"), FIRST) == uuids_of_visible_devices("2, 0")
    assert (0, 0) == gpus.num_open


def test_visible_uuids_are_completed(gpus: StandIn) -> None:
    """CUDA takes the beginning of a UUID, NVML only all of it."""
    gpus.clear(2)
    assert (SECOND, FIRST) == uuids_of_visible_devices(f"GPU-00000001,{FIRST.upper()}")


def test_visible_mig_instances_are_passed_on(gpus: StandIn) -> None:
    """An instance's UUID is not in the list of GPUs; the meter finds its GPU."""
    assert (f"MIG-{FIRST}",) == uuids_of_visible_devices(f"MIG-{FIRST}")


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ("", "CUDA_VISIBLE_DEVICES is empty; remedy"),
        (" , ", "CUDA_VISIBLE_DEVICES is empty; remedy"),
        ("2", "entry '2' names 0 of the 2 GPUs here; remedy"),
        ("-1", "entry '-1' names 0 of the 2"),
        ("NoDevFiles", "entry 'NoDevFiles' names 0 of the 2"),
        ("0,GPU-f", "entry 'GPU-f' names 0 of the 2"),
        ("GPU-0000000", "entry 'GPU-0000000' names 2 of the 2"),
        (f"0,{FIRST}", "names a GPU twice; remedy"),
    ],
)
def test_visible_devices_that_cannot_be_meant_are_named(gpus: StandIn, visible: str, words: str) -> None:
    """CUDA would silently drop the entry and all after it; a meter of fewer GPUs would lie."""
    gpus.clear(2)
    with pytest.raises(WorkerError, match=words):
        uuids_of_visible_devices(visible)
    assert (0, 0) == gpus.num_open


def test_visible_devices_without_a_driver_say_what_is_missing(gpus: StandIn) -> None:
    """The cause is the driver, not the variable."""
    gpus.driver_absent()
    with pytest.raises(MeterUnavailable, match="NVML cannot be used"):
        uuids_of_visible_devices("0")


def test_visible_devices_that_were_lost_say_so(gpus: StandIn) -> None:
    """A GPU that fell off the bus cannot be named any more; NVML is given back all the same."""
    gpus.set(lost=1)
    with pytest.raises(MeterUnavailable, match="GPUs cannot be listed"):
        uuids_of_visible_devices("0")
    assert (0, 0) == gpus.num_open


def test_gpus_are_named_in_the_order_that_was_asked(gpus: StandIn) -> None:
    """As the driver spells them, which is how a catalogue knows them; NVML is given back."""
    gpus.clear(2)
    assert ("NVIDIA B200", "NVIDIA H100 80GB HBM3") == names_of((SECOND, FIRST))
    assert (0, 0) == gpus.num_open


@pytest.mark.parametrize("trouble", ["unknown", "lost", "no driver"])
def test_gpus_that_cannot_be_named_say_so(gpus: StandIn, trouble: str) -> None:
    """One error for whoever wants to go on without a name; NVML is given back all the same."""
    if trouble == "no driver":
        gpus.driver_absent()
    gpus.set(lost=trouble == "lost")
    with pytest.raises(MeterUnavailable, match=r"remedy: nvidia-smi must work here"):
        names_of(("GPU-nowhere" if trouble == "unknown" else FIRST,))
    assert (0, 0) == gpus.num_open
