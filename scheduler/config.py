"""What an operator may write: one YAML file, every key checked, environment variables on top.

Called by ``scheduler.service`` and the commands; below them only plain arguments travel. It must never import an
engine, Ray or numpy, and no message of it may repeat a secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from scheduler.config_errors import ConfigError, problems_of
from workers.types import MeterSpec, WorkerSpec

ENVIRONMENT_PREFIX = "JOULEWAY_"
"""``JOULEWAY_SERVER__PORT=9000`` sets ``server.port``; two underscores go one level down."""

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
BUILTIN_WEIGHTS = "builtin:smollm2-135m-instruct"
"""Weights that ``make setup`` builds from a package; no model hub is asked."""

MAX_CONFIG_BYTES = 4 << 20
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Lower case, so that two names never differ by case alone; no brackets, which the house's own accounts use."""
Port = Annotated[int, Field(ge=0, le=65535)]
Tier = Literal["flex", "default", "priority"]
Expansion = Literal["none", "nfc", "nfkc"]


class Section(BaseModel):
    """Unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


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
    """None = one of our own, which ends with us. ``auto`` or HOST:PORT = a standing one, on which engines outlive us."""
    namespace: Name = "jouleway"
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """Own cluster only: cores that Ray may hand out; None = all."""


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
    keep_alive_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Streams that wait longer for their first byte get a 200 and comments from then on."""
    slow_reader_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """How long one write to a client may block."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Time that running requests get when the service stops."""
    start_timeout_s: Annotated[float, Field(gt=0, le=7200)] = 900.0
    """Time that a worker gets to load its weights and calibrate."""


class ModelConfig(Section):
    """One model, by the name under which clients ask for it."""

    weights: str | None = None
    """Folder or hub name for vLLM; ``builtin:…`` = built by ``make setup``; None for the simulated engine."""
    default_output_tokens: Annotated[int, Field(ge=1)] = 4096
    """What a request without a limit of its own gets."""
    normalizer: Expansion = "nfkc"
    """Of its tokenizer; bounds how many tokens a byte can become. nfkc is the worst case."""


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
    policy: Literal["shapley", "tokens", "solo-capped"] = "shapley"
    seed: int = 0
    environment: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> WorkerConfig:
        if self.one_process and self.engine != "simulated":
            raise ValueError("one_process is for simulated engines: each vLLM engine needs a process of its own")
        return self


class KeyConfig(Section):
    """One API key; the configuration never holds the key itself."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the key's bytes: ``printf %s "$KEY" | sha256sum``."""
    file: Path | None = None
    """Holds the key in its first line; readable by its owner only."""
    max_tier: Tier | None = None
    """Narrower than its tenant's."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            if value.startswith("sha256:"):
                return {"sha256": value.removeprefix("sha256:")}
            raise ValueError("a key is never written here: give sha256:HASH or {file: PATH}")
        return value

    @model_validator(mode="after")
    def _check(self) -> KeyConfig:
        if (self.sha256 is None) == (self.file is None):
            raise ValueError("give exactly one of sha256 and file")
        return self


class TenantConfig(Section):
    """Who may ask, and how urgently."""

    name: Name
    project: str = "default"
    keys: tuple[KeyConfig, ...] = ()
    max_tier: Tier = "priority"
    """The highest service tier it gets; a higher one asked for is lowered to it."""


class Config(BaseSettings):
    """The whole file. ``load_config`` reads it."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    server: ServerConfig = ServerConfig()
    admin: AdminConfig = AdminConfig()
    ray: RayConfig = RayConfig()
    limits: LimitsConfig = LimitsConfig()
    models: dict[str, ModelConfig] = {}
    workers: Annotated[tuple[WorkerConfig, ...], Field(min_length=1)]
    tenants: Annotated[tuple[TenantConfig, ...], Field(min_length=1)]
    state_dir: Path = Field(default_factory=lambda: _default_state_dir())
    """Admin key and, later, the ledger."""
    generate_keys: bool = False
    """Tenants without a key get one that lives as long as the process; for demos, on loopback only."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file; nothing else is read."""
        return env_settings, init_settings

    @field_validator("workers")
    @classmethod
    def _worker_names(cls, workers: tuple[WorkerConfig, ...]) -> tuple[WorkerConfig, ...]:
        _refuse_twice("worker", [worker.name for worker in workers])
        return workers

    @field_validator("tenants")
    @classmethod
    def _tenant_names(cls, tenants: tuple[TenantConfig, ...]) -> tuple[TenantConfig, ...]:
        _refuse_twice("tenant", [tenant.name for tenant in tenants])
        hashes = [key.sha256 for tenant in tenants for key in tenant.keys if key.sha256 is not None]
        if len(set(hashes)) < len(hashes):
            raise ValueError("the same key is given twice: nobody could say whose request it is")
        return tenants

    @model_validator(mode="after")
    def _check(self) -> Config:
        for index, worker in enumerate(self.workers):
            model = self.models.get(worker.model)
            if model is None:
                known = ", ".join(sorted(self.models)) or "none"
                raise ValueError(f"workers[{index}].model: {worker.model!r} is not among models ({known})")
            if worker.engine == "vllm" and model.weights is None:
                raise ValueError(f"models.{worker.model}.weights: worker {worker.name!r} runs vllm and needs weights")
        keyless = [index for index, tenant in enumerate(self.tenants) if not tenant.keys]
        if keyless and not self.generate_keys:
            raise ValueError(f"tenants[{keyless[0]}].keys: empty; give a key, or generate_keys: true on loopback")
        if self.generate_keys and not self.server.is_loopback:
            raise ValueError(f"generate_keys: host {self.server.host} is beyond loopback, where keys must be given")
        if self.server.port and self.server.port == self.admin.port:
            raise ValueError(f"admin.port: {self.admin.port} is also server.port")
        return self


def _default_state_dir() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "jouleway"


def _refuse_twice(what: str, names: list[str]) -> None:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"{what} {name!r} is given twice (entries {names.index(name)} and {place})")


# -- loading


class _Loader(yaml.SafeLoader):
    """YAML without the trap that a key given twice silently keeps the last value."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    seen: dict[object, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict):
            raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
        if key in seen:
            problem = f"key {key!r} was given before, in line {seen[key]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        seen[key] = key_node.start_mark.line + 1
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: Path | str) -> Config:
    """Reads the file, puts the environment on top, checks all of it. Relative paths in it start at the file's folder.

    Raises: ConfigError, which names the file and every wrong key with its path, never a value that could be a secret.
    """
    path = Path(path)
    raw = _read(path)
    if unknown := unknown_variables(os.environ):
        raise ConfigError(str(path), unknown)
    try:
        return _with_paths(Config(**raw), path.resolve().parent)
    except ValidationError as error:
        raise ConfigError(str(path), problems_of(error, Config, os.environ)) from None
    except SettingsError as error:
        # Its message names the variable and never the value.
        raise ConfigError(str(path), [f"environment: {str(error).splitlines()[0]}"]) from None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like an override and name no section: a typing error must not pass in silence."""
    sections = {name.upper() for name in Config.model_fields}
    wrong = [
        name
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX)
        and "__" in name
        and name.removeprefix(ENVIRONMENT_PREFIX).split("__")[0] not in sections
    ]
    return [f"environment: {name} names no section of the configuration" for name in wrong]


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(str(path), [f"has more than {MAX_CONFIG_BYTES} bytes: this is no configuration"])
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), ["there is no such file"]) from None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), ["cannot be read: it is not UTF-8"]) from None
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigError(str(path), [f"{where}{error.problem or 'bad YAML'}"]) from None
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(str(path), ["bad YAML: a forbidden character, or nested too deep"]) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(str(path), ["must be a mapping of sections (server, models, workers, tenants…)"])
    return raw


def _with_paths(config: Config, folder: Path) -> Config:
    """Every relative path from the file's own folder, ``~`` expanded."""

    def full(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    server, admin = config.server, config.admin
    tenants = tuple(
        tenant.model_copy(
            update={"keys": tuple(key.model_copy(update={"file": full(key.file)}) for key in tenant.keys)}
        )
        for tenant in config.tenants
    )
    workers = tuple(
        worker.model_copy(
            update={"meter": worker.meter.model_copy(update={"counter_path": full(worker.meter.counter_path)})}
        )
        for worker in config.workers
    )
    return config.model_copy(
        update={
            "server": server.model_copy(
                update={"tls_cert_file": full(server.tls_cert_file), "tls_key_file": full(server.tls_key_file)}
            ),
            "admin": admin.model_copy(update={"key_file": full(admin.key_file)}),
            "state_dir": full(config.state_dir),
            "tenants": tenants,
            "workers": workers,
        }
    )


# -- from the configuration to plain values


def weights_folder(weights: str) -> Path | None:
    """The folder that ``weights`` names, built or not; None where it is the name of a model on a hub."""
    if weights == BUILTIN_WEIGHTS:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(cache) / "jouleway" / "models" / BUILTIN_WEIGHTS.removeprefix("builtin:")
    path = Path(weights).expanduser()
    return path if path.is_absolute() or weights.startswith(".") or path.exists() else None


def worker_specs(config: Config) -> list[list[WorkerSpec]]:
    """Plain values for every worker; the inner lists share one actor."""
    groups: list[list[WorkerSpec]] = []
    for worker in config.workers:
        specs = [_spec(config, worker, number) for number in range(worker.count)]
        groups += [specs] if worker.one_process else [[spec] for spec in specs]
    return groups


def _spec(config: Config, worker: WorkerConfig, number: int) -> WorkerSpec:
    meter, engine_args = worker.meter, dict(worker.engine_args)
    weights = config.models[worker.model].weights
    if worker.engine == "vllm" and weights is not None:
        folder = weights_folder(weights)
        engine_args.setdefault("model", weights if folder is None else str(folder))
    return WorkerSpec(
        worker_id=f"{worker.name}-{number}",
        engine=worker.engine,
        model=worker.model,
        engine_args=engine_args,
        meter=MeterSpec(
            kind=meter.kind,
            watts_per_cpu_second=meter.watts_per_cpu_second,
            idle_watts=meter.idle_watts,
            counter_path=None if meter.counter_path is None else f"{meter.counter_path}-{number}",
        ),
        num_gpus=worker.gpus,
        zone=worker.zone,
        max_running=worker.max_running,
        window_s=worker.window_s,
        calibration_s=worker.calibration_s,
        stall_timeout_s=worker.stall_timeout_s,
        orphan_timeout_s=worker.orphan_timeout_s,
        policy=worker.policy,
        seed=worker.seed + number,
        num_cpus=worker.cpus,
        environment=worker.environment,
    )
