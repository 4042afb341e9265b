"""The checker reads a trace: a good one has no breach, one that is wrong in one place is told so by name."""

import dataclasses

import pytest

from scheduler.core.actions import Abort, Dispatch, Finish, Payer, Reject, Rejection, Settle, Shortage, Tokens
from scheduler.core.admission import Limits
from scheduler.core.budget_accounts import Budget, BudgetState, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Band, DataClass, Rates
from scheduler.core.rules import Rules
from scheduler.simulation.checker import check
from scheduler.simulation.trace import (
    Configured,
    Counted,
    Decided,
    Ended,
    Event,
    FirstByte,
    Posted,
    Reported,
    Restarted,
    Stopped,
    Submitted,
    Ticked,
)
from tests.core_words import MODEL, request
from workers.types import Outcome

RULES = Configured(at_s=0.0, rules=Rules(), limits=Limits())
CALL = Dispatch(request_id="a", attempt_id="a-1", worker_id="w", max_output_tokens=50, priority=1, reason="")
SETTLE = Settle(
    request_id="a", attempt_id="a-1", worker_id="w", payer=Payer.REQUEST, outcome=Outcome.COMPLETED, cause="",
    tokens=Tokens(input_tokens=10, output_tokens=5), is_exact=False,
)  # fmt: skip
FINISH = Finish(request_id="a", attempt_id="a-1", outcome=Outcome.COMPLETED, cause="")
READY = Reported(at_s=0.0, worker_id="w", is_ready=True, models=(MODEL,), max_running=4, max_sequences=8)
ASKED = Submitted(at_s=0.0, request=request("a"))
POSTED = Posted(at_s=2.0, attempt_id="a-1", energy_mj=100, gpu_us=1_000)
STOPPED = Stopped(at_s=9.0, num_open=0, num_running=0, credit_tokens={"w": (0,)})
REJECT = Reject(request_id="a", rejection=Rejection(reason="no", status=503, message="no"))
USAGE = Ended(
    at_s=1.0, attempt_id="a-1", outcome=Outcome.COMPLETED, cause="", has_usage=True, tokens=SETTLE.tokens
)  # fmt: skip
BYTE = FirstByte(at_s=1.0, attempt_id="a-1")


def decided(action: object, at_s: float = 1.0, **changes: object) -> Decided:
    return Decided(at_s=at_s, action=dataclasses.replace(action, **changes))  # type: ignore[type-var]


def asked(name: str, *, at_s: float = 0.0, **values: object) -> Submitted:
    return Submitted(at_s=at_s, request=request(name, arrival_s=at_s, **values))


def life(name: str, at_s: float = 1.0, **of_settle: object) -> list[Event]:
    """Sent, answered and booked."""
    attempt_id = f"{name}-1"
    return [
        decided(CALL, at_s, request_id=name, attempt_id=attempt_id),
        decided(SETTLE, at_s, request_id=name, attempt_id=attempt_id, **of_settle),
        decided(FINISH, at_s, request_id=name, attempt_id=attempt_id),
        dataclasses.replace(POSTED, at_s=at_s, attempt_id=attempt_id),
    ]


GOOD: list[Event] = [RULES, READY, ASKED, *life("a"), STOPPED]
SENT = GOOD[:4]


def named(trace: list[Event], breach: str) -> None:
    """The breach is among those found."""
    found = check(trace)
    assert any(breach in line for line in found), found


def test_a_good_trace_has_no_breach() -> None:
    """The shortest life there is."""
    assert [] == check(GOOD)


@pytest.mark.parametrize(
    ("trace", "breach"),
    [
        ([RULES, *GOOD[2:]], "is not there"),
        (GOOD[:-1], "no end"),
        ([*GOOD[:5], STOPPED], "never ended"),
        ([*SENT, STOPPED], "never settled"),
        ([*GOOD[:6], STOPPED], "never booked"),
        ([*SENT, GOOD[5], STOPPED], "before a-1 was settled"),
        ([*GOOD[:6], decided(REJECT), STOPPED], "ended twice"),
        ([*GOOD[:5], decided(SETTLE), *GOOD[5:]], "settled twice"),
        ([*SENT, decided(CALL), *GOOD[4:]], "sent twice"),
        ([*SENT, decided(CALL, attempt_id="a-2")], "while another attempt may answer"),
        ([*GOOD[:-1], decided(CALL, attempt_id="a-2"), STOPPED], "sent after its request's end"),
        ([RULES, READY, decided(REJECT), STOPPED], "never submitted"),
        ([RULES, READY, ASKED, decided(SETTLE), decided(REJECT), STOPPED], "never sent"),
        ([RULES, READY, ASKED, decided(CALL, 700.0)], "waited too long"),
        ([RULES, READY, ASKED, decided(CALL, 700.0), *GOOD[4:]], "time went back"),
        ([*GOOD[:-1], dataclasses.replace(STOPPED, num_open=1)], "still open"),
        ([*GOOD[:-1], dataclasses.replace(STOPPED, credit_tokens={"w": (0, 1)})], "still owned"),
        ([RULES, dataclasses.replace(READY, is_ready=False), *GOOD[2:]], "not ready"),
        ([RULES, dataclasses.replace(READY, models=()), *GOOD[2:]], "not served"),
        ([RULES, dataclasses.replace(READY, max_running=0), *GOOD[2:]], "full worker"),
        ([RULES, READY, ASKED, decided(CALL, 20.0)], "silent worker"),
        ([RULES, READY, ASKED, decided(CALL, max_output_tokens=51)], "wrong cap"),
        ([RULES, READY, ASKED, decided(CALL, max_output_tokens=0)], "wrong cap"),
        ([RULES, READY, ASKED, decided(CALL, priority=0)], "wrong cap or priority"),
        ([*SENT, decided(SETTLE, tokens=Tokens(output_tokens=51))], "more output"),
        ([*SENT, decided(SETTLE, tokens=Tokens(input_tokens=101))], "more input"),
        ([*SENT, decided(SETTLE, tokens=Tokens(input_tokens=1, cached_tokens=2))], "more input"),
        ([*SENT, decided(SETTLE, payer=Payer.OPERATOR), GOOD[5]], "operator pays what the request owes"),
        ([*SENT, decided(SETTLE, cost_nano=1), GOOD[5]], "price"),
        ([*SENT, decided(SETTLE, is_exact=True), GOOD[5]], "its worker counted None"),
        ([*SENT, USAGE, decided(SETTLE, is_exact=True, tokens=Tokens()), GOOD[5]], "its worker counted Tokens"),
        ([*SENT, USAGE, decided(SETTLE), GOOD[5]], "its worker counted Tokens"),
        ([*SENT, BYTE, decided(REJECT)], "refused after its first byte"),
        ([*GOOD[:6], BYTE], "bytes after its settlement"),
        ([*GOOD[:6], decided(Abort(attempt_id="a-1", worker_id="w", reason=""))], "aborted after its settlement"),
        ([*SENT, decided(SETTLE, outcome=Outcome.FAILED), GOOD[5]], "its attempt as failed"),
        ([RULES, READY, asked("a", deadline_s=0.5), *GOOD[3:]], "after its deadline"),
        ([RULES, READY, ASKED, decided(FINISH, attempt_id=None)], "nobody cancelled it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_breach_of_a_life_is_named(trace: list[Event], breach: str) -> None:
    """A trace that is wrong in one place."""
    named(trace, breach)


FAILED = dataclasses.replace(SETTLE, outcome=Outcome.FAILED, cause="stalled", payer=Payer.OPERATOR)
AGAIN: list[Event] = [
    decided(CALL, attempt_id="a-2"), decided(SETTLE, attempt_id="a-2"), decided(FINISH, attempt_id="a-2"), POSTED,
    dataclasses.replace(POSTED, attempt_id="a-2"), STOPPED,
]  # fmt: skip


def test_a_second_try_is_judged_by_the_first_byte() -> None:
    """Before it a failed attempt may be followed by another, after it not."""
    assert [] == check([*SENT, decided(FAILED), *AGAIN])
    named([*SENT, BYTE, decided(FAILED), *AGAIN], "after the first byte")


def test_what_was_in_vain_is_the_operator_s() -> None:
    """Even where it completed after its request was taken from it."""
    named([*SENT, decided(FAILED, payer=Payer.REQUEST), *AGAIN], "request pays what the operator owes")
    named([*SENT, decided(SETTLE), *AGAIN], "request pays what the operator owes")


def test_tries_are_counted() -> None:
    """One retry and three bounces, by default."""
    tries: list[Event] = [RULES, READY, ASKED]
    for number in range(1, 7):
        tries += [decided(CALL, attempt_id=f"a-{number}"), decided(FAILED, attempt_id=f"a-{number}"), READY_AGAIN]
    named(tries, "one try too many")


READY_AGAIN = dataclasses.replace(READY, at_s=1.0)


def test_a_restart_cuts_off_what_was_open() -> None:
    """It need not end; what ran is nobody's, and workers are heard of anew."""
    assert [] == check([*SENT, BYTE, Restarted(at_s=1.0), RULES_AT_1, STOPPED])
    named([*SENT, Restarted(at_s=1.0), RULES_AT_1, asked("b", at_s=1.0), decided(CALL, request_id="b")], "not there")


RULES_AT_1 = dataclasses.replace(RULES, at_s=1.0)

# -- places

ZONES = Configured(at_s=0.0, rules=Rules(zones={"safe": DataClass.CORE}), limits=Limits())
MISMATCH = dataclasses.replace(
    REJECT, rejection=Rejection(reason="data_residency_mismatch", status=403, message="")
)  # fmt: skip


def test_there_is_room_for_all_its_sequences() -> None:
    """Of an idle worker whatever it asks for."""
    few = dataclasses.replace(READY, max_sequences=3)
    two = [asked(name, num_sequences=2, band=Band.PRIORITY) for name in "ab"]
    both = [decided(CALL, priority=0), decided(CALL, request_id="b", attempt_id="b-1", priority=0)]
    named([RULES, few, *two, *both], "b-1: sent to a worker without room for its sequences")
    assert not any("room" in line for line in check([RULES, few, asked("a", num_sequences=9), decided(CALL)]))


def test_lower_bands_leave_the_reserve_alone_until_they_are_aged() -> None:
    """Here one of four places is the first band's."""
    rules = dataclasses.replace(RULES, rules=Rules(reserve_ratio=0.25, ageing_s=5.0))
    start: list[Event] = [rules, READY, *(asked(name) for name in "bcd")]
    start += [decided(CALL, request_id=name, attempt_id=f"{name}-1") for name in "bcd"]
    named([*start, asked("a", at_s=1.0), decided(CALL)], "a-1: took what is kept for the first band")
    late = dataclasses.replace(READY, at_s=6.0)
    for fourth in ([asked("a", at_s=1.0), late, decided(CALL, 6.0)], [asked("a", at_s=1.0, band=0), decided(CALL)]):
        assert not any("first band" in line for line in check([*start, *fourth]))


def test_data_stays_where_it_may_be() -> None:
    """By its class and by its own zones; a zone that nobody named holds general data."""
    secret = asked("a", data_class=DataClass.IMPORTANT)
    safe = dataclasses.replace(READY, zone="safe")
    named([ZONES, READY, secret, *life("a"), STOPPED], "sent into local, where its data may not go")
    assert [] == check([ZONES, safe, secret, *life("a"), STOPPED])
    named([ZONES, safe, asked("a", zones=frozenset({"local"})), *life("a"), STOPPED], "may not go")


def test_who_may_run_nowhere_is_refused_at_once_and_nobody_else() -> None:
    """By the zones in which workers of its model are or were."""
    secret = asked("a", data_class=DataClass.CORE)
    assert [] == check([ZONES, READY, secret, decided(MISMATCH), STOPPED])
    named([ZONES, READY, secret, Ticked(at_s=1.0), decided(REJECT), STOPPED], "no zone may hold")
    named([ZONES, READY, ASKED, decided(MISMATCH), STOPPED], "although a worker may run it")


def test_the_queue_is_bounded() -> None:
    """By requests and by bytes; a single one of any size fits."""
    limits = Limits(queue=QueueLimits(max_requests=2, max_bytes=10))
    rules = dataclasses.replace(RULES, limits=limits)
    crowd = [asked(name, body_bytes=1) for name in "abc"]
    named([rules, *crowd, STOPPED], "c: waits in a queue that is full")
    named([rules, asked("a", body_bytes=9), asked("b", body_bytes=2), STOPPED], "b: waits in a queue that is full")
    assert not any("full" in line for line in check([rules, asked("a", body_bytes=99), STOPPED]))


def test_lower_bands_leave_a_full_queue_first() -> None:
    """And a tenant that has much before one that has little, in one band."""
    limits = Limits(queue=QueueLimits(max_requests=3, max_total_requests=3))
    rules = dataclasses.replace(RULES, limits=limits)
    full = Rejection(reason="queue_full", status=503, message="")

    def shed(*names: str, band: Band = Band.DEFAULT) -> bool:
        waiting = [asked("low", band=Band.FLEX), asked("mid", tenant="other"), asked("high", band=Band.PRIORITY)]
        rejects = [decided(REJECT, 0.0, request_id=name, rejection=full) for name in names]
        found = check([rules, *waiting, asked("u", band=band), *rejects, STOPPED])
        return not any("shed" in line or "lower bands" in line or "full" in line for line in found)

    assert shed("low")
    assert not shed()
    assert not shed("high")
    assert shed("mid")
    assert not shed("u")
    assert shed("u", band=Band.FLEX)
    assert not shed("mid", band=Band.FLEX)


# -- order

BATCH = asked("a", band=Band.FLEX)
SENT_BATCH = [RULES, READY, BATCH, decided(CALL, priority=2)]
PREEMPT = Abort(attempt_id="a-1", worker_id="w", reason="preempted")
URGENT = asked("u", at_s=1.0, band=Band.PRIORITY)


def test_nobody_overtakes() -> None:
    """Not a better band, nor what its tenant asked before; other tenants' turns are another judge's."""
    named([RULES, READY, asked("z", band=Band.PRIORITY), ASKED, decided(CALL)], "a: overtook z")
    named([RULES, READY, asked("z"), ASKED, decided(CALL)], "a: overtook z")
    other = check([RULES, READY, asked("z", tenant="other"), ASKED, decided(CALL)])
    elsewhere = check([RULES, READY, asked("z", zones=frozenset({"east"})), ASKED, decided(CALL)])
    assert not any("overtook" in line for line in [*other, *elsewhere])


def test_a_lower_band_goes_first_when_it_is_aged() -> None:
    """After so long and so many starts of better bands, once."""
    rules = dataclasses.replace(RULES, rules=Rules(ageing_s=5.0, ageing_every=2))
    start: list[Event] = [rules, READY, asked("a", band=Band.FLEX), *(asked(name) for name in "uvw")]
    late = dataclasses.replace(READY, at_s=6.0)
    aged = decided(CALL, 6.0, priority=2)
    named([*start, late, aged], "a: overtook u")
    passed = [*start, *life("u"), late, aged]
    assert not any("overtook" in line for line in check(passed))
    again = decided(CALL, 6.0, request_id="b", attempt_id="b-1", priority=2)
    named([*start, asked("b", band=Band.FLEX), *life("u"), late, aged, again], "b: overtook v")
    named([*start, *life("u"), dataclasses.replace(READY, at_s=2.0), decided(CALL, 2.0, priority=2)], "a: overtook v")


def test_batch_work_makes_room_before_its_first_byte() -> None:
    """For a better band that waits, and may run there; then it waits again, at its place."""
    ended = [
        Ended(at_s=1.0, attempt_id="a-1", outcome=Outcome.ABORTED, cause="preempted", has_usage=True),
        decided(SETTLE, outcome=Outcome.ABORTED, payer=Payer.OPERATOR),
    ]
    tail: list[Event] = [
        *life("u", 1.0), decided(CALL, attempt_id="a-2", priority=2), decided(SETTLE, attempt_id="a-2"),
        decided(FINISH, attempt_id="a-2"), dataclasses.replace(POSTED, attempt_id="a-1"),
        dataclasses.replace(POSTED, attempt_id="a-2"), STOPPED,
    ]  # fmt: skip
    tail[0] = decided(CALL, request_id="u", attempt_id="u-1", priority=0)
    assert [] == check([*SENT_BATCH, URGENT, decided(PREEMPT), *ended, *tail])
    named([*SENT_BATCH, decided(PREEMPT)], "make room for nobody")
    named([*SENT_BATCH, BYTE, URGENT, decided(PREEMPT)], "make room after its first byte")
    named([*SENT, URGENT, decided(PREEMPT)], "is no batch work")
    named([*SENT_BATCH, URGENT, decided(PREEMPT), *ended, BYTE], "bytes")
    far = dataclasses.replace(URGENT, request=dataclasses.replace(URGENT.request, zones=frozenset({"far"})))
    named([*SENT_BATCH, far, decided(PREEMPT)], "make room for nobody")


def test_no_more_make_room_than_is_waited_for() -> None:
    """One waits, two workers are emptied."""
    trace = [
        RULES, READY, dataclasses.replace(READY, worker_id="v"), BATCH, decided(CALL, priority=2),
        asked("b", band=Band.FLEX, at_s=1.0),
        decided(CALL, request_id="b", attempt_id="b-1", worker_id="v", priority=2), URGENT,
        decided(PREEMPT), decided(PREEMPT, attempt_id="b-1", worker_id="v"),
    ]  # fmt: skip
    named(trace, "b-1: more make room than wait for it")


# -- budgets

TENANT = Level("tenant", "t")
RATES = Rates(input_nano=1_000_000, output_nano=2_000_000)


def limited(measure: Measure, limit: int, window: str = "total", level: Level = TENANT) -> Configured:
    budget = Budget(measure, limit, Window.parse(window) if window else None)
    return Configured(at_s=0.0, rules=Rules(budgets={level: (budget,)}), limits=Limits())


def refused(measure: str, limit: int, left: int, needed: int, **values: object) -> Decided:
    short = Shortage(level="tenant t", measure=measure, window="total", limit=limit, left=left, needed=needed)
    fields: dict[str, object] = {"reason": "insufficient_quota", "should_retry": False, **values}
    rejection = Rejection(status=429, message="", shortage=short, **fields)  # type: ignore[arg-type]
    return decided(Reject(request_id="b", rejection=rejection))


def used(measure: Measure, limit: int, amount: int, held: int = 0) -> Stopped:
    state = BudgetState(TENANT, measure, "total", limit, amount, held, 0, None)
    return dataclasses.replace(STOPPED, budgets=(state,))


def test_what_is_granted_is_there() -> None:
    """A prompt of at most 100 tokens and the output that is left: 30 of 130, and nothing more is told or used."""
    rules = limited(Measure.TOKENS, 130)
    capped = [decided(CALL, max_output_tokens=30), *life("a")[1:]]
    assert [] == check([rules, READY, ASKED, *capped, used(Measure.TOKENS, 130, 15)])
    named([rules, READY, ASKED, *life("a"), STOPPED], "may put out 50 tokens, its budgets cover 30")
    named([rules, READY, ASKED, decided(CALL, max_output_tokens=29)], "capped to 29 tokens, not 30")
    named([rules, READY, ASKED, *capped, used(Measure.TOKENS, 130, 14)], "has used 14 tokens, not 15")
    named([rules, READY, ASKED, *capped, used(Measure.TOKENS, 130, 15, held=1)], "still holds 1")
    named([limited(Measure.TOKENS, 100), READY, ASKED, *life("a"), STOPPED], "admitted, but a budget does not cover it")


def test_what_others_hold_is_not_there() -> None:
    """Until they are counted, or over."""
    rules = limited(Measure.TOKENS, 200)
    first = [rules, READY, ASKED, decided(CALL)]
    b_sent = decided(CALL, request_id="b", attempt_id="b-1", max_output_tokens=40)
    named([*first, asked("b", at_s=1.0), b_sent], "b: admitted, but a budget does not cover it")
    found = check([*first, Counted(at_s=1.0, attempt_id="a-1", prompt_tokens=10), asked("b", at_s=1.0), b_sent])
    assert not any("budget" in line for line in found), found


def test_several_levels_are_one_hold() -> None:
    """A budget of the project binds as one of the tenant does."""
    rules = limited(Measure.CONCURRENCY, 1, "", Level("project", "t/p"))
    both = [asked("a", project="p"), decided(CALL), asked("b", at_s=1.0, project="p")]
    named([rules, READY, *both, decided(CALL, request_id="b", attempt_id="b-1")], "b: admitted, but")


def test_money_is_counted_as_tokens_are() -> None:
    """100 tokens at 1 and two at 2 are 104."""
    rules = limited(Measure.MONEY_NANO, 104)
    trace = [rules, READY, asked("a", rates=RATES), decided(CALL, max_output_tokens=3)]
    named(trace, "may put out 3 tokens, its budgets cover 2")


def test_a_rolling_window_forgets_a_calendar_window_begins() -> None:
    """Within the length nothing is forgotten, after a sixtieth more everything."""
    for window, soon_s, late_s in (("1m", 59.9, 61.1), ("calendar minute", 59.9, 60.0)):
        rules = limited(Measure.REQUESTS, 1, window)
        first = [rules, READY, asked("a", arrival_unix_s=0.0), *life("a")]
        for at_s, is_full in ((soon_s, True), (late_s, False)):
            second = [
                dataclasses.replace(READY, at_s=at_s), asked("b", at_s=at_s, arrival_unix_s=at_s),
                *life("b", at_s), dataclasses.replace(STOPPED, at_s=99.0),
            ]  # fmt: skip
            assert is_full == any("b: admitted, but" in line for line in check([*first, *second]))


def test_the_loser_s_error_is_right() -> None:
    """It names a budget that is short, as it stands, and tells a rate from a quota."""
    trace = [limited(Measure.TOKENS, 150), READY, ASKED, decided(CALL), asked("b", at_s=1.0)]
    right = refused("tokens", 150, 0, 101, reason="rate_limit_exceeded", should_retry=None, retry_after_s=1)
    rest = [*life("a")[1:], used(Measure.TOKENS, 150, 15)]
    assert [] == check([*trace, right, *rest])
    named([*trace, refused("tokens", 150, 0, 101), *rest], "insufficient_quota is not rate_limit_exceeded")
    named([*trace, refused("tokens", 140, 0, 101), *rest], "refused by a limit of 140, which is 150")
    named([*trace, refused("tokens", 150, 7, 101), *rest], "told that 7 were left, not 0")
    named([*trace, refused("money_nano", 150, 0, 101), *rest], "a budget that is not above it")
    named([*trace[:3], decided(REJECT), asked("b", at_s=1.0), refused("tokens", 150, 0, 101)], "but tenant t covers it")
    named([*trace, refused("tokens", 150, 0, 101, should_retry=None), *rest], "told to try a quota again")
    bare = Reject(request_id="b", rejection=Rejection(reason="rate_limit_exceeded", status=429, message=""))
    named([*trace, decided(bare), *rest], "without saying which")


def test_energy_is_bounded_by_what_was_booked_and_by_the_limit() -> None:
    """Its hold is the core's own affair."""
    trace = [limited(Measure.ENERGY_MJ, 80), READY, ASKED, *life("a")]
    assert [] == check([*trace, used(Measure.ENERGY_MJ, 80, 80)])
    named([*trace, used(Measure.ENERGY_MJ, 80, 81)], "has used 81 energy_mj, not 80")
    named([limited(Measure.ENERGY_MJ, 800), *trace[1:], used(Measure.ENERGY_MJ, 800, 101)], "not 100")


def test_other_rules_are_other_budgets() -> None:
    """One that is gone binds nobody; one that comes counts from then on."""
    reloaded = dataclasses.replace(limited(Measure.REQUESTS, 1), at_s=1.0)
    first = [limited(Measure.TOKENS, 1_000), READY, ASKED, *life("a"), dataclasses.replace(reloaded, at_s=1.0)]
    assert [] == check([*first, asked("b", at_s=1.0), *life("b"), used(Measure.REQUESTS, 1, 1)])
    named([*first, asked("b", at_s=1.0), *life("b"), asked("c", at_s=1.0), *life("c")], "c: admitted, but")


# -- shares


def crowd(*tenants: str, num: int = 30) -> list[Event]:
    """Each has so many requests waiting."""
    return [asked(f"{tenant}{number}", tenant=tenant) for tenant in tenants for number in range(num)]


def in_turns(*names: str) -> list[Event]:
    """Each is answered in full before the next is started."""
    return [event for name in names for event in life(name, tokens=Tokens(input_tokens=100, output_tokens=50))]


def apart(weights: dict[str, float], *names: str) -> bool:
    """Whether the service of these starts, one by one, is told to be out of proportion."""
    rules = dataclasses.replace(RULES, rules=Rules(weights=weights))
    return any("apart" in line for line in check([rules, READY, *crowd("f", "g"), *in_turns(*names), STOPPED]))


def test_tenants_that_wait_together_share() -> None:
    """One after the other is right; one that gets two in three is found out sooner or later."""
    assert not apart({}, *(f"{'fg'[number % 2]}{number // 2}" for number in range(40)))
    two_in_three = [(f"f{2 * number}", f"f{2 * number + 1}", f"g{number}") for number in range(14)]
    assert apart({}, *(name for names in two_in_three for name in names))
    assert not apart({"f": 2.0}, *(name for names in two_in_three for name in names))


def test_a_tenant_that_stops_waiting_is_compared_anew() -> None:
    """What it missed meanwhile is its own affair."""
    one_by_one = in_turns("f0", "g0")
    alone = in_turns(*(f"f{number}" for number in range(1, 20)))
    trace = [RULES, READY, *crowd("f"), *crowd("g", num=1), *one_by_one, *alone, STOPPED]
    assert not any("apart" in line for line in check(trace))


def test_a_newcomer_waits_for_one_turn_at_most() -> None:
    """Whatever the others have waiting."""
    late = asked("n0", at_s=1.0, tenant="n")
    start = [RULES, READY, *crowd("f"), *in_turns("f0"), late]
    assert not any("first turn" in line for line in check([*start, *in_turns("f1", "n0"), STOPPED]))
    found = check([*start, *in_turns("f1", "f2", "f3", "f4", "n0"), STOPPED])
    assert any("n: waited for its first turn while f was started" in line for line in found)
