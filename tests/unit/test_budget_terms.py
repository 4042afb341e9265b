"""A budget's words and the ledger's integers say the same, exactly, there and back."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.budget_terms import (
    COUNTED,
    MAX_AMOUNT,
    MAX_WINDOW_CHARS,
    BudgetTerm,
    ledger_amount,
    refuse_alike,
)
from scheduler.core.budget_accounts import Budget, Measure
from scheduler.core.budget_windows import Window

WINDOWS = ("1h", "day", "calendar month", "total")


def terms() -> st.SearchStrategy[BudgetTerm]:
    """Every measure, every kind of window, every limit that the ledger can keep."""

    def with_window(measure: Measure) -> st.SearchStrategy[BudgetTerm]:
        windows = st.none() if measure is Measure.CONCURRENCY else st.sampled_from(WINDOWS)
        return st.builds(BudgetTerm, measure=st.just(measure), limit=st.integers(0, MAX_AMOUNT), per=windows)

    return st.sampled_from(list(Measure)).flatmap(with_window)


@given(terms())
def test_words_and_integers_say_the_same(term: BudgetTerm) -> None:
    """Written out and read again it is the same budget; none is rounded."""
    words = term.words()
    per = words.pop("per", None)
    assert term == BudgetTerm.of({word: Decimal(amount) for word, amount in words.items()}, per and str(per))
    term.check()


def test_decimals_are_written_plainly() -> None:
    """No exponent, no zeros that say nothing."""
    assert {"money": "0.000000001", "per": "1h"} == BudgetTerm(measure=Measure.MONEY_NANO, limit=1, per="1h").words()
    assert {"joules": "3600000", "per": "1h"} == BudgetTerm(
        measure=Measure.ENERGY_MJ, limit=3_600_000_000, per="1h"
    ).words()
    assert {"concurrency": 4} == BudgetTerm(measure=Measure.CONCURRENCY, limit=4, per=None).words()


def test_the_core_gets_a_budget() -> None:
    """With the window parsed."""
    term = BudgetTerm(measure=Measure.TOKENS, limit=5, per="60m")
    assert Budget(Measure.TOKENS, 5, Window.parse("1h")) == term.budget
    assert Budget(Measure.CONCURRENCY, 2) == BudgetTerm(measure=Measure.CONCURRENCY, limit=2, per=None).budget


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, "this one nothing; give exactly one of tokens"),
        ({"tokens": Decimal(1), "money": Decimal(1)}, "this one tokens, money"),
        ({"tokens": Decimal("0.5")}, "tokens must be a whole number"),
        ({"money": Decimal("NaN")}, "money must be a finite number"),
        ({"money": Decimal("Infinity")}, "money must be a finite number"),
        ({"money": Decimal("1e999999")}, "money must be at most 9223372036"),
        ({"joules": Decimal(-1)}, "joules must be 0 or more"),
    ],
)
def test_words_that_say_nothing_sure_are_refused(words: dict[str, Decimal | None], expected: str) -> None:
    """With the word that is wrong."""
    with pytest.raises(ValueError, match=expected):
        BudgetTerm.of(words, "1h")


@pytest.mark.parametrize(
    ("measure", "limit", "per", "expected"),
    [
        (Measure.TOKENS, -1, "1h", "from 0 to"),
        (Measure.TOKENS, MAX_AMOUNT + 1, "1h", "from 0 to"),
        (Measure.TOKENS, 1, None, "tokens needs a window, for example per: calendar day"),
        (Measure.CONCURRENCY, 1, "1h", "has no window, leave per out"),
        (Measure.TOKENS, 1, "fortnight", "write 1h"),
        (Measure.TOKENS, 1, "1h" + " " * MAX_WINDOW_CHARS, f"at most {MAX_WINDOW_CHARS} characters"),
    ],
)
def test_a_term_that_no_account_could_count_is_refused(
    measure: Measure, limit: int, per: str | None, expected: str
) -> None:
    """A row may say anything; the core asserts."""
    with pytest.raises(ValueError, match=expected):
        BudgetTerm(measure=measure, limit=limit, per=per).check()


def test_two_alike_are_refused() -> None:
    """However their windows are written."""
    one, same, other = (BudgetTerm(measure=Measure.TOKENS, limit=1, per=per) for per in ("60m", "hour", "2h"))
    refuse_alike([one, other])
    with pytest.raises(ValueError, match="entries 0 and 1 count the same"):
        refuse_alike([one, same])


def test_every_measure_has_one_word() -> None:
    """None is forgotten, none is written in two ways."""
    assert sorted(Measure) == sorted(counted.measure for counted in COUNTED.values())
    assert 1_500 == ledger_amount(Decimal("1.5"), 3)
