"""The frozen values that cross the boundary between the control plane and a worker.

Called by everybody. Structs with a ``tag`` or in a union travel as MessagePack; nothing here is pickled across the
boundary. It must never know Ray, vLLM, HTTP or a clock.

Times ending in ``_s`` without further word are seconds of the machine's monotonic clock (one host, all processes);
``*_unix_s`` is wall time. Energy is integer millijoules (``_mj``), GPU-time integer microseconds (``_gpu_us``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from workers.step_curves import PowerStates, StepCurves

WIRE_VERSION = 4
"""Raised with every change of a struct that crosses the boundary."""


class Grade(StrEnum):
    """Quality of a joule: A counter + step hook, B counter + aggregate hook, C integrated or shared, D modelled."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"

    @staticmethod
    def worst(*grades: Grade) -> Grade:
        """The lowest of the grades given (D is lowest)."""
        return max(grades, key=lambda grade: grade.value)


class Outcome(StrEnum):
    """How an attempt ended at the worker."""

    COMPLETED = "completed"
    ABORTED = "aborted"
    REFUSED = "refused"
    """The engine itself answered with a status of 400 or more; no sequence ran."""
    FAILED = "failed"
    """The engine broke (5xx, exception, dead, stalled)."""


class Phase(StrEnum):
    """What became of the engine in a window; where it did not serve, all that was drawn has one account."""

    SERVING = "serving"
    PARKED = "parked"
    """Idle, whatever the device drew."""
    STARTING = "starting"
    """It was woken: overhead."""


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    PARKED = "parked"
    """Its engine is stopped, and starts again when it is told."""
    SICK = "sick"
    DRAINING = "draining"
    STOPPED = "stopped"


# -- what a worker is


class MeterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which meter to use. ``kind`` auto = nvml where there are GPUs, else rapl where readable, else modelled."""

    kind: Literal["auto", "nvml", "rapl", "modelled", "simulated"] = "auto"
    watts_per_cpu_second: float = 12.0
    """modelled: watts of one busy core (an assumption, printed with the figures; grade D)."""
    idle_watts: float = 3.0
    """modelled: watts drawn by the loaded, idle engine."""
    counter_path: str | None = None
    """simulated: file in which the counter lives, so that it outlives the engine's process."""


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs to start; plain values, no configuration object."""

    worker_id: str
    engine: Literal["vllm", "simulated"]
    model: str
    """Name the model is served under."""
    engine_args: dict[str, str | int | float | bool | None | list[str]] = {}
    """vllm: any argument of ``vllm serve`` by its long name (underscores); simulated: its own options."""
    meter: MeterSpec = MeterSpec()
    num_gpus: int = 0
    """GPUs of this engine (tensor parallel); 0 = a CPU engine, which counts as one GPU in GPU-seconds."""
    gpu_uuids: tuple[str, ...] = ()
    """Empty: found by Ray's assignment at start."""
    zone: str = "local"
    max_running: int = 256
    """Attempts accepted at once before WorkerBusy."""
    window_s: float = 5.0
    calibration_s: float = 20.0
    """Upper bound of the calibration at engine start; 0 = none."""
    stall_timeout_s: float = 60.0
    """No step for this long with work running: the worker is sick."""
    orphan_timeout_s: float = 1800.0
    """No control plane for this long: stop the engine. 0 = never. It is heard every 2 s: stay well above."""
    can_park: bool = True
    """Its engine may be stopped while nobody needs it, and started again."""
    policy: Literal["shapley", "tokens", "solo-capped"] = "shapley"
    seed: int = 0
    num_cpus: float = 1.0
    environment: dict[str, str] = {}
    last_counter_mj: int | None = None
    """Last durable reading of this counter: the first window starts there (the gap is unattributed, worker_lost)."""
    prior_curves: dict[str, StepCurves] = {}
    """Where its curve starts until it has measured its own, by what NVML calls the GPU."""
    last_counter_id: str = ""
    """That reading is of this counter, and no other goes on from it; empty: of whichever this worker reads."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself once it is up."""

    engine: str
    version: str
    models: tuple[str, ...]
    max_model_len_tokens: int
    kv_tokens: int
    """KV room in tokens."""
    max_sequences: int
    num_gpus: int
    """GPUs that count in GPU-seconds (a CPU engine: 1)."""
    pids: tuple[int, ...] = ()
    """Roots of the engine's process trees (not our own process)."""
    hook_grade: Grade = Grade.A
    """A: per-request steps; B: aggregate fallback."""
    simulated: bool = False
    tokenizer_digest: str = ""
    notes: tuple[str, ...] = ()
    """Downgrades and their causes, in words for an operator."""


# -- what was computed


class SequenceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one engine request, closed, and what is stated of its text.

    Identity (design §5): computed_prompt + max(generated − 1, 0) == scheduled − recomputed − rejected − overrun.
    The left side is counted from the engine's outputs, the right side from its scheduler's.
    """

    engine_request_id: str
    prompt_index: int = 0
    """Which prompt of the request; children of n > 1 share it, and the prompt is billed once per index."""
    prompt_tokens: int
    cached_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    scheduled_tokens: int
    recomputed_tokens: int = 0
    rejected_tokens: int = 0
    overrun_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the generated; 0 where the engine does not tell."""
    image_tokens: int = 0
    """Of the prompt; pictures of a video too."""
    audio_tokens: int = 0
    output_bytes: int = 0
    output_digest: str = ""
    """See ``UsageRecord.output_digests``; empty where nothing is generated (embeddings)."""
    finish_reason: str = ""
    exact: bool = True
    """False where the scheduler's side is missing (aggregate fallback, dropped records)."""

    @property
    def token_difference(self) -> int:
        """Left side minus right side of the token identity; 0 when all is well."""
        left = self.computed_prompt_tokens + max(self.generated_tokens - 1, 0)
        right = self.scheduled_tokens - self.recomputed_tokens - self.rejected_tokens - self.overrun_tokens
        return left - right


# -- control plane -> worker


class Call(msgspec.Struct, frozen=True, kw_only=True, tag="call"):
    """One attempt: what the engine's ASGI app is asked. ``body`` is admitted JSON with max_tokens already capped."""

    attempt_id: str
    path: str
    body: bytes
    priority: int = 0
    """Lower is earlier, as in vLLM."""


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    attempt_id: str
    reason: str


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag="ack"):
    """Every outbox record up to and including ``number`` is durable."""

    number: int


class Park(msgspec.Struct, frozen=True, kw_only=True, tag="park"):
    """Stop the engine, unless something runs there; the worker and its meter live on."""

    reason: str


class Wake(msgspec.Struct, frozen=True, kw_only=True, tag="wake"):
    """Start the engine of a parked worker again."""

    reason: str


Command = Call | Abort | Ack | Park | Wake


# -- worker -> control plane


class Started(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """The engine's status line and headers arrived."""

    attempt_id: str
    status: int
    headers: list[tuple[bytes, bytes]]


class Chunk(msgspec.Struct, frozen=True, tag="c", array_like=True):
    """Body bytes, opaque; all that one attempt produced since the last report, joined."""

    attempt_id: str
    body: bytes


class Ended(msgspec.Struct, frozen=True, tag="e", array_like=True):
    """The ASGI side ended; ``cause`` is empty unless the attempt failed or was aborted."""

    attempt_id: str
    outcome: Outcome
    cause: str = ""


Output = Started | Chunk | Ended


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """Cumulative tokens of a running attempt (all its sequences); sent at its first step, then at most every 0.25 s."""

    attempt_id: str
    prompt_tokens: int
    cached_tokens: int
    computed_prompt_tokens: int
    output_tokens: int


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, tag="usage"):
    """The charge of one attempt: sent once, when both its ASGI end and its closing step record arrived."""

    attempt_id: str
    outcome: Outcome
    cause: str = ""
    sequences: tuple[SequenceUsage, ...] = ()
    input_tokens: int = 0
    """Billed input: each prompt once, cached tokens included."""
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of ``output_tokens``; ``image_tokens`` and ``audio_tokens`` are parts of ``input_tokens``."""
    image_tokens: int = 0
    audio_tokens: int = 0
    input_bytes: int = 0
    """UTF-8 of the texts asked; 0 where they were token ids."""
    output_bytes: int = 0
    """UTF-8 of all choices' whole generated texts."""
    salt: str = ""
    """32 hex digits, this attempt's own; empty where the engine was never asked."""
    input_digest: str = ""
    """Hex SHA-256(salt || RFC 8785 of the body's messages, prompt or input)."""
    output_digests: tuple[str, ...] = ()
    """Hex SHA-256(salt || UTF-8 of the whole generated text), one a choice that was begun, by the choices' index."""
    started_s: float = 0.0
    first_byte_s: float | None = None
    ended_s: float = 0.0
    provisional_mj: int = 0
    """Predicted energy so far; the posting says what was measured."""
    provisional_gpu_us: int = 0


class EnergyPosting(msgspec.Struct, frozen=True, kw_only=True, tag="posting"):
    """In flight -> request, once per attempt, when the last window that computed it was closed."""

    attempt_id: str
    energy_mj: int
    gpu_us: int
    grade: Grade
    policy: str
    complete: bool = True
    """False: a window of this attempt was lost, its energy is in unattributed."""
    computed_tokens: int | None = None
    """Tokens of the steps that this energy was split by; None = not counted. Held against the attempt's usage."""


class WindowRecord(msgspec.Struct, frozen=True, kw_only=True, tag="window"):
    """One metered window. meter_mj == idle + overhead + unattributed + in_flight, to the millijoule, always.

    ``unattributed_mj`` may be negative (the clamp left more predicted than measured). ``shares`` are what moved into
    the in-flight account, per attempt: (attempt_id, energy_mj, gpu_us); in_flight_mj is their sum.
    """

    window: int
    started_s: float
    ended_s: float
    ended_unix_s: float
    counter_mj: int
    """Absolute counter at the end of the window."""
    meter_mj: int
    idle_mj: int
    overhead_mj: int
    unattributed_mj: int
    in_flight_mj: int
    shares: tuple[tuple[str, int, int], ...]
    busy_gpu_us: int
    """Step time × GPUs; == overhead_gpu_us + Σ shares' gpu_us."""
    overhead_gpu_us: int
    predicted_mj: int
    """Σ predicted step energy with the coefficients frozen before the window."""
    scale_ratio: float
    grade: Grade
    meter: str
    num_steps: int
    calibrating: bool = False
    phase: Phase = Phase.SERVING
    causes: tuple[tuple[str, int], ...] = ()
    """Named parts of unattributed: (cause, mj)."""


Record = UsageRecord | EnergyPosting | WindowRecord


class Numbered(msgspec.Struct, frozen=True, array_like=True):
    """An outbox record; numbers rise by one and survive reconnects, so that a replay is recognised."""

    number: int
    record: Record


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself, about once a second and on every change of state."""

    worker_id: str
    state: WorkerState
    cause: str = ""
    zone: str = "local"
    info: EngineInfo | None = None
    num_running: int = 0
    num_waiting: int = 0
    kv_used_tokens: int = 0
    steps_total: int = 0
    dropped_step_records_total: int = 0
    outbox_depth: int = 0
    outbox_dropped_total: int = 0
    in_flight_mj: int = 0
    meter: str = ""
    grade: Grade = Grade.D
    meter_up: bool = False
    power_watts: float | None = None
    counter_mj: int | None = None
    counter_id: str = ""
    """Names a counter that counts on without this process: the GPUs of it, by UUID; empty where it ends with it."""
    health: tuple[str, ...] = ()
    """XID, ECC, throttle reasons, downgrades: in words."""
    curves: StepCurves | None = None
    power_states: PowerStates | None = None
    """None: its engine cannot be parked."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a worker's output stream: all that happened since the last item, usually one engine step."""

    epoch: int
    outputs: list[Output] = []
    progress: list[Progress] = []
    records: list[Numbered] = []
    status: WorkerStatus | None = None
