"""What operators write in their units becomes rules, prices and promises in the core's."""

from pathlib import Path

import pytest

from scheduler.accounting import changes
from scheduler.api.access import digest_of, key_id_of
from scheduler.config import Config, load_config
from scheduler.config_errors import ConfigError
from scheduler.config_sections import ModelConfig
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.fairness import DEFAULT_WORK
from scheduler.core.request import DEFAULT_SLO, FREE, Band, DataClass, Rates, Slo
from scheduler.core.rules import Rules
from scheduler.policies import (
    budgets_of,
    check_currency,
    prices_of,
    rules_of,
    slo_of,
    with_directory,
    zone_names,
)
from tests.directory_words import TWO_TENANTS, directory_of, key_id, tokens

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

TEXT = """
models:
  m: {work: {prefill_gpu_s: 0.001, decode_gpu_s: 0.01}}
  n: {}
workers:
  - {name: v, engine: simulated, model: m, zone: north}
  - {name: w, engine: simulated, model: m, zone: south}
zones:
  north: {data_class: core, gco2e_per_kwh: 360}
  spare: {}
scheduling: {reserve_ratio: 0.25, ageing_s: 5, ageing_every: 3}
tenants:
  - name: acme
    weight: 2.5
    budgets:
      - {money: 0.000000001, per: total}
      - {joules: 1.5, per: 1h}
      - {concurrency: 2}
    projects: {search: {budgets: [{gpu_seconds: 2, per: calendar day}]}, quiet: {}}
    task_budgets: [{gco2e: "0.5", per: calendar month}]
    keys: [{file: acme.key, budgets: [{output_tokens: 1e3, per: 7d}]}]
  - {name: other, keys: [{file: missing.key}]}
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "c.yaml").write_text(TEXT)
    (tmp_path / "acme.key").write_text("jw-0123456789abcdef\n")
    (tmp_path / "acme.key").chmod(0o600)
    return load_config(tmp_path / "c.yaml")


def budget(measure: Measure, limit: int, window: str | None) -> Budget:
    return Budget(measure, limit, None if window is None else Window.parse(window))


def test_budgets_of_every_level_in_the_ledgers_units(config: Config) -> None:
    """Nano-units of money, millijoules, GPU-microseconds; a level without one is left out, its key is not read."""
    assert {
        Level("tenant", "acme"): (
            budget(Measure.MONEY_NANO, 1, "total"),
            budget(Measure.ENERGY_MJ, 1500, "1h"),
            budget(Measure.CONCURRENCY, 2, None),
        ),
        Level("project", "acme/search"): (budget(Measure.GPU_US, 2_000_000, "calendar day"),),
        Level("key", key_id_of(digest_of("jw-0123456789abcdef"))): (budget(Measure.OUTPUT_TOKENS, 1000, "7d"),),
    } == budgets_of(config)
    assert {"acme": (budget(Measure.CARBON_UG, 500_000, "calendar month"),)} == rules_of(config).task_budgets


def test_everything_else_that_the_core_is_told(config: Config) -> None:
    """Weights, work, zones, carbon and the shape of the queue."""
    rules = rules_of(config)
    assert {"acme": 2.5, "other": 1.0} == rules.weights
    assert ["m", "n"] == list(rules.work)
    assert pytest.approx((0.001, 0.0001, 0.01)) == tuple(rules.work["m"])
    assert {"north": DataClass.CORE, "spare": DataClass.GENERAL} == rules.zones
    assert {"m": {"north", "south"}, "n": frozenset()} == rules.model_zones
    assert {"north": 0.1, "spare": 0.0} == rules.carbon_ug_per_mj
    assert (0.25, 5, 3) == (rules.reserve_ratio, rules.ageing_s, rules.ageing_every)
    assert {"north", "south", "spare"} == zone_names(config)


def test_what_is_not_written_is_the_cores_default(tmp_path: Path) -> None:
    """Both places say the same."""
    (tmp_path / "c.yaml").write_text(
        "{models: {m: {}}, workers: [{name: w, engine: simulated, model: m}], tenants: [{name: a}], "
        "generate_keys: true}"
    )
    config = load_config(tmp_path / "c.yaml")
    rules, default = rules_of(config), Rules()
    assert ({}, {}) == (rules.budgets, rules.task_budgets)
    for name in ("zones", "carbon_ug_per_mj", "reserve_ratio", "ageing_s", "ageing_every"):
        assert getattr(default, name) == getattr(rules, name)
    assert {"a": 1.0} == rules.weights
    assert {"m": default.parking.default_warm} == rules.parking.warm
    assert pytest.approx(tuple(DEFAULT_WORK)) == tuple(rules.work["m"])
    assert (FREE, DEFAULT_SLO) == (prices_of(config).rates("m", Band.DEFAULT, 0.0), slo_of(ModelConfig()))


def test_a_model_may_scale_to_zero(tmp_path: Path) -> None:
    """One that says nothing keeps one engine."""
    (tmp_path / "c.yaml").write_text(
        "{models: {m: {warm_engines: 0}, n: {}}, workers: [{name: w, engine: simulated, model: m}], "
        "tenants: [{name: a}], generate_keys: true}"
    )
    assert {"m": 0, "n": 1} == rules_of(load_config(tmp_path / "c.yaml")).parking.warm


def test_what_lateness_costs_is_in_nano_units() -> None:
    """The other promises are seconds already."""
    slo = {"ttft_s": 2, "ttft_ratio": 4, "tpot_s": 0.1, "value_per_s": 0.5}
    assert Slo(2.0, 4.0, 0.1, 5e8) == slo_of(ModelConfig.model_validate({"slo": slo}))


def test_a_key_with_budgets_whose_file_is_missing_is_named(config: Config) -> None:
    """Nobody would know whose budgets they are."""
    tenant = config.tenants[1]
    key = tenant.keys[0].model_copy(update={"budgets": config.tenants[0].budgets})
    broken = config.model_copy(update={"tenants": (config.tenants[0], tenant.model_copy(update={"keys": (key,)}))})
    with pytest.raises(ConfigError, match=r"tenants\[1\].keys\[0\].file: .*missing.key cannot be read"):
        rules_of(broken)


def test_the_example_of_three_tenants_becomes_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in configs/, with keys for everybody."""
    monkeypatch.setattr("scheduler.policies.key_digest", lambda key, where: digest_of(str(key.file)))
    config = load_config(CONFIGS / "tenants.yaml")
    rules = rules_of(config)
    assert 3 == len(rules.weights)
    assert ["tenant", "project", "tenant", "key", "key"] == [level.kind for level in rules.budgets]
    assert {"hall-a": DataClass.CORE, "hall-b": DataClass.GENERAL} == rules.zones
    rates = prices_of(config).rates("chat", Band.FLEX, 0.0)
    assert Rates(200_000_000, 50_000_000, 800_000_000, "EUR", version=rates.version) == rates
    assert rates.version.startswith("models/")


def test_budgets_and_weights_of_the_directory(config: Config) -> None:
    """Of every level, in place of the file's; the rest of the rules stays."""
    one = (tokens(1),)
    directory = directory_of(
        [
            *TWO_TENANTS,
            changes.BudgetsSet(level="tenant", name="acme", budgets=one),
            changes.BudgetsSet(level="task", name="other", budgets=one),
            changes.BudgetsSet(level="key", name=key_id("secret-a"), budgets=one),
            changes.BudgetsSet(level="key", name=key_id("secret-b"), budgets=one),
            changes.KeyRevoked(key_id=key_id("secret-b")),
            changes.TenantChanged(name="other", terms=changes.TenantTerms(weight_micro=2_500_000)),
            changes.TenantClosed(name="acme"),
        ]
    )
    before = rules_of(config)
    rules = with_directory(before, directory)
    hourly = budget(Measure.TOKENS, 1, "1h")
    assert {
        Level("tenant", "acme"): (hourly,),
        Level("project", "acme/search"): (budget(Measure.TOKENS, 10, "1h"),),
        Level("key", key_id("secret-a")): (hourly,),
    } == rules.budgets
    assert ({"other": (hourly,)}, {"acme": 1.0, "other": 2.5}) == (rules.task_budgets, rules.weights)
    assert (before.work, before.zones, before.ageing_s) == (rules.work, rules.zones, rules.ageing_s)


@pytest.mark.parametrize("account", ["used/acme", "held/acme"])
def test_money_of_another_currency_in_the_ledger_is_refused(config: Config, account: str) -> None:
    """With both currencies named; what is no money, or came to nothing, is not in the way."""
    fine = {
        (account, "USD"): 5,
        (account, "input_tokens"): 7,
        (account, "EUR"): 0,
        ("drawn/acme", "EUR"): -5,
        ("meter/w-0", "mJ"): -9,
    }
    check_currency(config, fine)
    with pytest.raises(ConfigError, match=r"currency: the ledger has charged money in EUR, and USD .*remedy: currency"):
        check_currency(config, {**fine, (account, "EUR"): 1})
