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
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from scheduler.config_energy import EnergyConfig
from scheduler.config_errors import ConfigError, problems_of
from scheduler.config_prices import PricesConfig, book_of
from scheduler.config_sections import (
    AdminConfig,
    LedgerConfig,
    LimitsConfig,
    ModelConfig,
    Name,
    RayConfig,
    SchedulingConfig,
    ServerConfig,
    WorkerConfig,
)
from scheduler.config_tenants import TenantConfig, ZoneConfig, problem_of
from workers.cache import model_folder
from workers.types import MeterSpec, WorkerSpec

__all__ = ["BUILTIN_WEIGHTS", "Config", "ConfigError", "load_config", "read_sections", "weights_folder", "worker_specs"]

ENVIRONMENT_PREFIX = "JOULEWAY_"
"""``JOULEWAY_SERVER__PORT=9000`` sets ``server.port``; two underscores go one level down."""

BUILTIN_WEIGHTS = "builtin:smollm2-135m-instruct"
BUILTIN_EMBEDDING_WEIGHTS = "builtin:all-minilm-l6-v2"
"""Weights that ``make setup`` builds from packages; no model hub is asked."""

MAX_CONFIG_BYTES = 4 << 20

MERGE_TAG = "tag:yaml.org,2002:merge"


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
    ledger: LedgerConfig = LedgerConfig()
    limits: LimitsConfig = LimitsConfig()
    models: dict[str, ModelConfig] = {}
    zones: dict[Name, ZoneConfig] = {}
    """A zone of a worker that is not named here holds general data."""
    energy: EnergyConfig = EnergyConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    """Of every price and every budget of money; ISO 4217."""
    prices: PricesConfig = PricesConfig()
    """Here, or the path of a file that holds this section."""
    workers: Annotated[tuple[WorkerConfig, ...], Field(min_length=1)]
    tenants: Annotated[tuple[TenantConfig, ...], Field(min_length=1)]
    directory: Literal["file", "api"] = "file"
    """Who owns tenants, projects, keys and budgets: this file, or the admin API, which starts from this file once."""
    catalogue: Path | None = None
    """Curves by GPU and model, where workers' own start; None: the one that we ship."""
    state_dir: Path = Field(default_factory=lambda: _default_state_dir())
    """Admin key, ledger and its signing key."""
    generate_keys: bool = False
    """Tenants without a key get one that lives as long as the process; for demos, on loopback only."""
    _source: str = PrivateAttr(default="the configuration")

    @property
    def source(self) -> str:
        """The file that it was read from."""
        return self._source

    @property
    def admin_key_path(self) -> Path:
        """Where the admin's key lies, written or not."""
        return self.admin.key_file or self.state_dir / "admin.key"

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
        if words := problem_of(self.zones, [worker.zone for worker in self.workers], self.tenants):
            raise ValueError(words)
        if words := self.energy.problem({*self.zones, *(worker.zone for worker in self.workers)}):
            raise ValueError(words)
        keyless = [index for index, tenant in enumerate(self.tenants) if not tenant.keys]
        if self.directory == "api" and self.generate_keys:
            raise ValueError("generate_keys: keys are made by the API where directory is api; leave it out")
        if keyless and not self.generate_keys and self.directory == "file":
            raise ValueError(f"tenants[{keyless[0]}].keys: empty; give a key, or generate_keys: true on loopback")
        if self.generate_keys and not self.server.is_loopback:
            raise ValueError(f"generate_keys: host {self.server.host} is beyond loopback, where keys must be given")
        try:
            book_of(self.prices, self.models, currency=self.currency)
        except ValueError as error:
            raise ValueError(f"prices: {error}") from None
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


class _BadKey(yaml.MarkedYAMLError):
    """Its words are ours: they name a key and no value."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    seen: dict[object, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == MERGE_TAG:
            continue  # ``<<: *defaults``: what it brings may be given anew
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict | set):
            raise _BadKey(problem="a key must be a word", problem_mark=key_node.start_mark)
        if key in seen:
            problem = f"key {key!r} was given before, in line {seen[key]}"
            raise _BadKey(problem=problem, problem_mark=key_node.start_mark)
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
    raw = read_sections(path)
    if unknown := unknown_variables(os.environ):
        raise ConfigError(str(path), unknown)
    if isinstance(raw.get("prices"), str):
        raw["prices"] = _read_prices(path.resolve().parent / Path(raw["prices"]).expanduser())
    try:
        config = _with_paths(Config(**raw), path.resolve().parent)
        config._source = str(path)
        return config
    except ValidationError as error:
        raise ConfigError(str(path), problems_of(error, Config, os.environ)) from None
    except RuntimeError:
        raise ConfigError(str(path), ["a path begins with ~ and no home folder is known for it"]) from None
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


def _read_prices(path: Path) -> dict[str, Any]:
    """A section of prices in a file of its own. Raises: ConfigError, which names that file."""
    raw = read_sections(path)
    try:
        PricesConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(str(path), problems_of(error, PricesConfig, {})) from None
    return raw


def read_sections(path: Path, *, sections: str = "server, models, workers, tenants…") -> dict[str, Any]:
    """A YAML file's mapping, unchecked. Raises: ConfigError, which names the file and never a value of it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(str(path), [f"has more than {MAX_CONFIG_BYTES} bytes: this is no configuration"])
        text = data.decode()
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
        words = error.problem if isinstance(error, _BadKey) else _without_values(error.problem or "")
        raise ConfigError(str(path), [f"bad YAML: {where}{words}"]) from None
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(str(path), ["bad YAML: a forbidden character, or nested too deep"]) from None
    except (ValueError, TypeError, AttributeError):
        # The loader makes numbers and dates of what looks like one, and its error would repeat the value.
        raise ConfigError(
            str(path), ["bad YAML: a number or a date that cannot be, or a key that is no word"]
        ) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(str(path), [f"must be a mapping of sections ({sections})"])
    return raw


def _without_values(problem: str) -> str:
    """What YAML says is wrong, where that quotes a word of the file in ours instead: the word can be a secret."""
    if problem == "second occurrence":
        return "an anchor (&name) is given twice"
    if "alias" in problem:
        return "a value that begins with * must stand in quotes"
    if "constructor" in problem or "tag" in problem:
        return "a value that begins with ! must stand in quotes"
    return problem


def _with_paths(config: Config, folder: Path) -> Config:
    """Every relative path from the file's own folder, ``~`` expanded."""

    def full(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    def weights(model: ModelConfig) -> ModelConfig:
        """Only what is plainly a path, or a folder that is there: ``name/model`` may be a hub's."""
        if model.weights is None:
            return model
        if not model.weights.startswith((".", "~")) and not (folder / model.weights).is_dir():
            return model
        return model.model_copy(update={"weights": str(full(Path(model.weights)))})

    server, admin, ledger, energy = config.server, config.admin, config.ledger, config.energy
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
            "ledger": ledger.model_copy(
                update={name: full(getattr(ledger, name)) for name in ("url_file", "key_file", "checkpoint_dir")}
            ),
            "catalogue": full(config.catalogue),
            "energy": energy.model_copy(
                update={
                    "series": tuple(folder / path.expanduser() for path in energy.series),
                    "folder": full(energy.folder),
                }
            ),
            "state_dir": full(config.state_dir),
            "models": {name: weights(model) for name, model in config.models.items()},
            "tenants": tenants,
            "workers": workers,
        }
    )


# -- from the configuration to plain values


def weights_folder(weights: str) -> Path | None:
    """The folder that ``weights`` names, built or not; None where it is the name of a model on a hub."""
    if weights in (BUILTIN_WEIGHTS, BUILTIN_EMBEDDING_WEIGHTS):
        return model_folder(weights.removeprefix("builtin:"))
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
        can_park=worker.can_park,
        policy=worker.policy,
        seed=worker.seed + number,
        num_cpus=worker.cpus,
        environment=worker.environment,
    )
