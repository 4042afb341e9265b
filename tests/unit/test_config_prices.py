"""What an operator writes of prices becomes a book; what is wrong is named by its place."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from scheduler.accounting.prices import PriceBook
from scheduler.config import Config, ConfigError, load_config
from scheduler.config_prices import PricesConfig, book_of, rates_of, unix_s_of
from scheduler.config_sections import CostPlusConfig, ModelConfig, PriceConfig
from scheduler.core.request import FREE, Band, CostPlus, Rates

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASE = """
models: {m: {}, n: {}}
workers: [{name: w, engine: simulated, model: m}]
tenants: [{name: a}]
generate_keys: true
"""
ONE = {"models": {"m": {"price": {"input": "0.2"}}}}
NOV_S, DEC_S, JAN_S = 1_793_491_200, 1_796_083_200, 1_798_761_600


def book(section: dict[str, object], **models: dict[str, object]) -> PriceBook:
    configured = {name: ModelConfig.model_validate(values) for name, values in models.items()}
    return book_of(PricesConfig.model_validate(section), configured, currency="EUR")


def words_of(section: dict[str, object]) -> str:
    with pytest.raises(ValidationError) as caught:
        PricesConfig.model_validate(section)
    return str(caught.value)


def one_version(**fields: object) -> dict[str, object]:
    return {"versions": [{"name": "v", **fields}]}


def load(folder: Path, text: str, prices: str | None = None) -> Config:
    (folder / "c.yaml").write_text(BASE + text)
    if prices is not None:
        (folder / "prices.yaml").write_text(prices)
    return load_config(folder / "c.yaml")


# -- one price


def test_prices_are_nano_units_per_million_tokens() -> None:
    """A cached token costs what any other input does where nothing is said; other classes stay as their side."""
    rates = rates_of(PriceConfig.model_validate({"input": "0.15", "output": 0.6}), currency="USD")
    assert Rates(150_000_000, 150_000_000, 600_000_000) == rates
    assert 0 == rates_of(PriceConfig.model_validate({"input": 1, "cached_input": 0}), currency="USD").cached_nano
    every = {"input": 1, "cached_input": 2, "output": 3, "reasoning": 4, "image_input": 5, "audio_input": 6}
    rates = rates_of(PriceConfig.model_validate(every), currency="USD")
    assert [10**9 * number for number in range(1, 7)] == [
        rates.input_nano, rates.cached_nano, rates.output_nano,
        rates.reasoning_nano, rates.image_nano, rates.audio_nano,
    ]  # fmt: skip


def test_cost_plus_is_in_nano_units_and_millionths() -> None:
    """Of a kWh, of a GPU-second; PUE and margin are exact to six places."""
    plus = {"per_kwh": "0.28", "pue": "1.25", "per_gpu_second": "0.00055", "margin": 0.15}
    rates = rates_of(PriceConfig.model_validate({"cost_plus": plus}), currency="EUR")
    assert CostPlus(280_000_000, 1_250_000, 550_000, 150_000) == rates.plus
    nothing = rates_of(PriceConfig.model_validate({"cost_plus": {}}), currency="EUR")
    assert (CostPlus(), 0) == (nothing.plus, nothing.cost_plus_nano(energy_mj=10**9, gpu_us=10**9))


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ({"input": -0.1}, "input\n  Value error, must be 0 or more"),
        ({"reasoning": "-1"}, "reasoning\n  Value error, must be 0 or more"),
        ({"audio_input": "1e-10"}, "at most 9 decimal places"),
        ({"output": 1_000_001}, "must be at most 1000000"),
        ({"image_input": "much"}, "valid decimal"),
        ({"input": True}, "input is a number, not true or false"),
        ({"video": 1}, "Extra inputs are not permitted"),
        ({"cost_plus": {"per_kwh": -1}}, "cost_plus.per_kwh\n  Value error, must be 0 or more"),
        ({"cost_plus": {"pue": "0.99"}}, "must be 1 or more"),
        ({"cost_plus": {"pue": 11}}, "must be at most 10"),
        ({"cost_plus": {"pue": "1.0000001"}}, "at most 6 decimal places"),
        ({"cost_plus": {"margin": "-0.1"}}, "must be 0 or more"),
        ({"cost_plus": {"margin": 101}}, "must be at most 100"),
        ({"cost_plus": {"per_gpu_second": float("nan")}}, "finite number"),
    ],
)
def test_an_amount_that_cannot_be_is_named(price: dict[str, object], words: str) -> None:
    """With its place and what may stand there."""
    told = words_of(one_version(models={"m": {"price": price}}))
    assert words in told
    assert "versions.0.models.m.0.price" in told


def test_nothing_costs_more_than_the_ledger_can_count() -> None:
    """The dearest price of ten million tokens of each class fits its integers."""
    dearest = PriceConfig(input=Decimal(10**6), output=Decimal(10**6))
    assert 2**63 > rates_of(dearest, currency="USD").most_nano(input_tokens=4_000_000, output_tokens=4_000_000)
    assert CostPlusConfig(pue=Decimal(10), margin=Decimal(100)).per_kwh == 0


# -- moments


@pytest.mark.parametrize(
    "value",
    [
        date(2026, 11, 1), "2026-11-01", "2026-11-01T00:00:00", "2026-11-01T00:00:00Z", "2026-11-01T01:00:00+01:00",
        datetime(2026, 11, 1), datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 10, 31, 18, 30, tzinfo=timezone(-timedelta(hours=5, minutes=30))),
    ],
)  # fmt: skip
def test_a_moment_without_a_zone_is_utc(value: object) -> None:
    """As YAML gives it, or as text."""
    assert NOV_S == unix_s_of(value)


@pytest.mark.parametrize("value", [2026, 1.5, True, None, "", "tomorrow", "2026-13-01", "2016-12-31T23:59:60Z", [1],
                                   "2026-11-01T00:00:00.5Z", datetime(2026, 11, 1, 0, 0, 0, 1)])  # fmt: skip
def test_what_is_no_moment_is_refused(value: object) -> None:
    """A number could be seconds or a year; unix time has no leap second."""
    with pytest.raises(ValueError, match="there are no leap seconds"):
        unix_s_of(value)


def test_the_first_of_march_after_a_leap_day() -> None:
    """2028 has a 29th of February, 2027 has none."""
    assert 2 * 86_400 == unix_s_of("2028-03-01") - unix_s_of("2028-02-28")
    with pytest.raises(ValueError, match="as 2026-11-01"):
        unix_s_of("2027-02-29")


# -- versions


def test_a_version_without_a_name_has_that_of_its_first_day() -> None:
    """In UTC; YAML's dates are names as well."""
    named = {"name": date(2026, 12, 1), "effective_from": "2026-12-05", **ONE}
    section: dict[str, object] = {"versions": [{"effective_from": date(2026, 11, 1), **ONE}, named]}
    made = book(section)
    assert ["2026-11-01", "2026-12-01"] == [
        made.rates("m", Band.FLEX, at).version.partition("/")[0] for at in (NOV_S, unix_s_of("2026-12-05"))
    ]
    assert "has neither a name nor effective_from" in words_of({"versions": [dict(ONE)]})


def test_one_price_may_stand_alone() -> None:
    """A mapping is a list of one; ``all`` is every tier, as is nothing."""
    price = {"price": {"input": "0.000000007"}}
    for entries in (price, [price], {"tiers": "all", **price}, [{"tiers": ["flex", "default", "priority"], **price}]):
        made = book(one_version(models={"m": entries}))
        assert [7, 7, 7] == [made.rates("m", tier, 0.0).input_nano for tier in Band]
    apart = [{"tiers": "flex", **price}, {"tiers": ["default", "priority"], "price": {}}]
    made = book(one_version(models={"m": apart}))
    assert [0, 0, 7] == [made.rates("m", tier, 0.0).input_nano for tier in Band]


def test_tariffs_are_parts_of_the_week() -> None:
    """Spans that touch are one; every day where none is named, the whole day where no hours are."""
    tariffs = {
        "day": {"time_zone": "Asia/Kolkata", "spans": [{"hours": "06:00-12:00"}, {"hours": "12:00-22:00"}]},
        "night": {"time_zone": "Asia/Kolkata", "spans": [{"days": "mon-sun", "hours": "22:00-06:00"}]},
    }
    models = {"m": [{"tariff": "day", "price": {"input": 1}}, {"tariff": "night", "price": {"input": 2}}]}
    made = book(one_version(tariffs=tariffs, models=models))
    assert [1, 2] == [made.rates("m", 0, NOV_S + hour * 3600).input_nano // 10**9 for hour in (12, 17)]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ({"tariffs": {"t": {"spans": []}}}, "at least 1 item"),
        ({"tariffs": {"t": {"spans": [{"hours": "8-9"}]}}}, 'hours are written "22:00-06:00"'),
        ({"tariffs": {"t": {"spans": [{"days": ["mo"]}]}}}, "no day that is known here"),
        ({"tariffs": {"t": {"time_zone": "Berlin", "spans": [{}]}}}, "no time zone 'Berlin' is known here"),
        ({"tariffs": {"always": {"spans": [{}]}}}, "tariffs.always: is there already"),
        (
            {"models": {"m": {"tariff": "nite", "price": {}}}},
            "models.m[0].tariff: 'nite' is not among tariffs (always)",
        ),
        ({"models": {"m": {"tiers": [], "price": {}}}}, "at least 1 item"),
        ({"models": {"m": {"tiers": ["gold"], "price": {}}}}, "'flex', 'default' or 'priority'"),
        ({"models": {"m": []}}, "at least 1 item"),
        ({"models": {"m": {}}}, "price\n  Field required"),
        ({"approved_by": [""]}, "should match pattern"),
        ({"name": "V 1"}, "should match pattern"),
        ({"effective_from": 2026}, "is a date or a time"),
    ],
)
def test_a_version_that_says_nothing_sure_is_refused(version: dict[str, object], words: str) -> None:
    """With what may stand there."""
    assert words in words_of(one_version(**version))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"versions": [{"name": "v", **ONE}, {"name": "w", **ONE}]}, "versions v and w begin at the same time"),
        (one_version(currency="USD", **ONE), "version v: is in USD, and budgets are in EUR"),
        (one_version(models={"m": [{"price": {}}, {"price": {}}]}), "m[0] and m[1] both hold for tier"),
        (one_version(models={"m": {"tiers": "flex", "price": {}}}), "no entry of m holds for tier priority, default"),
        (one_version(approved_by=["ada", "ada"], **ONE), "somebody approved it twice"),
    ],
)
def test_what_is_no_book_is_named(section: dict[str, object], words: str) -> None:
    """By version and entry."""
    with pytest.raises(ValueError, match="version") as caught:
        book(section)
    assert words in str(caught.value)


# -- the simple way, and none at all


def test_prices_at_the_models_are_a_book_of_one_version() -> None:
    """It holds ever since, and changes its digest with every price."""
    made, other = (book({}, m={"price": {"input": number}}) for number in (1, 2))
    first, second = (each.rates("m", Band.DEFAULT, 0.0) for each in (made, other))
    assert (10**9, "EUR") == (first.input_nano, first.currency)
    assert "models" == first.version.partition("/")[0]
    assert first.version != second.version


def test_without_any_price_everything_is_free() -> None:
    """A demo needs no prices; as soon as one model has one, the others are refused, unless it is said otherwise."""
    assert FREE._replace(currency="EUR") == book({}, m={}).rates("m", Band.FLEX, 0.0)
    assert ["price version models has none for n: requests are refused (no_price)"] == (
        book({}, m={"price": {}}, n={}).warnings(["m", "n"], 0.0)
    )
    assert 0 == book({"missing": "free"}, m={"price": {}}, n={}).rates("n", Band.FLEX, 0.0).input_nano
    assert not book({"missing": "refuse"}, m={}).is_free_where_missing


def test_one_way_of_the_two() -> None:
    """Nobody could say which price holds, or who approved it."""
    for section in (one_version(**ONE), {"approvals": 1}):
        with pytest.raises(ValueError, match=r"models\.m\.price: "):
            book(section, m={"price": {}})


# -- the file


def test_a_file_of_its_own_says_the_same(tmp_path: Path) -> None:
    """Relative to the configuration's folder; the environment stays on top."""
    text = "missing: free\nversions: [{effective_from: 2026-11-01, models: {m: {price: {input: 3}}}}]\n"
    apart = load(tmp_path, "prices: prices.yaml\n", text)
    inside = load(tmp_path, "prices:\n  " + text.replace("\n", "\n  ").rstrip() + "\n")
    assert apart.prices == inside.prices
    assert NOV_S == apart.prices.versions[0].effective_from


def test_the_environment_wins_over_the_file_of_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over everything else."""
    monkeypatch.setenv("JOULEWAY_PRICES__MISSING", "refuse")
    assert "refuse" == load(tmp_path, "prices: prices.yaml\n", "missing: free\n").prices.missing


@pytest.mark.parametrize(
    ("prices", "where", "words"),
    [
        (None, "prices.yaml", "there is no such file"),
        ("[]", "prices.yaml", "must be a mapping"),
        ("missing: maybe", "prices.yaml", "missing: input should be 'refuse' or 'free'"),
        ("versoins: []", "prices.yaml", "versoins: unknown key; did you mean versions?"),
        ("versions: [{name: v, models: {m: {price: {ouput: 1}}}}]", "prices.yaml",
         "versions[0].models.m[0].price.ouput: unknown key; did you mean output?"),
        ("versions: [{name: v, models: {m: {price: {input: -1}}}}]", "prices.yaml",
         "versions[0].models.m[0].price.input: must be 0 or more"),
        ("versions: [{name: v, effective_from: 2016-12-31T23:59:60Z}]", "prices.yaml", "a date that cannot be"),
        ("versions: [{name: v, models: {m: [{price: {}}, {price: {}}]}}]", "c.yaml",
         "prices: version v: m[0] and m[1] both hold for tier priority, default, flex on mon 00:00 to sun 24:00 UTC"),
        ("versions: [{name: v, currency: EUR}]", "c.yaml", "prices: version v: is in EUR, and budgets are in USD"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_file_and_place(tmp_path: Path, prices: str | None, where: str, words: str) -> None:
    """Loading fails, and with it every command."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "prices: prices.yaml\n", prices)
    assert str(tmp_path / where) == caught.value.where
    assert words in str(caught.value)


def test_the_book_that_we_ship() -> None:
    """Three versions: list prices, nights and batches, and one that waits for its second approval."""
    section = yaml.safe_load((CONFIGS / "prices.yaml").read_text(encoding="utf-8"))
    made = book(section)
    assert [200_000_000] * 3 == [made.rates("chat", tier, NOV_S).input_nano for tier in Band]
    noon, midnight = unix_s_of("2026-12-02T12:00:00+01:00"), unix_s_of("2026-12-02T00:00:00+01:00")
    assert [(800_000_000, 600_000_000), (400_000_000, 400_000_000)] == [
        (made.rates("chat", tier, noon).output_nano, made.rates("chat", tier, midnight).output_nano)
        for tier in (Band.DEFAULT, Band.FLEX)
    ]
    assert "2026-12-01" == made.rates("chat", Band.FLEX, JAN_S).version.partition("/")[0]
    assert ["price version 2027-cost-plus has 1 of 2 approvals: it is not in force"] == made.warnings(["chat"], DEC_S)
