"""The NVML meter on real GPUs, under a modelled load: needs torch, pynvml and a GPU, no engine.

Each test prints the board, its driver and its figures; with JOULEWAY_GPU_RESULT set they are written there as JSON.
"""

import datetime
import itertools
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workers.errors import MeterUnavailable
from workers.power.device_meter import DeviceMeter
from workers.power.nvml import NvmlLibrary, open_nvml
from workers.types import Grade

pytestmark = pytest.mark.gpu

WINDOW_S = 5.0


@pytest.fixture(scope="module")
def torch() -> Any:
    module = pytest.importorskip("torch", reason="torch is not installed")
    if not module.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return module


@pytest.fixture(scope="module")
def uuid(torch: Any) -> str:
    """Of the device that torch calls 0, whatever NVML calls it."""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


@pytest.fixture
def meter(uuid: str) -> Iterator[DeviceMeter]:
    try:
        opened = open_nvml((uuid,))
    except MeterUnavailable as error:
        pytest.skip(f"no NVML meter: {error}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def figures(uuid: str) -> Iterator[dict[str, object]]:
    """Collected by the tests, written at the end."""
    library = NvmlLibrary()
    handle = library.api.nvmlDeviceGetHandleByUUID(uuid)
    found: dict[str, object] = {
        "what": "NVML meter on a real GPU: counter against integrated power, stability of windows, modelled load",
        "command": "JOULEWAY_GPU_RESULT=PATH pytest -m gpu tests/gpu/test_meter_gpu.py",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gpu": library.api.nvmlDeviceGetName(handle),
        "driver": library.api.nvmlSystemGetDriverVersion(),
        "power_limit_watts": library.api.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "python": platform.python_version(),
    }
    library.close()
    yield found
    print(json.dumps(found, indent=1))
    if path := os.environ.get("JOULEWAY_GPU_RESULT"):
        Path(path).write_text(json.dumps(found, indent=1) + "\n")


class Load:
    """Matrix products on the GPU for ``duty_ratio`` of the time, from a thread, until the block ends."""

    def __init__(self, torch: Any, *, size: int = 8192, duty_ratio: float = 1.0) -> None:
        self._torch = torch
        self._matrix = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
        self._duty_ratio = duty_ratio
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.num_products = 0

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._torch.cuda.synchronize()

    def _run(self) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            for _ in range(4):
                self._torch.matmul(self._matrix, self._matrix)
            self._torch.cuda.synchronize()
            self.num_products += 4
            busy_s = time.monotonic() - began_s
            if self._duty_ratio < 1:
                time.sleep(busy_s * (1 / self._duty_ratio - 1))


def window_watts(meter: DeviceMeter, *, num_windows: int = 1, window_s: float = WINDOW_S) -> list[float]:
    """Mean power of consecutive windows, edge to edge."""
    watts = []
    before = meter.read()
    for _ in range(num_windows):
        time.sleep(window_s)
        after = meter.read()
        watts.append((after.counter_mj - before.counter_mj) / 1000 / (after.at_s - before.at_s))
        before = after
    return watts


def test_counter_agrees_with_integrated_power(
    meter: DeviceMeter, torch: Any, uuid: str, figures: dict[str, object]
) -> None:
    """Two ways to the same joules, within 5 %, under load and idle."""
    if meter.name != "nvml:energy-counter":
        pytest.skip(f"this board has no energy counter: {meter.health()}")
    library = NvmlLibrary()
    from workers.power.nvml import NvmlDevice

    device = NvmlDevice(library, uuid)

    def ratio() -> float:
        before, samples = meter.read(), []
        while time.monotonic() < before.at_s + 2 * WINDOW_S:
            samples.append((time.monotonic(), device.power_watts() or 0.0))
            time.sleep(0.02)
        after = meter.read()
        pairs = list(itertools.pairwise(samples))
        mean_watts = sum((a[1] + b[1]) / 2 * (b[0] - a[0]) for a, b in pairs) / (samples[-1][0] - samples[0][0])
        return mean_watts * (after.at_s - before.at_s) * 1000 / (after.counter_mj - before.counter_mj)

    idle_ratio = ratio()
    with Load(torch):
        time.sleep(3)
        load_ratio = ratio()
    device.close()
    library.close()
    figures["integrated_over_counter"] = {"idle": round(idle_ratio, 4), "load": round(load_ratio, 4)}
    assert 0.95 <= load_ratio <= 1.05
    assert 0.95 <= idle_ratio <= 1.05


def test_windows_of_five_seconds_are_stable(meter: DeviceMeter, torch: Any, figures: dict[str, object]) -> None:
    """Under a steady load windows differ by little; edges lie on the counter's ticks."""
    with Load(torch):
        time.sleep(5)
        watts = window_watts(meter, num_windows=6)
    spread_ratio = statistics.pstdev(watts) / statistics.mean(watts)
    figures["window_watts"] = [round(value, 1) for value in watts]
    figures["window_spread_ratio"] = round(spread_ratio, 4)
    assert spread_ratio <= 0.05


def test_refresh_of_the_counter_is_within_the_wait(meter: DeviceMeter, torch: Any, figures: dict[str, object]) -> None:
    """A reading finds the next tick: consecutive readings lie one refresh apart, and none waits in vain."""
    with Load(torch):
        stamps = [meter.read().at_s for _ in range(20)]
    periods_s = [after - before for before, after in itertools.pairwise(stamps)]
    figures["counter_refresh_s"] = round(statistics.median(periods_s), 4)
    assert 0 < statistics.median(periods_s) <= 0.2


def test_more_load_costs_more(meter: DeviceMeter, torch: Any, figures: dict[str, object]) -> None:
    """Idle, half and full load are told apart, and the reading keeps grade A throughout."""
    idle_watts = window_watts(meter)[0]
    levels: dict[str, Callable[[], Load]] = {
        "half": lambda: Load(torch, duty_ratio=0.5),
        "full": lambda: Load(torch),
    }
    watts = {"idle": idle_watts}
    for name, load in levels.items():
        with load():
            time.sleep(3)
            watts[name] = window_watts(meter)[0]
    figures["load_watts"] = {name: round(value, 1) for name, value in watts.items()}
    reading = meter.read()
    assert watts["idle"] * 1.2 < watts["half"] < watts["full"]
    assert (reading.grade, reading.fault) == (Grade.A if meter.name == "nvml:energy-counter" else Grade.C, "")


def test_reading_never_steps_back(meter: DeviceMeter, torch: Any) -> None:
    """Value and stamp, read as fast as possible."""
    with Load(torch, duty_ratio=0.3):
        readings = [meter.read() for _ in range(50)]
    for before, after in itertools.pairwise(readings):
        assert after.counter_mj >= before.counter_mj
        assert after.at_s >= before.at_s


def test_health_is_empty_or_in_words(meter: DeviceMeter) -> None:
    """Whatever this board has to say, it is said in words an operator can search for."""
    meter.read()
    known = ("xid ", "ecc:", "throttled:", "mig:", "scope:", "no_xid_events:", "no_energy_counter:")
    assert [word for word in meter.health() if not word.startswith(known)] == []
