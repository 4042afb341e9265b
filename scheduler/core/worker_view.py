"""What the core needs of a worker's report: where it stands, what it serves, what it holds, and its curves.

Made by the dispatcher and by simulation, read by ``scheduler.core.cluster``. It must never know what is owned there.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.curves import said_of
from workers.step_curves import PowerStates, StepCurves
from workers.types import WorkerState, WorkerStatus

DEFAULT_MAX_RUNNING = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """What the core needs of a worker's report."""

    worker_id: str
    state: WorkerState
    models: tuple[str, ...] = ()
    zone: str = "local"
    kv_tokens: int = 0
    max_sequences: int = 1
    max_running: int = DEFAULT_MAX_RUNNING
    """Attempts the worker accepts at once."""
    num_gpus: int = 1
    """That count in GPU-seconds."""
    num_running: int = 0
    num_waiting: int = 0
    kv_used_tokens: int = 0
    curves: StepCurves | None = None
    power_states: PowerStates | None = None
    """None: its engine cannot be parked."""

    @property
    def curve_word(self) -> str:
        """Whose curve it is placed by, for ``explain``."""
        return said_of(self.curves, self.num_running)

    @staticmethod
    def of(status: WorkerStatus, *, max_running: int = DEFAULT_MAX_RUNNING) -> WorkerView:
        """From a status; before the engine is up a worker serves no model and is not ready."""
        info = status.info
        return WorkerView(
            worker_id=status.worker_id,
            state=status.state if info is not None or status.state is not WorkerState.READY else WorkerState.STARTING,
            models=info.models if info is not None else (),
            zone=status.zone,
            kv_tokens=info.kv_tokens if info is not None else 0,
            max_sequences=max(info.max_sequences, 1) if info is not None else 1,
            max_running=max_running,
            num_gpus=info.num_gpus if info is not None else 1,
            num_running=status.num_running,
            num_waiting=status.num_waiting,
            kv_used_tokens=status.kv_used_tokens,
            curves=status.curves,
            power_states=status.power_states,
        )
