"""Short ways to say what is simulated.

Used by tests of ``scheduler.simulation`` (``from tests.simulated_words import arrival, scenario``).
"""

from __future__ import annotations

from scheduler.simulation.scenario import Arrival, FaultAt, Scenario, WorkerSetup
from scheduler.simulation.trace import Decided, Event
from tests.core_words import MODEL, request
from workers.engines.simulated_options import SimulatedOptions

OPTIONS = SimulatedOptions(fixed_step_s=0.01, kv_tokens=2_000, max_sequences=8, prefix_caching=False)


def setup(worker_id: str = "w", *, max_running: int = 4, **values: object) -> WorkerSetup:
    """A worker with steps of 10 ms."""
    fields: dict[str, object] = {"models": (MODEL,), "options": OPTIONS, **values}
    return WorkerSetup(worker_id=worker_id, max_running=max_running, **fields)  # type: ignore[arg-type]


def arrival(name: str = "a", *, output: int = 5, is_streaming: bool = True, **values: object) -> Arrival:
    """Ten prompt tokens, of a bound of 100."""
    how = {each: values.pop(each) for each in ("cancel_after_s", "cancel_on") if each in values}
    return Arrival(
        request=request(name, **values), prompt_tokens=10, output_tokens=output, is_streaming=is_streaming, **how,
    )  # type: ignore[arg-type]  # fmt: skip


def scenario(*arrivals: Arrival, faults: tuple[FaultAt, ...] = (), **values: object) -> Scenario:
    """Two workers, ``v`` and ``w``."""
    fields: dict[str, object] = {"workers": (setup("v"), setup("w")), **values}
    return Scenario(seed=1, arrivals=arrivals, faults=faults, **fields)  # type: ignore[arg-type]


def of(trace: list[Event], kind: type) -> list:
    """Events of a kind, or decisions of one."""
    return [
        event.action if isinstance(event, Decided) and isinstance(event.action, kind) else event
        for event in trace
        if isinstance(event, kind) or (isinstance(event, Decided) and isinstance(event.action, kind))
    ]
