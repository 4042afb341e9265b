"""A refusal names the budget that stays in the way longest, how it stands, and when to come again."""

import pytest

from scheduler.core.actions import Rejection
from scheduler.core.budget_accounts import Account, Budget, Level, Measure
from scheduler.core.budget_windows import SECOND_US, Window
from scheduler.core.shortages import Short, amount_text, refusal, too_many_tasks


def account(
    measure: Measure = Measure.TOKENS, limit: int = 100, window: str | None = "1h", *, used: int = 0, held: int = 0
) -> Account:
    some = Account(Level("tenant", "acme"), Budget(measure, limit, None if window is None else Window.parse(window)), 0)
    some.add(some.slot, used=used, held=held)
    return some


def refused(*shorts: tuple[Account, int], at_us: int = 0) -> Rejection:
    return refusal([Short(some, needed, None) for some, needed in shorts], at_us)


def test_a_short_window_is_a_rate_and_waiting_helps() -> None:
    """Up to an hour: rate_limit_exceeded, with the seconds until enough is free."""
    rejection = refused((account(used=90), 20))
    assert ("rate_limit_exceeded", 429, 3660, None) == (
        rejection.reason,
        rejection.status,
        rejection.retry_after_s,
        rejection.should_retry,
    )
    assert rejection.message == (
        "The budget of tenant acme is 100 tokens per 1h; 10 left; this request needs 20. "
        "Enough is free at 1970-01-01T01:01:00Z."
    )
    shortage = rejection.shortage
    assert shortage is not None
    assert ("tenant acme", "tokens", "1h", 100, 10, 20, 3660.0) == (
        shortage.level,
        shortage.measure,
        shortage.window,
        shortage.limit,
        shortage.left,
        shortage.needed,
        shortage.resets_unix_s,
    )


@pytest.mark.parametrize("window", ["2h", "calendar day", "calendar month", "total"])
def test_a_long_window_is_a_quota_and_a_client_must_not_retry_by_itself(window: str) -> None:
    """insufficient_quota; a total never resets."""
    rejection = refused((account(window=window, used=90), 20))
    assert ("insufficient_quota", False) == (rejection.reason, rejection.should_retry)
    assert (rejection.retry_after_s is None) == (window == "total")
    assert ("does not reset" in rejection.message) == (window == "total")


def test_what_only_running_requests_hold_may_come_back_at_any_moment() -> None:
    """Even of a quota: soon, and the client may retry."""
    rejection = refused((account(window="total", used=50, held=40), 20))
    assert ("rate_limit_exceeded", 1, None) == (rejection.reason, rejection.retry_after_s, rejection.should_retry)
    assert "10 left, 40 held by requests that run" in rejection.message
    assert "comes back when they end" in rejection.message


def test_concurrency_is_a_rate() -> None:
    """It fits as soon as one of them ends."""
    rejection = refused((account(Measure.CONCURRENCY, 4, None, held=4), 1))
    assert ("rate_limit_exceeded", 1) == (rejection.reason, rejection.retry_after_s)
    assert rejection.message == (
        "The budget of tenant acme is 4 requests at a time; 0 left, 4 held by requests that run; this request needs 1. "
        "It fits as soon as one of them ends."
    )


def test_what_never_fits_is_not_to_be_retried() -> None:
    """However short the window is; no moment is told."""
    rejection = refused((account(window="1m"), 101))
    assert ("rate_limit_exceeded", None, False) == (
        rejection.reason,
        rejection.retry_after_s,
        rejection.should_retry,
    )
    assert "never fits: ask for less" in rejection.message
    assert rejection.shortage is not None
    assert rejection.shortage.resets_unix_s is None


def test_a_limit_of_nothing_is_closed() -> None:
    """Asking for less would not help."""
    rejection = refused((account(window="total", limit=0), 5))
    assert ("insufficient_quota", False) == (rejection.reason, rejection.should_retry)
    assert rejection.message.endswith("this request needs 5. Nothing is granted while the limit is 0.")


def test_the_longest_way_is_told() -> None:
    """Whoever comes again at the told moment is not refused by another budget."""
    held, minute = account(held=90), account(Measure.OUTPUT_TOKENS, 100, "calendar minute", used=90)
    day, never = account(Measure.REQUESTS, 100, "calendar day", used=100), account(limit=10)
    order = [(held, 20), (minute, 20), (day, 1), (never, 20)]
    measures = []
    for most in range(1, len(order) + 1):
        shortage = refused(*order[:most]).shortage
        assert shortage is not None
        measures.append(shortage.measure)
        assert shortage == refused(*reversed(order[:most])).shortage
    assert ["tokens", "output_tokens", "requests", "tokens"] == measures


def test_retry_after_is_whole_and_never_too_early() -> None:
    """Half a second before the end is one second."""
    some = account(window="calendar minute", used=90)
    assert 1 == refused((some, 20), at_us=59_500_000).retry_after_s
    assert 60 == refused((some, 20), at_us=1).retry_after_s
    assert 60 * SECOND_US == some.free_us(20)


def test_a_smaller_prompt_must_fit_every_budget() -> None:
    """The least of what fits; none where one budget fits no prompt."""
    some = account(used=90)
    both = refusal([Short(some, 20, 5), Short(some, 20, 3)], 0).shortage
    one = refusal([Short(some, 20, 5), Short(some, 20, None)], 0).shortage
    assert both is not None
    assert one is not None
    assert (3, None) == (both.fits_prompt_tokens, one.fits_prompt_tokens)


@pytest.mark.parametrize(
    ("measure", "amount", "text"),
    [
        (Measure.TOKENS, 1_000, "1000 tokens"),
        (Measure.INPUT_TOKENS, 0, "0 input tokens"),
        (Measure.MONEY_NANO, 1_500_000_000, "1.5 currency units"),
        (Measure.MONEY_NANO, 1, "0.000000001 currency units"),
        (Measure.ENERGY_MJ, 12_500, "12.5 joules"),
        (Measure.GPU_US, 3_000_000, "3 GPU-seconds"),
        (Measure.CARBON_UG, 10, "0.00001 gCO2e"),
        (Measure.REQUESTS, 2, "2 requests"),
    ],
)
def test_amounts_are_told_exactly_in_units_of_people(measure: Measure, amount: int, text: str) -> None:
    """Integers of the ledger, not rounded."""
    assert text == amount_text(measure, amount)


def test_too_many_tasks_says_what_to_do() -> None:
    """A word of its own, with a time to come again."""
    rejection = too_many_tasks("acme/nightly", 10)
    assert ("too_many_tasks", 429, 60) == (rejection.reason, rejection.status, rejection.retry_after_s)
    assert "'acme/nightly'" in rejection.message
    assert "10 tasks" in rejection.message
