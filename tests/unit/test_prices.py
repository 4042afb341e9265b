"""The price of a model, a tier and an instant: exactly one, or none and then the request does not run."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.prices import check
from scheduler.accounting.price_versions import PriceVersion
from scheduler.accounting.prices import MAX_PROBLEMS, NO_PRICES, NoPrice, PriceBook, PriceError
from scheduler.core.request import FREE, Band, Rates
from tests.price_words import MODEL, entry, tariff, unix_s, version

BERLIN = "Europe/Berlin"
DAY = tariff("day", "06:00-22:00", time_zone=BERLIN)
NIGHT = tariff("night", "22:00-06:00", time_zone=BERLIN)
NOV, DEC = "2026-11-01T00:00+00:00", "2026-12-01T00:00+00:00"


def at(book: PriceBook, moment: str | float, tier: Band = Band.DEFAULT, model: str = MODEL) -> int | None:
    """Its rate of input; None where it has no price."""
    try:
        return book.rates(model, tier, unix_s(moment) if isinstance(moment, str) else moment).input_nano
    except NoPrice:
        return None


def by_night(day_nano: int = 10, night_nano: int = 20) -> PriceBook:
    return PriceBook([version("v", entry(day_nano, tariff=DAY), entry(night_nano, tariff=NIGHT))])


# -- which one


def test_a_version_holds_from_its_first_second_up_to_its_last() -> None:
    """Half open, whatever the fraction of a second; before and after it there is no price."""
    book = PriceBook([version("v", entry(5), begin=NOV, end=DEC)])
    begin, end = unix_s(NOV), unix_s(DEC)
    moments = (begin - 1, math.nextafter(begin, 0), begin, math.nextafter(end, 0), end, end + 1e9)
    assert [None, None, 5, 5, None, None] == [at(book, moment) for moment in moments]


def test_the_next_version_takes_over_at_its_first_second() -> None:
    """Every rate says which version it is from."""
    first, second = version("a", entry(5)), version("b", entry(6), begin=DEC)
    book, edge = PriceBook([second, first]), unix_s(DEC)
    assert [5, 6] == [at(book, moment) for moment in (math.nextafter(edge, 0), edge)]
    assert [first.version_id(), second.version_id()] == [
        book.rates(MODEL, Band.FLEX, moment).version for moment in (0.0, edge)
    ]
    assert (first, second) == book.versions
    assert [first, second] == [book.version_at(moment) for moment in (0.0, edge)]


def test_models_and_tiers_have_their_own_prices() -> None:
    """A batch that may wait costs less."""
    book = PriceBook([version("v", entry(5, Band.PRIORITY, Band.DEFAULT), entry(2, Band.FLEX), entry(9, model="big"))])
    assert [5, 5, 2] == [at(book, 0.0, tier) for tier in Band]
    assert [9, None] == [at(book, 0.0, model=model) for model in ("big", "unknown")]


def test_hours_of_the_night_cost_their_own() -> None:
    """On the wall clock of the tariff's zone, in winter and in summer."""
    book = by_night()
    assert [10, 20, 20, 10] == [
        at(book, f"2026-01-15T{hour}+01:00") for hour in ("21:59:59", "22:00:00", "05:59:59", "06:00:00")
    ]
    assert [10, 20] == [at(book, f"2026-07-15T{hour}+02:00") for hour in ("21:59:59", "22:00:00")]


def test_the_night_of_the_repeated_hour_is_an_hour_longer() -> None:
    """Nine hours of night in Berlin on 2026-10-25, seven on 2026-03-29, eight otherwise; never a moment without one."""
    book = by_night()
    for evening, hours in (("2026-10-24", 9), ("2026-03-28", 7), ("2026-11-10", 8)):
        begin = unix_s(f"{evening}T12:00+00:00")
        minutes = [at(book, begin + 60 * minute) for minute in range(24 * 60)]
        assert 60 * hours == minutes.count(20)
        assert 24 * 60 - 60 * hours == minutes.count(10)


def test_a_tariff_within_the_repeated_hour_holds_twice() -> None:
    """Who arrives at 02:30 of either hour pays what 02:30 costs; in spring there is no 02:30."""
    inner = tariff("inner", "02:00-03:00", time_zone=BERLIN)
    outer = tariff("outer", "03:00-02:00", time_zone=BERLIN)
    book = PriceBook([version("v", entry(1, tariff=outer), entry(2, tariff=inner))])
    assert [2, 2, 1] == [at(book, f"2026-10-25T{hour}:30+00:00") for hour in ("00", "01", "02")]
    assert [1, 1] == [at(book, f"2026-03-29T{hour}:30+00:00") for hour in ("00", "01")]


def test_a_clock_that_was_set_back_gives_the_price_that_it_shows() -> None:
    """In whatever order the moments are asked: nothing is remembered."""
    book = PriceBook([version("a", entry(5)), version("b", entry(6, tariff=DAY), entry(7, tariff=NIGHT), begin=NOV)])
    edge = unix_s(NOV)
    moments = [edge + by_s for by_s in (0, -3600, 7200, 3600, -1, 0, 6 * 3600)]
    forwards = {moment: at(book, moment) for moment in sorted(moments)}
    assert [forwards[moment] for moment in moments] == [at(book, moment) for moment in moments]
    assert (5, 7) == (forwards[edge - 3600], forwards[edge])


def test_a_time_that_is_none_has_no_price() -> None:
    """It fails closed."""
    assert None is at(PriceBook([version("v", entry())]), math.nan)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(-(10**9), 4 * 10**9), unique=True, max_size=6), ask=st.integers(-(10**9), 5 * 10**9))
def test_at_each_instant_at_most_one_version_holds(cuts: list[int], ask: int) -> None:
    """That of the largest beginning which is not later."""
    versions = [PriceVersion(name=f"v{cut}", effective_from_unix_s=cut, currency="USD", entries=()) for cut in cuts]
    expected = max((cut for cut in cuts if cut <= ask), default=None)
    found = PriceBook(versions).version_at(ask)
    assert expected == (None if found is None else found.effective_from_unix_s)


# -- none


def test_without_a_price_there_is_no_request() -> None:
    """The error says which model, tier and moment."""
    with pytest.raises(NoPrice, match="model 'm' has no price for service tier flex at this time") as caught:
        PriceBook([version("v", entry())]).rates("m", Band.FLEX, 7.5)
    assert ("m", Band.FLEX, 7.5) == (caught.value.model, caught.value.tier, caught.value.at_unix_s)
    with pytest.raises(NoPrice):
        PriceBook().rates(MODEL, Band.FLEX, 0.0)


def test_what_has_no_price_may_be_free() -> None:
    """In the currency of the book and without a version; what has one is not."""
    book = PriceBook([version("v", entry(5), end=NOV)], is_free_where_missing=True)
    assert [5, 0, 0] == [at(book, 0.0), at(book, NOV), at(book, 0.0, model="other")]
    assert "" == book.rates("other", Band.FLEX, 0.0).version
    assert FREE == NO_PRICES.rates(MODEL, Band.FLEX, 0.0)
    assert Rates(currency="EUR") == PriceBook(currency="EUR", is_free_where_missing=True).rates("m", 0, 0.0)


# -- what cannot be a book


def test_versions_with_mistakes_are_no_book() -> None:
    """All of them are named, up to a bound."""
    with pytest.raises(
        PriceError, match=r"version v: chat\[0\]: input_nano is negative: a price is 0 or more"
    ) as caught:
        PriceBook([version("v", entry(-1))])
    assert 1 == len(caught.value.problems)
    wrong = [version(f"v{number}", entry(-1), begin=f"2026-11-{number + 1:02}T00:00+00:00") for number in range(12)]
    with pytest.raises(PriceError, match=f"and {12 - MAX_PROBLEMS} more"):
        PriceBook(wrong)
    with pytest.raises(PriceError, match="is in USD, and budgets are in EUR"):
        PriceBook([version("v", entry())], currency="EUR")
    with pytest.raises(PriceError, match="both hold for tier"):
        PriceBook([version("v", entry(1), entry(2))])


# -- approvals


def test_a_version_that_too_few_approved_is_as_if_it_were_not_there() -> None:
    """The one before it goes on."""
    old, new = (
        version("a", entry(5), approved_by=("ada", "bob")),
        version("b", entry(6), begin=NOV, approved_by=("ada",)),
    )
    assert [5, 6] == [at(PriceBook([old, new], approvals=needed), DEC) for needed in (2, 1)]
    book = PriceBook([old, new], approvals=2)
    assert (new,) == book.pending
    assert ["price version b has 1 of 2 approvals: it is not in force"] == book.warnings([MODEL], 0.0)


def test_where_the_old_one_says_its_end_there_is_then_no_price() -> None:
    """It fails closed, and says so."""
    versions = version("a", entry(5), end=NOV, approved_by=("ada",)), version("b", entry(6), begin=NOV)
    book = PriceBook(versions, approvals=1)
    assert None is at(book, NOV)
    assert [
        "price version b has 0 of 1 approvals: it is not in force",
        "no price version is in force now: requests are refused (no_price)",
    ] == book.warnings([MODEL], unix_s(NOV))


def test_a_version_that_is_not_approved_must_be_right_all_the_same() -> None:
    """Its mistakes show before somebody approves it."""
    with pytest.raises(PriceError, match="version b"):
        PriceBook([version("a", entry(), approved_by=("ada",)), version("b", entry(-1), begin=NOV)], approvals=1)


# -- what an operator should know


def test_models_without_a_price_are_told_before_somebody_asks() -> None:
    """Of the version that is in force and of those to come, not of those that are over."""
    versions = [
        version("over", begin="2026-01-01T00:00+00:00"),
        version("now", entry(), begin=NOV),
        version("next", entry(), entry(model="b"), begin=DEC),
    ]
    told = PriceBook(versions).warnings(["b", MODEL, "c"], unix_s(NOV))
    assert [
        "price version now has none for b, c: requests are refused (no_price)",
        "price version next has none for c: requests are refused (no_price)",
    ] == told
    told = PriceBook(versions, is_free_where_missing=True).warnings(["c"], unix_s(DEC))
    assert ["price version next has none for c: requests are free"] == told


def test_an_end_without_a_successor_is_told() -> None:
    """As long as it is ahead."""
    book = PriceBook([version("v", entry(), end=DEC)])
    assert ["price version v ends at 2026-12-01T00:00:00Z and none follows: later requests are refused (no_price)"] == (
        book.warnings([MODEL], unix_s(NOV))
    )
    assert ["no price version is in force now: requests are refused (no_price)"] == (
        book.warnings([MODEL], unix_s(DEC))
    )


def test_a_house_without_prices_has_nothing_to_tell() -> None:
    """A demo."""
    assert [] == NO_PRICES.warnings([MODEL], 0.0)
    assert ["no price version is in force now: requests are refused (no_price)"] == PriceBook().warnings([MODEL], 0.0)


# -- against an independent implementation


@pytest.mark.parametrize("first_seed", [0, 1_000, 2_000])
def test_random_books_and_requests_cost_what_fractions_say(first_seed: int) -> None:
    """From the words that an operator writes to the money: another implementation of the benchmark's own agrees."""
    wrong = [found for seed in range(first_seed, first_seed + 60) if not (found := check(seed)).is_right]
    assert [] == wrong, f"failing seeds: {[found.seed for found in wrong]}"


def test_the_random_worlds_reach_every_edge() -> None:
    """Requests with and without a price, at night, on edges, of every class."""
    found = [check(seed) for seed in range(60)]
    for name in ("priced", "unpriced", "on_edges", "paid", "cost_plus"):
        assert sum(getattr(each, name) for each in found) > 100, name
