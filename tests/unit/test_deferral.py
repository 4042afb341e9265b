"""Batch-class work waits for cheaper hours: in time, bounded, planned anew where things change, and always answered."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.actions import Action, Dispatch, Finish, Reject
from scheduler.core.admission import Limits
from scheduler.core.price_clock import EnergyPrices
from scheduler.core.price_plan import SLICE_S, DeferralRules
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Band, DataClass, Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.core.steps import Steps
from tests.core_words import MODEL, assert_idle, curves, of_kind, progress, request, thorough, usage, view
from workers.types import WorkerState

HOUR = 3_600.0
NIGHT = Steps.of(80.0, [(10 * HOUR, 30.0), (18 * HOUR, 80.0)])


def core_with(
    prices: Steps[float] = NIGHT, *, num_workers: int = 1, rules: Rules | None = None, **limits: object
) -> Scheduler:
    core = Scheduler(models=(MODEL,), rules=rules, limits=Limits(lost_s=1e9, silent_s=1e9, **limits))  # type: ignore[arg-type]
    core.set_energy_prices(EnergyPrices(nano_per_joule={"local": prices}), 0.0)
    for number in range(num_workers):
        core.on_worker_report(view(f"w{number}", curves=curves(), max_running=100, kv_tokens=100_000), 0.0)
    return core


def batch(name: str = "r", *, hours: float = 24, at_s: float = 0.0, **values: object) -> Request:
    fields: dict[str, object] = {
        "band": Band.FLEX,
        "deadline_s": at_s + hours * HOUR,
        "is_deferrable": True,
        "arrival_s": at_s,
        **values,
    }
    return request(name, **fields)


def submitted(core: Scheduler, *requests: Request, at_s: float = 0.0) -> list[str]:
    """Ids of those that began at once."""
    return [each.request_id for one in requests for each in of_kind(core.submit(one, at_s), Dispatch)]


def begun(core: Scheduler, at_s: float) -> list[str]:
    return [each.request_id for each in of_kind(core.tick(at_s), Dispatch)]


def until_s(core: Scheduler, name: str = "r") -> float:
    story = core.explain(name)
    assert story is not None
    found: float = story["deferral"]["until_s"]
    return found


def test_a_batch_with_a_deadline_waits_for_the_night() -> None:
    """And begins with it, on the tick."""
    core = core_with()
    assert [] == submitted(core, batch())
    assert [[], [], ["r"]] == [begun(core, at_s) for at_s in (HOUR, 10 * HOUR - 0.1, 10 * HOUR)]
    core.on_finished(usage("r-1"), 10 * HOUR + 1)
    assert_idle(core)


@pytest.mark.parametrize(
    "values",
    [
        {"band": Band.DEFAULT},
        {"is_deferrable": False},
        {"deadline_s": None},
        {"deadline_s": 10 * HOUR + 1_000},
        {"deadline_s": 60.0},
    ],
    ids=["interactive", "deadline not stated", "no deadline", "night comes too late", "impossible"],
)
def test_the_rest_begins_at_once(values: dict[str, object]) -> None:
    """Whoever did not ask to wait, or cannot."""
    assert ["r"] == submitted(core_with(), batch(**values))


@pytest.mark.parametrize(
    ("prices", "at_s"),
    [(Steps.always(80.0), 0.0), (NIGHT, 11 * HOUR), (Steps.of(30.0, [(HOUR, 80.0)]), 0.0)],
    ids=["flat", "in the night", "it gets dearer"],
)
def test_nobody_waits_where_now_is_cheapest(prices: Steps[float], at_s: float) -> None:
    """A price that does not change is as good now as ever."""
    assert ["r"] == submitted(core_with(prices), batch(at_s=at_s), at_s=at_s)


def test_without_an_engine_nobody_waits_for_a_price() -> None:
    """What it would take is not known: it waits for the engine, as everybody does."""
    core = core_with(num_workers=0)
    assert [] == submitted(core, batch())
    assert (1, 0) == (len(core.queue), len(core.deferral))


def test_a_parked_engine_counts() -> None:
    """It is woken when there is work."""
    core = core_with(num_workers=0)
    core.on_worker_report(view(curves=curves(), state=WorkerState.PARKED), 0.0)
    submitted(core, batch())
    assert 1 == len(core.deferral)


def test_waiting_for_a_price_is_no_waiting_for_a_worker() -> None:
    """Its time in the queue begins with its hour, its age too, and its first token is due from then on."""
    core = core_with()
    submitted(core, *[request(f"busy{number}") for number in range(100)])
    submitted(core, batch())
    core.tick(10 * HOUR)
    entry = core._entries["r"]
    assert [10 * HOUR] * 3 == [entry.waits_since_s, entry.ages_since_s, entry.promised_from_s]


def test_only_its_deadline_ends_the_wait_of_who_stated_one() -> None:
    """Where engines have no room for hours after all, nothing is won by refusing it earlier."""
    core = core_with(max_wait_s=60.0, sign_timeout_s=1e9, call_lost_s=1e9)
    core.on_worker_report(view("w0", curves=curves(), max_running=4), 0.0)
    submitted(core, *[request(f"busy{number}") for number in range(4)])
    submitted(core, batch(), batch("plain", is_deferrable=False))
    assert ["plain"] == [each.request_id for each in of_kind(core.tick(60.0), Reject)]
    assert [[], []] == [core.tick(at_s) for at_s in (10 * HOUR, 24 * HOUR - 1)]
    assert ["deadline_exceeded"] == [each.rejection.reason for each in of_kind(core.tick(24 * HOUR), Reject)]


def test_as_long_as_no_output_is_known_all_that_it_may_have_is_planned() -> None:
    """Later what outputs have been; never more than it may have."""
    core = core_with()
    submitted(core, batch("a", max_output_tokens=4_000), batch("b", max_output_tokens=400))
    for _ in range(20):
        core.admission.observe_end(request(), usage("x", output_tokens=300))
    submitted(core, batch("c", max_output_tokens=4_000), batch("d", max_output_tokens=400))

    def work_s(name: str) -> float:
        postponed = core._entries[name].postponed
        assert postponed is not None
        return postponed.work_s

    assert work_s("a") > 5 * work_s("b")
    assert work_s("b") > work_s("d")
    assert work_s("c") == work_s("d")


def test_its_story_says_for_what_it_waits_until_when_and_what_that_saves() -> None:
    """In seconds since its arrival."""
    core = core_with()
    submitted(core, batch(at_s=HOUR), at_s=HOUR)
    story = core.explain("r")
    assert story is not None
    latest_s = 24 * HOUR - 1_800 - 2 * (50 * 0.05 + 0.02)
    assert {
        "until_s": 9 * HOUR,
        "latest_start_s": pytest.approx(latest_s, abs=0.1),
        "nano_per_joule_at_once": 80.0,
        "nano_per_joule_then": 30.0,
    } == story["deferral"]
    assert ("waiting", [{"from_s": 0.0, "to_s": None, "cause": "cheaper_hour"}]) == (story["state"], story["waits"])
    core.tick(10 * HOUR)
    story = core.explain("r")
    assert story is not None
    assert ["cheaper_hour", "queued"] == [wait["cause"] for wait in story["waits"]]
    assert 9 * HOUR == story["waits"][0]["to_s"]
    submitted(core, request("now"))
    now = core.explain("now")
    assert now is not None
    assert now["deferral"] is None


@pytest.mark.parametrize("hours", [0.0, 5.0])
def test_who_is_cancelled_while_it_waits_is_answered_once(hours: float) -> None:
    """And its room in the plan is free again."""
    core = core_with()
    submitted(core, batch())
    assert ["client_gone"] == [each.cause for each in of_kind(core.cancel("r", "client_gone", hours * HOUR), Finish)]
    assert [] == begun(core, 11 * HOUR)
    assert (0, 0) == (len(core.deferral), core.num_open)


def test_a_drain_refuses_who_waits_for_a_price_too() -> None:
    """Nobody is left without an answer."""
    core = core_with()
    submitted(core, batch())
    assert ["shutting_down"] == [each.rejection.reason for each in of_kind(core.drain(1.0), Reject)]
    assert 0 == core.num_open


def test_a_deadline_that_passes_ends_the_wait() -> None:
    """The clock may jump over all margins: then it is refused, not forgotten."""
    core = core_with()
    submitted(core, batch())
    assert ["deadline_exceeded"] == [each.rejection.reason for each in of_kind(core.tick(25 * HOUR), Reject)]
    assert (0, 0) == (len(core.deferral), core.num_open)


def test_rules_that_close_every_zone_refuse_who_waits() -> None:
    """As they do who waits for a worker."""
    core = core_with()
    submitted(core, batch(zones=frozenset({"local"})))
    closed = Rules(model_zones={MODEL: frozenset({"elsewhere"})}, zones={"local": DataClass.GENERAL})
    core.on_worker_lost("w0", "gone", 1.0)
    actions = core.reload(closed, 2.0)
    assert [] == of_kind(actions, Reject)  # a worker was seen there: it may come back
    assert 1 == len(core.deferral)


def test_as_many_wait_as_a_band_may_hold_and_the_next_begins_at_once() -> None:
    """In number and in bytes."""
    core = core_with(queue=QueueLimits(max_requests=3, max_bytes=100))
    names = [f"r{number}" for number in range(5)]
    assert ["r3", "r4"] == submitted(core, *[batch(name) for name in names])
    core = core_with(queue=QueueLimits(max_requests=3, max_bytes=100))
    assert ["b"] == submitted(core, batch("a", body_bytes=60), batch("b", body_bytes=60), batch("c", body_bytes=40))


# -- what changes plans


def test_a_price_step_that_nobody_foresaw_makes_now_the_hour() -> None:
    """A new file says that now is as cheap as the night."""
    core = core_with()
    submitted(core, batch())
    cheap_now = EnergyPrices(nano_per_joule={"local": Steps.of(20.0, [(12 * HOUR, 90.0)])})
    assert ["r"] == [each.request_id for each in of_kind(core.set_energy_prices(cheap_now, HOUR), Dispatch)]


def test_a_dearer_night_moves_the_hour() -> None:
    """From the tenth hour to the twentieth."""
    core = core_with()
    submitted(core, batch())
    assert 10 * HOUR == until_s(core)
    later = EnergyPrices(nano_per_joule={"local": Steps.of(80.0, [(20 * HOUR, 30.0)])})
    core.set_energy_prices(later, HOUR)
    assert 20 * HOUR == until_s(core)
    assert [[], ["r"]] == [begun(core, at_s) for at_s in (10 * HOUR, 20 * HOUR)]


def test_prices_that_are_taken_away_let_everybody_begin() -> None:
    """Nothing is waited for that will not come."""
    core = core_with()
    submitted(core, batch())
    assert ["r"] == [each.request_id for each in of_kind(core.set_energy_prices(EnergyPrices(), HOUR), Dispatch)]


def test_wider_margins_move_who_could_wait_before() -> None:
    """A reload plans anew; who cannot wait any more begins with the next tick."""
    core = core_with()
    submitted(core, batch(hours=11))
    assert 1 == len(core.deferral)
    core.reload(Rules(deferral=DeferralRules(margin_s=2 * HOUR)), 1.0)
    assert ["r"] == begun(core, 1.1)


def test_fewer_engines_spread_what_waits_over_more_hours() -> None:
    """Two engines plan four requests in a slice each; one has room for half of it."""
    slices = Steps.of(80.0, [(10 * HOUR, 30.0), (10 * HOUR + 4 * SLICE_S, 80.0)])
    core = core_with(slices, num_workers=2, rules=Rules(deferral=DeferralRules(capacity_ratio=1.0)))
    submitted(core, batch(max_output_tokens=4_000))
    work_s = core._entries["r"].postponed.work_s  # type: ignore[union-attr]
    num = int(4 * SLICE_S / work_s)  # as much as fills one engine for all of the cheap hours
    core = core_with(
        slices,
        num_workers=2,
        rules=Rules(deferral=DeferralRules(capacity_ratio=1.0)),
        queue=QueueLimits(max_requests=10**6),
    )
    names = [f"r{number}" for number in range(num)]
    assert [] == submitted(core, *[batch(name, max_output_tokens=4_000) for name in names])
    two = {until_s(core, name) for name in names}
    core.on_worker_lost("w1", "gone", 1.0)
    core.tick(SLICE_S + 1.0)
    one = {until_s(core, name) for name in names}
    assert (2, 4) == (len(two), len(one))


def test_a_plan_goes_on_after_its_two_days() -> None:
    """Whoever comes on the third day is planned as on the first."""
    days = Steps.of(80.0, [(24 * HOUR * day + hour * HOUR, price) for day in range(9) for hour, price in
                           ((10, 30.0), (18, 80.0))])  # fmt: skip
    core = core_with(days)
    for day in range(8):
        at_s = 24 * HOUR * day + 60.0
        core.on_worker_report(view("w0", curves=curves(), max_running=100, kv_tokens=100_000), at_s)
        core.tick(at_s)
        assert [] == submitted(core, batch(f"r{day}", at_s=at_s), at_s=at_s)
        assert 10 * HOUR - 60.0 == until_s(core, f"r{day}")
        assert [f"r{day}"] == begun(core, 24 * HOUR * day + 10 * HOUR)
        core.on_finished(usage(f"r{day}-1"), 24 * HOUR * day + 11 * HOUR)


def test_those_who_are_due_first_choose_first_when_all_is_planned_anew() -> None:
    """However they came."""
    core = core_with(rules=Rules(deferral=DeferralRules(capacity_ratio=1e-9)))
    submitted(core, batch("late", hours=20), batch("soon", hours=12))
    assert (10 * HOUR, 10 * HOUR + SLICE_S) == (until_s(core, "late"), until_s(core, "soon"))
    core.set_energy_prices(EnergyPrices(nano_per_joule={"local": NIGHT}), 1.0)
    assert (10 * HOUR + SLICE_S, 10 * HOUR) == (until_s(core, "late"), until_s(core, "soon"))


# -- invariants


PRICES = st.lists(st.tuples(st.integers(1, 60), st.integers(-2, 9)), max_size=12, unique_by=lambda each: each[0])


@thorough
@given(
    PRICES,
    st.lists(st.tuples(st.integers(0, 40_000), st.floats(0.1, 30.0)), min_size=1, max_size=25),
    st.lists(st.tuples(st.integers(0, 40_000), PRICES), max_size=2),
    st.floats(0.0, 4_000.0),
)
def test_whatever_prices_do_everybody_begins_by_its_margin_and_is_answered(
    first: list[tuple[int, int]],
    arrivals: list[tuple[int, float]],
    changes: list[tuple[int, list[tuple[int, int]]]],
    margin_s: float,
) -> None:
    """An engine that is never full: nothing but the price keeps anybody waiting."""

    def steps(changes: list[tuple[int, int]]) -> Steps[float]:
        return Steps.of(4.0, [(1_700.0 * at, float(price)) for at, price in sorted(changes)])

    core = core_with(steps(first), rules=Rules(deferral=DeferralRules(margin_s=margin_s)))
    events = sorted(
        [(float(at_s), 1, number) for number, (at_s, _) in enumerate(arrivals)]
        + [(float(at_s), 0, number) for number, (at_s, _) in enumerate(changes)]
    )
    started: dict[str, float] = {}

    def note(actions: list[Action], at_s: float) -> None:
        for each in actions:
            if isinstance(each, Dispatch):
                started[each.request_id] = at_s
                core.on_progress((progress(each.attempt_id),), at_s)
                core.on_finished(usage(each.attempt_id), at_s)

    at_s = 0.0
    while at_s < 160_000.0:
        next_s = events[0][0] if events else at_s + 300.0
        if events and next_s <= at_s + 300.0:
            at_s, kind, number = events.pop(0)
            if kind:
                note(core.submit(batch(f"r{number}", at_s=at_s, hours=arrivals[number][1]), at_s), at_s)
            else:
                prices = EnergyPrices(nano_per_joule={"local": steps(changes[number][1])})
                note(core.set_energy_prices(prices, at_s), at_s)
        else:
            at_s += 300.0
        core.on_worker_report(view("w0", curves=curves(), max_running=100, kv_tokens=100_000), at_s)
        note(core.tick(at_s), at_s)
    assert len(arrivals) == len(started)
    for number, (arrival_s, hours) in enumerate(arrivals):
        latest_s = arrival_s + hours * HOUR - margin_s
        assert started[f"r{number}"] <= max(latest_s, arrival_s) + 300.0
    assert_idle(core)


def test_rules_without_sense_are_a_mistake_of_the_caller() -> None:
    """Operators hear of them where files are read."""
    for values in ({"margin_s": -1.0}, {"margin_ratio": 0.5}, {"capacity_ratio": 0.0}):
        with pytest.raises(AssertionError):
            replace(DeferralRules(), **values)  # type: ignore[arg-type]
