"""The sections of the configuration: what each key means, its unit, its bounds, its default.

Called by ``scheduler.config``, which reads the file. It must never read a file or an environment variable.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from scheduler.accounting.budget_terms import NANO_PLACES, ledger_amount

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Lower case, so that two names never differ by case alone; no brackets, which the house's own accounts use."""
Port = Annotated[int, Field(ge=0, le=65535)]
Tier = Literal["flex", "default", "priority"]
Expansion = Literal["none", "nfc", "nfkc"]
DataClassName = Literal["general", "important", "core"]
DATA_CLASSES = ("general", "important", "core")
"""Each may also be held where the next one may."""

NUMBERS = (int, float, Decimal, int | None, float | None, Decimal | None)

PPM_PLACES = 6
"""Decimal places of ratios that money is multiplied by."""
MAX_PRICE = Decimal(1_000_000)
"""Currency units per million tokens, kWh or GPU-second."""
MAX_PUE = Decimal(10)
MAX_MARGIN = Decimal(100)


def rank(data_class: str) -> int:
    """0 for what needs least."""
    return DATA_CLASSES.index(data_class)


class Section(BaseModel):
    """Unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: object) -> object:
        """``port: yes`` is a mistake, not port 1. (Lax otherwise: the environment holds text.)"""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation in NUMBERS:
                raise ValueError(f"{name} is a number, not true or false")
        return values


class ServerConfig(Section):
    """The OpenAI endpoint."""

    host: str = "127.0.0.1"
    port: Port = 8000
    """0 = any free port (tests, demo)."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that may stand in the Host header, beside the loopback names."""
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    behind_proxy: bool = False
    """A proxy in front of it speaks TLS; only then plain HTTP may leave loopback."""

    @property
    def is_loopback(self) -> bool:
        """Nobody outside this machine can connect."""
        return self.host in LOOPBACK_HOSTS

    @model_validator(mode="after")
    def _check(self) -> ServerConfig:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together: give both or none")
        if not self.is_loopback:
            if self.tls_cert_file is None and not self.behind_proxy:
                raise ValueError(
                    f"host {self.host} is beyond loopback: give tls_cert_file and tls_key_file, or behind_proxy: true"
                )
            if not self.allowed_hosts:
                raise ValueError(
                    f"host {self.host} is beyond loopback: name the hosts that may be asked, allowed_hosts"
                )
        return self


class AdminConfig(Section):
    """Metrics and admin routes, on their own listener."""

    host: Literal["127.0.0.1", "localhost", "::1"] = "127.0.0.1"
    """Always loopback."""
    port: Port = 8001
    key_file: Path | None = None
    """None = ``admin.key`` in state_dir; written at the first start."""


class RayConfig(Section):
    """Which Ray cluster."""

    address: str | None = None
    """None = one of our own, which ends with us. ``auto`` or HOST:PORT = a standing one: engines there outlive us."""
    namespace: Name = "jouleway"
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """Own cluster only: cores that Ray may hand out; None = all."""


class LedgerConfig(Section):
    """Where everything that is used is booked. The file's owner can read all of it, and nobody can change it unseen."""

    url: str | None = None
    """``sqlite:////PATH`` or ``postgresql://…``; None = ``ledger.db`` in state_dir. A URL with a password belongs into
    the environment (JOULEWAY_LEDGER__URL) or into url_file.
    """
    url_file: Path | None = None
    """Holds the URL in its first line; readable by its owner only."""
    key_file: Path | None = None
    """The signing key; None = ``ledger.key`` in state_dir; made at the first start. Keep a copy elsewhere."""
    retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Texts of holds, charges, energy and windows older than this go; sums and hashes stay. None = never."""
    checkpoint_dir: Path | None = None
    """Signed checkpoints are also kept here, away from the ledger; None = state_dir with ``-checkpoints`` behind its
    name. Best on another disk or machine: who has them can prove that a ledger was rolled back.
    """

    @model_validator(mode="after")
    def _check(self) -> LedgerConfig:
        if self.url is not None and self.url_file is not None:
            raise ValueError("give one of url and url_file")
        return self


class LimitsConfig(Section):
    """Bounds of what clients may ask and of what may wait."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=256 << 20)] = 1 << 20
    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 131_072
    """The most that a client may ask for in one sequence; more is an error, not a cap."""
    max_queued_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Of each priority band."""
    max_queued_bytes: Annotated[int, Field(ge=1024)] = 256 << 20
    """Of each priority band."""
    request_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 3600.0
    """From arrival to the last byte; then the request is ended with deadline_exceeded."""
    max_window_s: Annotated[float, Field(gt=0, le=604_800)] = 86_400.0
    """The longest deadline that a batch-class request may state for itself, where that is more than request_timeout_s:
    until then it may wait for a cheaper hour.
    """
    keep_alive_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Streams that wait longer for their first byte get a 200 and comments from then on."""
    slow_reader_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """How long one write to a client may block."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Time that running requests get when the service stops."""
    start_timeout_s: Annotated[float, Field(gt=0, le=7200)] = 900.0
    """Time that a worker gets to load its weights and calibrate."""


class CostPlusConfig(Section):
    """A price of what a request took, at cost and with a margin."""

    per_kwh: Decimal = Decimal(0)
    """Currency units for a kWh at the hall's door."""
    pue: Decimal = Decimal(1)
    """kWh at the door for a kWh at the meter."""
    per_gpu_second: Decimal = Decimal(0)
    """Currency units for the use of one GPU for a second."""
    margin: Decimal = Decimal(0)
    """On top of both: 0.15 is 15 %."""

    @field_validator("per_kwh", "per_gpu_second")
    @classmethod
    def _is_a_price(cls, value: Decimal) -> Decimal:
        return _checked(value, NANO_PLACES, most=MAX_PRICE)

    @field_validator("pue")
    @classmethod
    def _is_a_pue(cls, value: Decimal) -> Decimal:
        if value < 1:
            raise ValueError("must be 1 or more: a hall takes what its meters count, and something beside")
        return _checked(value, PPM_PLACES, most=MAX_PUE)

    @field_validator("margin")
    @classmethod
    def _is_a_margin(cls, value: Decimal) -> Decimal:
        return _checked(value, PPM_PLACES, most=MAX_MARGIN)


class PriceConfig(Section):
    """Of a model, in currency units per million tokens."""

    input: Decimal = Decimal(0)
    cached_input: Decimal | None = None
    """None = as any other input."""
    output: Decimal = Decimal(0)
    reasoning: Decimal | None = None
    """None = as any other output."""
    image_input: Decimal | None = None
    """None = as any other input."""
    audio_input: Decimal | None = None
    """None = as any other input."""
    cost_plus: CostPlusConfig | None = None
    """None: its tokens are all that a request pays for."""

    @field_validator("input", "cached_input", "output", "reasoning", "image_input", "audio_input")
    @classmethod
    def _check(cls, value: Decimal | None) -> Decimal | None:
        return None if value is None else _checked(value, NANO_PLACES, most=MAX_PRICE)


def _checked(value: Decimal, places: int, *, most: Decimal) -> Decimal:
    if value > most:
        raise ValueError(f"must be at most {most}")
    ledger_amount(value, places)
    return value


class SloConfig(Section):
    """What requests of a model are promised, and what a second of lateness costs."""

    ttft_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    ttft_ratio: Annotated[float, Field(ge=1, le=1000)] = 3.0
    """The first token is on time within the larger of ttft_s and so many times its unloaded time."""
    tpot_s: Annotated[float, Field(gt=0, le=60)] = 0.05
    """Mean time of an output token after the first."""
    value_per_s: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Currency units."""


class WorkConfig(Section):
    """Catalogue GPU-seconds of a token of each kind: what its tenant's turn costs. Constants, whatever was measured."""

    prefill_gpu_s: Annotated[float, Field(ge=1e-9, le=10)] = 3.25e-5
    cached_gpu_s: Annotated[float, Field(ge=0, le=10)] | None = None
    """None = a tenth of prefill_gpu_s."""
    decode_gpu_s: Annotated[float, Field(ge=1e-9, le=10)] = 1.94e-4


class SchedulingConfig(Section):
    """The order of what waits, and what is kept free."""

    reserve_ratio: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Part of a worker's credit that only the highest band may take."""
    ageing_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """A lower band whose first request waited so long gets every ``ageing_every``-th start."""
    ageing_every: Annotated[int, Field(ge=2, le=1_000_000)] = 16


class ModelConfig(Section):
    """One model, by the name under which clients ask for it."""

    weights: str | None = None
    """Folder or hub name for vLLM; ``builtin:…`` = built by ``make setup``; None for the simulated engine."""
    default_output_tokens: Annotated[int, Field(ge=1)] = 4096
    """What a request without a limit of its own gets."""
    normalizer: Expansion = "nfkc"
    """Of its tokenizer; bounds how many tokens a byte can become. nfkc is the worst case."""
    price: PriceConfig | None = None
    """The simple way; None = as ``prices.versions`` say, else nothing."""
    slo: SloConfig = SloConfig()
    work: WorkConfig = WorkConfig()
    warm_engines: Annotated[int, Field(ge=0, le=10_000)] = 1
    """So many are never parked. 0: all may be, and who comes first waits for a start."""


class MeterConfig(Section):
    """Which meter; see docs/metering.md."""

    kind: Literal["auto", "nvml", "rapl", "modelled", "simulated"] = "auto"
    watts_per_cpu_second: Annotated[float, Field(ge=0)] = 12.0
    idle_watts: Annotated[float, Field(ge=0)] = 3.0
    counter_path: Path | None = None


class WorkerConfig(Section):
    """``count`` workers of one kind."""

    name: Name
    """Worker ids are ``name-0``, ``name-1``…"""
    engine: Literal["vllm", "simulated"]
    model: str
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    one_process: bool = False
    """All of them in one actor; simulated engines only."""
    engine_args: dict[str, str | int | float | bool | None | list[str]] = {}
    """vllm: any argument of ``vllm serve`` by its long name with underscores; simulated: its own options."""
    meter: MeterConfig = MeterConfig()
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of one engine; 0 = a CPU engine."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    zone: Name = "local"
    max_running: Annotated[int, Field(ge=1)] = 256
    window_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    calibration_s: Annotated[float, Field(ge=0, le=120)] = 20.0
    stall_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    orphan_timeout_s: Annotated[float, Field(ge=0)] = 1800.0
    can_park: bool = True
    """Whether its engine may be stopped while nobody needs it; nothing is parked where energy has no price."""
    policy: Literal["shapley", "tokens", "solo-capped"] = "shapley"
    seed: int = 0
    environment: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> WorkerConfig:
        if self.one_process and self.engine != "simulated":
            raise ValueError("one_process is for simulated engines: each vLLM engine needs a process of its own")
        return self
