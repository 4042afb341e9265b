"""What tenants are given: budgets that add up to something, keys that only narrow, zones that exist."""

import pytest
from pydantic import BaseModel, ValidationError

from scheduler.accounting.budget_terms import COUNTED
from scheduler.config_sections import DataClassName
from scheduler.config_tenants import (
    BudgetConfig,
    KeyConfig,
    ProjectConfig,
    TenantConfig,
    ZoneConfig,
    problem_of,
)
from scheduler.core.budget_accounts import Measure
from scheduler.core.budget_windows import Kind, Window


def words_of(section: type[BaseModel], values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        section.model_validate(values)
    return str(caught.value)


def test_a_key_is_a_hash_or_a_file() -> None:
    """Never the key itself, never both, never neither."""
    digest = "0123456789abcdef" * 4
    for written in (f"sha256:{digest}", {"sha256": digest}):
        assert digest == KeyConfig.model_validate(written).sha256
    words = words_of(KeyConfig, "sk-hunter2")
    assert "a key is never written here" in words
    assert "hunter2" not in words
    for values in ({}, {"sha256": digest, "file": "x"}, {"max_tier": "flex"}):
        assert "exactly one of sha256 and file" in words_of(KeyConfig, values)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (TenantConfig, {"name": "(operator)"}),
        (TenantConfig, {"name": "a" * 64}),
        (TenantConfig, {"name": "a", "max_tier": "gold"}),
        (TenantConfig, {"name": "a", "data_class": "secret"}),
        (TenantConfig, {"name": "a", "zones": []}),
        (TenantConfig, {"name": "a", "zones": ["Hall A"]}),
        (TenantConfig, {"name": "a", "project": "a/b"}),
        (TenantConfig, {"name": "a", "projects": {"a/b": {}}}),
        (ProjectConfig, {"parent": "b"}),
        (KeyConfig, {"sha256": "A" * 64}),
        (KeyConfig, {"sha256": "a" * 63}),
        (KeyConfig, {"sha256": "a" * 64, "data_class": "public"}),
        (ZoneConfig, {"data_class": "top"}),
        (ZoneConfig, {"gco2e_per_kwh": -1}),
    ],
)
def test_values_out_of_bounds_are_refused(section: type[BaseModel], values: dict[str, object]) -> None:
    """A bad value is never replaced by a default."""
    words_of(section, values)


@pytest.mark.parametrize("weight", [0, -1, 1e-9, 1001])
def test_a_weight_that_is_no_share_is_refused_with_the_remedy(weight: float) -> None:
    """Nobody can be given nothing of what there is; a budget or no key can."""
    words = words_of(TenantConfig, {"name": "a", "weight": weight})
    assert "must be from 0.001 to 1000; who shall get nothing gets no key, or a budget of 0" in words


# -- budgets


@pytest.mark.parametrize("name", COUNTED)
def test_a_budget_of_each_measure(name: str) -> None:
    """One unit of what people count is so many of the ledger's; only concurrency has no window."""
    counted = COUNTED[name]
    window = {} if counted.measure is Measure.CONCURRENCY else {"per": "calendar day"}
    budget = BudgetConfig.model_validate({name: 1, **window})
    assert (counted, 10**counted.places) == (budget.counted, budget.limit)
    assert (None if not window else Window(Kind.CALENDAR, 86_400)) == budget.window


def test_every_measure_of_the_core_can_be_written() -> None:
    """None is forgotten, none is written in two ways."""
    assert sorted(Measure) == sorted(counted.measure for counted in COUNTED.values())


def test_a_budget_of_nothing_is_allowed() -> None:
    """It closes what it is above."""
    assert 0 == BudgetConfig.model_validate({"money": 0, "per": "total"}).limit


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "one budget counts one thing, this one nothing; give exactly one of tokens, input_tokens"),
        ({"per": "1h"}, "this one nothing"),
        ({"tokens": 1, "money": 1, "per": "1h"}, "this one tokens, money; give exactly one of"),
        ({"tokens": 1}, "tokens needs a window, for example per: calendar day"),
        ({"concurrency": 1, "per": "1h"}, "concurrency is what runs at a time: it has no window, leave per out"),
        ({"tokens": -1, "per": "1h"}, "must be 0 or more"),
        ({"tokens": "many", "per": "1h"}, "valid decimal"),
        ({"tokens": 0.5, "per": "1h"}, "must be a whole number"),
        ({"money": 1e-10, "per": "1h"}, "at most 9 decimal places"),
        ({"tokens": 10**30, "per": "1h"}, "must be at most 9223372036854775807"),
        ({"money": float("inf"), "per": "1h"}, "finite number"),
        ({"money": float("nan"), "per": "1h"}, "finite number"),
        ({"tokens": 1, "per": "fortnight"}, "no window that is known here: write 1h"),
        ({"tokens": 1, "per": "month"}, "calendar month, or 30d"),
        ({"tokens": 1, "per": "900d"}, "at most 366d long"),
        ({"tokens": 1, "per": 60}, "valid string"),
    ],
)
def test_a_budget_that_says_nothing_sure_is_refused(values: dict[str, object], words: str) -> None:
    """With what may stand there."""
    assert words in words_of(BudgetConfig, values)


@pytest.mark.parametrize("place", ["budgets", "task_budgets"])
def test_two_budgets_alike_are_refused(place: str) -> None:
    """However their windows are written; another window or measure is another budget."""
    one, same = {"tokens": 1, "per": "60m"}, {"tokens": 2, "per": "hour"}
    assert "entries 0 and 1 count the same per the same window" in words_of(
        TenantConfig, {"name": "a", place: [one, same]}
    )
    others = [one, {"tokens": 2, "per": "2h"}, {"money": 2, "per": "1h"}]
    assert 3 == len(getattr(TenantConfig.model_validate({"name": "a", place: others}), place))


@pytest.mark.parametrize("section", [KeyConfig, ProjectConfig])
def test_two_budgets_alike_are_refused_of_keys_and_projects_as_well(section: type[BaseModel]) -> None:
    """The same rule on each level."""
    alike = [{"concurrency": 1}, {"concurrency": 2}]
    extra = {"sha256": "a" * 64} if section is KeyConfig else {}
    assert "keep one of them" in words_of(section, {"budgets": alike, **extra})


# -- what belongs together

ZONES: dict[str, DataClassName] = {"a": "core", "b": "general"}


def problem(tenant: dict[str, object], **key: object) -> str | None:
    """Of a second tenant, with one key."""
    keys = [{"sha256": "a" * 64, **key}]
    return problem_of(
        {name: ZoneConfig(data_class=data_class) for name, data_class in ZONES.items()},
        ["b", "unnamed"],
        (TenantConfig(name="first"), TenantConfig.model_validate({"name": "t", "keys": keys, **tenant})),
    )


@pytest.mark.parametrize(
    ("tenant", "key"),
    [
        ({}, {}),
        ({"data_class": "core"}, {}),
        ({"zones": ["a", "b"]}, {"zones": ["a"], "data_class": "core"}),
        ({"zones": ["unnamed"]}, {}),
        ({"projects": {"p": {}}}, {"project": "p"}),
        ({"projects": {"p": {}}}, {}),
        ({"project": "p"}, {"project": "p"}),
    ],
)
def test_what_only_narrows_is_right(tenant: dict[str, object], key: dict[str, object]) -> None:
    """A zone of a worker that is not described holds general data."""
    assert problem(tenant, **key) is None


@pytest.mark.parametrize(
    ("tenant", "key", "words"),
    [
        ({"zones": ["c"]}, {}, "tenants[1].zones: there is no zone 'c' (a, b, unnamed); name it in zones, or"),
        ({}, {"zones": ["c"]}, "tenants[1].keys[0].zones: there is no zone 'c'"),
        ({"zones": ["b", "unnamed"], "data_class": "core"}, {},
         "tenants[1].zones: none of b, unnamed may hold core data; remedy: zones.NAME.data_class"),
        ({"zones": ["b"]}, {"data_class": "important"},
         "tenants[1].keys[0].zones: none of b may hold important data"),
        ({"zones": ["a"]}, {"zones": ["b"]}, "tenants[1].keys[0].zones: a key may only use its tenant's zones (a)"),
        ({"data_class": "core"}, {"data_class": "general"},
         "tenants[1].keys[0].data_class: general is below its tenant's core; a key may only be stricter"),
        ({"projects": {"p": {}}}, {"project": "q"},
         "tenants[1].keys[0].project: 'q' is not among its tenant's projects (p)"),
        ({}, {"project": "q"}, "tenants[1].keys[0].project: 'q' is not among its tenant's projects (none)"),
        ({"project": "q", "projects": {"p": {}}}, {},
         "tenants[1].project: 'q' is not among its projects (p)"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_named_by_its_place(
    tenant: dict[str, object], key: dict[str, object], words: str
) -> None:
    """A parent that is missing, a zone that nobody has, a key that would get more than its tenant."""
    told = problem(tenant, **key)
    assert told is not None
    assert told.startswith(words)


def test_a_class_that_no_zone_may_hold_is_said() -> None:
    """Every request of it would be refused."""
    told = problem_of({}, ["local"], (TenantConfig(name="t", data_class="important"),))
    assert told == ("tenants[0].data_class: none of local may hold important data; remedy: zones.NAME.data_class")
