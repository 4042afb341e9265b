"""The sections about who may ask and what they get: zones, prices, budgets, projects, keys, tenants.

Called by ``scheduler.config``, which reads the file, and by ``scheduler.policies``, which makes rules of it. It must
never read a file or an environment variable.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from scheduler.accounting.budget_terms import COUNTED, BudgetTerm, Counted, ledger_amount, refuse_alike
from scheduler.config_sections import DataClassName, Name, Section, Tier, rank
from scheduler.core.budget_windows import Window

DEFAULT_PROJECT = "default"


class BudgetConfig(Section):
    """At most so much of one thing per window: ``{tokens: 1000000, per: 1h}``.

    A limit of 0 is allowed and refuses whatever would use any of it.
    """

    tokens: Decimal | None = None
    """Prompt and output."""
    input_tokens: Decimal | None = None
    cached_tokens: Decimal | None = None
    output_tokens: Decimal | None = None
    money: Decimal | None = None
    """Currency units."""
    joules: Decimal | None = None
    gpu_seconds: Decimal | None = None
    gco2e: Decimal | None = None
    requests: Decimal | None = None
    concurrency: Decimal | None = None
    """Requests at a time; has no window."""
    per: str | None = None
    """``1h``, ``30d`` (rolling), ``calendar day``, ``calendar month`` (UTC), ``total``."""

    @field_validator(*COUNTED)
    @classmethod
    def _fits_the_ledger(cls, value: Decimal | None, info: ValidationInfo) -> Decimal | None:
        if value is not None:
            ledger_amount(value, COUNTED[str(info.field_name)].places)
        return value

    @field_validator("per")
    @classmethod
    def _is_a_window(cls, text: str | None) -> str | None:
        if text is not None:
            Window.parse(text)
        return text

    @model_validator(mode="after")
    def _check(self) -> BudgetConfig:
        self.term.check()
        return self

    @property
    def term(self) -> BudgetTerm:
        """As the ledger has it."""
        return BudgetTerm.of({name: getattr(self, name) for name in COUNTED}, self.per)

    @property
    def counted(self) -> Counted:
        """What it counts."""
        return next(counted for name, counted in COUNTED.items() if getattr(self, name) is not None)

    @property
    def limit(self) -> int:
        """In the ledger's unit."""
        return self.term.limit

    @property
    def window(self) -> Window | None:
        """None for concurrency."""
        return self.term.window


def _refuse_alike(budgets: tuple[BudgetConfig, ...]) -> tuple[BudgetConfig, ...]:
    refuse_alike(budget.term for budget in budgets)
    return budgets


class ProjectConfig(Section):
    """A part of a tenant with budgets of its own."""

    budgets: tuple[BudgetConfig, ...] = ()

    _alike = field_validator("budgets")(_refuse_alike)


class ZoneConfig(Section):
    """A place where workers stand."""

    data_class: DataClassName = "general"
    """The highest class of data that it may hold."""
    gco2e_per_kwh: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    """Of its electricity."""


class KeyConfig(Section):
    """One API key; the configuration never holds the key itself."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the key's bytes: ``printf %s "$KEY" | sha256sum``."""
    file: Path | None = None
    """Holds the key in its first line; readable by its owner only."""
    max_tier: Tier | None = None
    """Narrower than its tenant's."""
    project: Name | None = None
    """One of its tenant's; None = the tenant's own ``project``."""
    data_class: DataClassName | None = None
    """Of what is asked with it; not below its tenant's."""
    zones: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Where that may run; among its tenant's."""
    budgets: tuple[BudgetConfig, ...] = ()

    _alike = field_validator("budgets")(_refuse_alike)

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
    """Who may ask, how urgently, how much of it, and where it may run."""

    name: Name
    project: Name = DEFAULT_PROJECT
    """Of keys that name none."""
    projects: dict[Name, ProjectConfig] = {}
    """Those that keys name, and those with budgets."""
    keys: tuple[KeyConfig, ...] = ()
    max_tier: Tier = "priority"
    """The highest service tier it gets; a higher one asked for is lowered to it."""
    weight: float = 1.0
    """Its share beside the other tenants of its priority band while all of them have work waiting."""
    data_class: DataClassName = "general"
    """Of everything that it asks; keys and requests may only be stricter."""
    zones: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Where that may run; None = wherever its data class may."""
    budgets: tuple[BudgetConfig, ...] = ()
    """Of all its projects and keys together."""
    task_budgets: tuple[BudgetConfig, ...] = ()
    """Of each of its tasks (header ``x-jouleway-task``)."""

    _alike = field_validator("budgets", "task_budgets")(_refuse_alike)

    @field_validator("weight")
    @classmethod
    def _is_a_weight(cls, weight: float) -> float:
        if not 0.001 <= weight <= 1000:
            raise ValueError("must be from 0.001 to 1000; who shall get nothing gets no key, or a budget of 0")
        return weight


def zone_classes(zones: dict[str, ZoneConfig], worker_zones: Iterable[str]) -> dict[str, DataClassName]:
    """The highest class of data of every zone that is named or has a worker."""
    known = {name: zone.data_class for name, zone in zones.items()}
    for name in worker_zones:
        known.setdefault(name, "general")
    return known


def problem_of(zones: dict[str, ZoneConfig], worker_zones: list[str], tenants: tuple[TenantConfig, ...]) -> str | None:
    """What does not belong together in what tenants are given, with its place; None where all does."""
    known = zone_classes(zones, worker_zones)
    for index, tenant in enumerate(tenants):
        if tenant.projects and tenant.project not in (*tenant.projects, DEFAULT_PROJECT):
            return (
                f"tenants[{index}].project: {tenant.project!r} is not among its projects ({_listed(tenant.projects)})"
            )
        if words := misplaced(tenant.data_class, tenant.zones, known):
            return f"tenants[{index}].{words}"
        for number, key in enumerate(tenant.keys):
            if words := _beyond_tenant(key, tenant) or misplaced(
                key.data_class or tenant.data_class, key.zones or tenant.zones, known
            ):
                return f"tenants[{index}].keys[{number}].{words}"
    return None


def _beyond_tenant(key: KeyConfig, tenant: TenantConfig) -> str | None:
    """How a key would get more than its tenant."""
    if key.project not in (None, tenant.project, *tenant.projects):
        return f"project: {key.project!r} is not among its tenant's projects ({_listed(tenant.projects)})"
    if key.data_class is not None and rank(key.data_class) < rank(tenant.data_class):
        return f"data_class: {key.data_class} is below its tenant's {tenant.data_class}; a key may only be stricter"
    if key.zones is not None and tenant.zones is not None and not set(key.zones) <= set(tenant.zones):
        return f"zones: a key may only use its tenant's zones ({', '.join(tenant.zones)})"
    return None


def misplaced(data_class: str, wanted: tuple[str, ...] | None, known: dict[str, DataClassName]) -> str | None:
    """How what is asked could run nowhere at all, with the key that says so; None where it could run."""
    for name in wanted or ():
        if name not in known:
            return f"zones: there is no zone {name!r} ({_listed(known)}); name it in zones, or give it a worker"
    may = [name for name in wanted or known if rank(known[name]) >= rank(data_class)]
    if may:
        return None
    where = "zones" if wanted else "data_class"
    return f"{where}: none of {_listed(wanted or known)} may hold {data_class} data; remedy: zones.NAME.data_class"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
