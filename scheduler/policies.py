"""The operator's configuration becomes rules of the core, prices and promises: units are converted here, once.

Called by ``scheduler.service`` at its start and at each reload. It must never decide anything about a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from scheduler.accounting.budget_terms import NANO_PLACES, BudgetTerm
from scheduler.accounting.changes import WEIGHT_PARTS
from scheduler.accounting.directory import Directory
from scheduler.accounting.energy_prices import GRAMS_PER_KWH_OF_A_UG_PER_MJ
from scheduler.accounting.prices import PriceBook
from scheduler.api.access import key_id_of
from scheduler.config import Config, ConfigError
from scheduler.config_prices import book_of
from scheduler.config_sections import ModelConfig, WorkConfig
from scheduler.config_tenants import BudgetConfig
from scheduler.core.budget_accounts import Budget, Level
from scheduler.core.fairness import WorkWeights
from scheduler.core.parking import ParkingRules
from scheduler.core.price_plan import DeferralRules
from scheduler.core.request import DataClass, Slo
from scheduler.core.rules import Rules
from scheduler.credentials import key_digest

CACHED_RATIO = 0.1
"""A cached token is read, not computed."""
NANO = 10**NANO_PLACES
CURRENCY = re.compile(r"[A-Z]{3}")
"""Of all units of a ledger's legs only those of money look so."""
NEW_LEDGER = "a new ledger (another ledger.url or state_dir)"


def rules_of(config: Config) -> Rules:
    """Everything that the core is told of operators' wishes. Raises: ConfigError where a key's file cannot be used."""
    scheduling, deferral = config.scheduling, config.energy.deferral
    return Rules(
        budgets=budgets_of(config),
        task_budgets={tenant.name: _budgets(tenant.task_budgets) for tenant in config.tenants if tenant.task_budgets},
        weights={tenant.name: tenant.weight for tenant in config.tenants},
        work={name: _work(model.work) for name, model in config.models.items()},
        zones={name: DataClass[zone.data_class.upper()] for name, zone in config.zones.items()},
        model_zones={
            name: frozenset(worker.zone for worker in config.workers if worker.model == name) for name in config.models
        },
        carbon_ug_per_mj={
            name: zone.gco2e_per_kwh / GRAMS_PER_KWH_OF_A_UG_PER_MJ for name, zone in config.zones.items()
        },
        reserve_ratio=scheduling.reserve_ratio,
        ageing_s=scheduling.ageing_s,
        ageing_every=scheduling.ageing_every,
        parking=ParkingRules(warm={name: model.warm_engines for name, model in config.models.items()}),
        deferral=DeferralRules(
            margin_s=deferral.margin_s,
            margin_ratio=deferral.margin_ratio,
            capacity_ratio=deferral.capacity_ratio,
        ),
    )


def budgets_of(config: Config) -> dict[Level, tuple[Budget, ...]]:
    """By tenant, project and key; levels without a budget are left out. Raises: ConfigError."""
    budgets: dict[Level, tuple[BudgetConfig, ...]] = {}
    for index, tenant in enumerate(config.tenants):
        budgets[Level("tenant", tenant.name)] = tenant.budgets
        for name, project in tenant.projects.items():
            budgets[Level("project", f"{tenant.name}/{name}")] = project.budgets
        for number, key in enumerate(tenant.keys):
            if key.budgets:
                digest = key_digest(key, where=f"tenants[{index}].keys[{number}]")
                budgets[Level("key", key_id_of(digest))] = key.budgets
    return {level: _budgets(configured) for level, configured in budgets.items() if configured}


def with_directory(rules: Rules, directory: Directory) -> Rules:
    """The same with budgets and weights of the directory's tenants; a closed one keeps its own, and what it used."""
    budgets: dict[Level, tuple[BudgetTerm, ...]] = {}
    tenants = directory.tenants.values()
    for tenant in tenants:
        budgets[Level("tenant", tenant.name)] = tenant.budgets
        for name, of_project in tenant.projects.items():
            budgets[Level("project", f"{tenant.name}/{name}")] = of_project
    for key in directory.keys.values():
        if key.budgets and key.revoked_us is None:
            budgets[Level("key", key.key_id)] = key.budgets
    return replace(
        rules,
        budgets={level: tuple(term.budget for term in terms) for level, terms in budgets.items() if terms},
        task_budgets={
            tenant.name: tuple(term.budget for term in tenant.task_budgets) for tenant in tenants if tenant.task_budgets
        },
        weights={tenant.name: tenant.terms.weight_micro / WEIGHT_PARTS for tenant in tenants},
    )


def zone_names(config: Config) -> frozenset[str]:
    """Every zone that is named or has a configured worker."""
    return frozenset(config.zones) | {worker.zone for worker in config.workers}


def prices_of(config: Config) -> PriceBook:
    """What requests are admitted with; that its versions can be a book was checked when it was loaded."""
    return book_of(config.prices, config.models, currency=config.currency)


def check_currency(config: Config, balances: Mapping[tuple[str, str], int]) -> None:
    """Money of two currencies would be added up in budgets and totals. ``balances``: the ledger's, by account and unit.

    Raises: ConfigError where money of another currency than the configured one was charged or is held.
    """
    others = sorted(
        unit
        for (account, unit), amount in balances.items()
        if amount and account.startswith(("used/", "held/")) and CURRENCY.fullmatch(unit) and unit != config.currency
    )
    if others:
        words = f"currency: the ledger has charged money in {others[0]}, and {config.currency} would be added to it"
        raise ConfigError(config.source, [f"{words}; remedy: currency: {others[0]}, or {NEW_LEDGER}"])


def check_same_currency(before: Config, config: Config) -> None:
    """At a reload. Raises: ConfigError."""
    if before.currency != config.currency:
        words = f"currency: {before.currency} cannot become {config.currency} while it serves"
        raise ConfigError(config.source, [f"{words}; remedy: {NEW_LEDGER}, and restart"])


def slo_of(model: ModelConfig) -> Slo:
    """What its requests are promised."""
    slo = model.slo
    return Slo(ttft_s=slo.ttft_s, ttft_ratio=slo.ttft_ratio, tpot_s=slo.tpot_s, value_nano_per_s=slo.value_per_s * NANO)


def _budgets(configured: Iterable[BudgetConfig]) -> tuple[Budget, ...]:
    return tuple(each.term.budget for each in configured)


def _work(work: WorkConfig) -> WorkWeights:
    cached_gpu_s = CACHED_RATIO * work.prefill_gpu_s if work.cached_gpu_s is None else work.cached_gpu_s
    return WorkWeights(prefill_gpu_s=work.prefill_gpu_s, cached_gpu_s=cached_gpu_s, decode_gpu_s=work.decode_gpu_s)
