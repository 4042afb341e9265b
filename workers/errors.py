"""What can go wrong beside a GPU.

Called by both wings. A class exists only where some caller acts on it differently; it carries its numbers.
It must never know Ray, vLLM or HTTP.
"""


class WorkerError(Exception):
    """Something failed beside a GPU; the message names the part, the number and the remedy."""


class WorkerBusy(WorkerError):
    """The worker refuses more work; it says its true load, so the caller places elsewhere."""

    def __init__(self, worker_id: str, *, num_running: int, max_running: int) -> None:
        super().__init__(f"worker {worker_id} is full: {num_running} of {max_running} requests are running")
        self.worker_id = worker_id
        self.num_running = num_running
        self.max_running = max_running


class WorkerDead(WorkerError):
    """The worker is gone; end or retry what ran there. ``is_final``: its process has ended, no connection will help."""

    def __init__(self, worker_id: str, cause: str, *, is_final: bool = False) -> None:
        super().__init__(f"worker {worker_id} is gone: {cause}")
        self.worker_id = worker_id
        self.cause = cause
        self.is_final = is_final


class StaleEpoch(WorkerError):
    """A newer control plane is connected; whoever receives this must stop talking to the worker."""

    def __init__(self, *, given: int, current: int) -> None:
        super().__init__(f"epoch {given} is fenced off: the worker is connected with epoch {current}")
        self.given = given
        self.current = current


class WireMismatch(WorkerError):
    """Worker and control plane speak different wire versions: drain and replace the worker."""

    def __init__(self, *, given: int, spoken: int) -> None:
        super().__init__(f"wire version {given} was asked for, the worker speaks {spoken}: drain and replace it")
        self.given = given
        self.spoken = spoken


class EngineStartError(WorkerError):
    """An engine did not start; carries the last lines it printed."""

    def __init__(self, message: str, *, last_lines: tuple[str, ...] = ()) -> None:
        tail = "".join(f"\n    {line}" for line in last_lines)
        super().__init__(f"{message}{tail}")
        self.last_lines = last_lines


class MeterUnavailable(WorkerError):
    """This meter cannot be had here (no driver, no counter, wrong package); the next one down is tried."""
