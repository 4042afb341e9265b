"""Two prices at once, none in between, negative ones, mixed currencies: named by version and entry."""

import pytest

from scheduler.accounting.price_problems import in_order, problems_of
from scheduler.accounting.price_versions import PriceEntry, PriceVersion
from scheduler.accounting.tariffs import Tariff
from scheduler.core.request import Band, CostPlus, Rates
from tests.price_words import entry, tariff, version

BERLIN = "Europe/Berlin"
DAY = tariff("day", "06:00-22:00", time_zone=BERLIN)
NIGHT = tariff("night", "22:00-06:00", time_zone=BERLIN)
PAID = (Band.DEFAULT, Band.PRIORITY)
NOV, DEC, JAN = "2026-11-01T00:00+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"


def problems(*versions: PriceVersion) -> list[str]:
    return problems_of(versions, currency="USD")


def of_entries(*entries: PriceEntry) -> list[str]:
    """Without the version's name, which stands in front of each."""
    found = problems(version("v", *entries))
    assert all(words.startswith("version v: ") for words in found)
    return [words.removeprefix("version v: ") for words in found]


def test_what_covers_every_tier_and_moment_once_is_right() -> None:
    """In one entry or in several; a model without any entry is no mistake."""
    week = [tariff("a", "00:00-24:00", days="mon-fri"), tariff("b", "00:00-24:00", days="sat-sun")]
    for entries in (
        [entry()],
        [entry(1, *PAID), entry(2, Band.FLEX)],
        [entry(1, tariff=DAY), entry(2, tariff=NIGHT)],
        [entry(1, tariff=week[0]), entry(2, tariff=week[1])],
        [entry(1, *PAID), entry(2, Band.FLEX, tariff=DAY), entry(3, Band.FLEX, tariff=NIGHT), entry(model="other")],
        [],
    ):
        assert [] == of_entries(*entries)


def test_two_entries_at_once_are_named_with_the_hours_that_they_share() -> None:
    """There is no precedence: nobody has to know which one wins."""
    late = tariff("late", "21:00-06:00", time_zone=BERLIN)
    found = of_entries(entry(1, tariff=DAY), entry(2, tariff=late))
    assert 7 == len(found)
    assert found[0] == (
        "chat[0] (day) and chat[1] (late) both hold for tier priority, default, flex on mon 21:00 to mon 22:00 "
        "Europe/Berlin: keep one of them"
    )
    assert "chat[0] and chat[1] (day) both hold for tier flex on mon 06:00 to mon 22:00" in "\n".join(
        of_entries(entry(1), entry(2, Band.FLEX, tariff=tariff("day", "06:00-22:00"))) or ["none"]
    )


def test_an_entry_within_another_and_behind_it_is_found() -> None:
    """The longer one goes on after the shorter one has ended."""
    noon = tariff("noon", "12:00-13:00", days="wed", time_zone=BERLIN)
    (words,) = of_entries(entry(1, tariff=DAY), entry(2, tariff=NIGHT), entry(3, tariff=noon))
    assert words.startswith("chat[0] (day) and chat[2] (noon) both hold")
    assert "on wed 12:00 to wed 13:00 Europe/Berlin" in words


def test_hours_without_a_price_are_named() -> None:
    """Some request would arrive in them."""
    weekdays = tariff("work", "00:00-24:00", days="mon-fri")
    assert [
        "no entry of chat holds for tier priority, default, flex on sat 00:00 to sun 24:00 UTC: add one, or widen a "
        "tariff"
    ] == of_entries(entry(tariff=weekdays))
    early = [tariff("early", "00:00-12:00", days="mon"), tariff("rest", "12:01-24:00", days="mon")]
    rest = tariff("others", "00:00-24:00", days="tue-sun")
    (words,) = of_entries(*(entry(tariff=each) for each in (*early, rest)))
    assert "on mon 12:00 to mon 12:01 UTC" in words


def test_a_tier_without_a_price_is_named() -> None:
    """Whoever may ask for it would be refused."""
    assert ["no entry of chat holds for tier flex: name it in one of them"] == of_entries(entry(1, *PAID))


def test_tariffs_of_one_tier_share_a_time_zone() -> None:
    """Only then can it be told that one ends where the other begins; other tiers and models may have another."""
    night = tariff("night", "22:00-06:00")
    (words,) = of_entries(entry(1, tariff=DAY), entry(2, tariff=night))
    assert words.startswith("tariffs of one model and tier share a time zone, for tier priority, default, flex there")
    assert "chat[0] (day) in Europe/Berlin and chat[1] (night) in UTC" in words
    utc = tariff("day", "06:00-22:00")
    assert [] == of_entries(
        entry(1, *PAID, tariff=DAY), entry(2, *PAID, tariff=NIGHT), entry(3, Band.FLEX, tariff=utc),
        entry(4, Band.FLEX, tariff=night),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rates": Rates(-1)}, "chat[0]: input_nano is negative: a price is 0 or more"),
        ({"rates": Rates(reasoning_nano=-1)}, "chat[0]: reasoning_nano is negative"),
        ({"rates": Rates(plus=CostPlus(gpu_nano_per_s=-1))}, "chat[0]: gpu_nano_per_s is negative"),
        ({"rates": Rates(plus=CostPlus(margin_ppm=-1))}, "chat[0]: margin_ppm is negative"),
        ({"rates": Rates(plus=CostPlus(pue_ppm=999_999))}, "chat[0]: a PUE is 1 or more"),
        ({"rates": Rates(currency="EUR")}, "chat[0] is in EUR, its version in USD: currencies are never mixed"),
        ({"tiers": ()}, "chat[0]: names no tier, or one twice"),
        ({"tiers": (Band.FLEX, Band.FLEX)}, "chat[0]: names no tier, or one twice"),
        ({"tariff": Tariff(name="t", spans=())}, "chat[0] (t): its spans are no parts of a week"),
        ({"tariff": Tariff(name="t", spans=((5, 5),))}, "chat[0] (t): its spans are no parts of a week"),
        ({"tariff": Tariff(name="t", spans=((0, 9), (9, 10_080)))}, "chat[0] (t): its spans are no parts"),
        ({"tariff": Tariff(name="t", spans=((0, 10_081),))}, "chat[0] (t): its spans are no parts of a week"),
        ({"tariff": Tariff(name="t", time_zone="Mars", spans=((0, 10_080),))}, "chat[0] (t): no time zone 'Mars'"),
    ],
)
def test_an_entry_that_cannot_be_is_named(wrong: dict[str, object], words: str) -> None:
    """And is not looked at any further."""
    (found,) = of_entries(entry(**wrong))  # type: ignore[arg-type]
    assert found.startswith(words)


# -- versions


def test_versions_follow_each_other_without_a_gap() -> None:
    """One that says no end ends where the next one begins."""
    for end in (None, DEC):
        assert [] == problems(version("b", entry(), begin=DEC), version("a", entry(), begin=NOV, end=end))
    assert [] == problems(version("a", entry()), version("b", entry(), begin=NOV, end=DEC))


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ([("a", NOV, JAN), ("b", DEC, None)],
         "versions a (to 2027-01-01T00:00:00Z) and b (from 2026-12-01T00:00:00Z) overlap: leave effective_to of a out"),
        ([("a", NOV, DEC), ("b", JAN, None)],
         "nothing is in force between a (to 2026-12-01T00:00:00Z) and b (from 2027-01-01T00:00:00Z)"),
        ([("a", NOV, None), ("b", NOV, None)], "versions a and b begin at the same time"),
        ([("a", None, None), ("b", None, None)], "versions a and b begin at the same time"),
        ([("a", DEC, NOV)], "version a: ends (2026-11-01T00:00:00Z) before it begins (2026-12-01T00:00:00Z)"),
        ([("a", NOV, NOV)], "version a: ends (2026-11-01T00:00:00Z) before it begins"),
        ([("a", NOV, None), ("a", DEC, None)], "version a is given twice: a version never changes"),
    ],
)  # fmt: skip
def test_versions_that_overlap_or_leave_a_gap_are_named(
    versions: list[tuple[str, str | None, str | None]], words: str
) -> None:
    """In whatever order they are given."""
    for ordered in (versions, versions[::-1]):
        (found,) = problems(*(version(name, entry(), begin=begin, end=end) for name, begin, end in ordered))
        assert found.startswith(words) or found.startswith(words.replace("a and b", "b and a"))


def test_currencies_are_never_mixed() -> None:
    """Budgets of money are in one."""
    euro = version("v", entry(rates=Rates(currency="EUR")), currency="EUR")
    assert ["version v: is in EUR, and budgets are in USD: currencies are never mixed"] == problems(euro)


def test_nobody_approves_twice() -> None:
    """Two approvals are of two people."""
    twice = version("v", entry(), approved_by=("ada", "ada"))
    assert ["version v: somebody approved it twice: approvals are of different people"] == problems(twice)


def test_the_order_of_versions_is_that_of_their_beginnings() -> None:
    """What holds ever since comes first, also before what began before 1970."""
    names = ["since", "moon", "now"]
    versions = [version("now", begin=NOV), version("moon", begin="1969-07-20T20:17+00:00"), version("since")]
    assert names == [each.name for each in in_order(versions)]
