"""One hold over all budgets above a request or none; what is used is never more than what was held."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.core.actions import Rejection, Tokens
from scheduler.core.budget_accounts import ENERGY, Amounts, Budget, BudgetState, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.budgets import Budgets, Granted
from scheduler.core.energy_bounds import EnergyBound
from scheduler.core.request import CostPlus, Rates, Request
from tests.core_words import request, thorough

TENANT, PROJECT, KEY = Level("tenant", "t"), Level("project", "t/p"), Level("key", "k")
TASK = Level("task", "t/nightly")
RATES = Rates(input_nano=1_000_000, cached_nano=250_000, output_nano=4_000_000)
"""A nano a prompt token, four an output token."""
PAID = RATES._replace(plus=CostPlus(gpu_nano_per_s=1_000_000))
"""The same, and a nano a GPU-microsecond."""


def bound(prompt_tokens: int, output_tokens: int) -> EnergyBound:
    """1 mJ a token, 2 µs, 3 µg."""
    tokens = prompt_tokens + output_tokens
    return EnergyBound(tokens, 2 * tokens, 3 * tokens)


def budget(measure: Measure, limit: int, window: str = "1h") -> Budget:
    return Budget(measure, limit, None if measure is Measure.CONCURRENCY else Window.parse(window))


def budgets(*of_tenant: Budget, **others: tuple[Budget, ...]) -> Budgets:
    """Of the tenant, and by the kind of a level."""
    by_kind = {"project": PROJECT, "key": KEY}
    levels = {by_kind[kind]: each for kind, each in others.items() if kind in by_kind}
    task = {"t": others["task"]} if "task" in others else {}
    return Budgets({TENANT: of_tenant, **levels}, task)


def ask(request_id: str = "r", **values: object) -> Request:
    return request(request_id, **{"project": "p", "key_id": "k", "rates": RATES, **values})


def hold(some: Budgets, request_id: str = "r", *, prompt: int = 100, **values: object) -> Granted | Rejection:
    return some.hold(ask(request_id, **values), prompt_tokens=prompt, bound=bound)


def granted_tokens(answer: Granted | Rejection) -> int:
    assert isinstance(answer, Granted), answer
    return answer.output_tokens


def refused(answer: Granted | Rejection) -> Rejection:
    assert isinstance(answer, Rejection), answer
    return answer


def held(some: Budgets) -> dict[str, int]:
    return {measure.value: amount for measure, amount in some.held_total().items() if amount}


def state(some: Budgets, measure: Measure, **values: object) -> BudgetState:
    (found,) = [each for each in some.states(ask(**values)) if each.measure is measure]
    return found


# -- holding


def test_without_budgets_everything_is_granted_at_once() -> None:
    """And nothing is remembered."""
    some = Budgets()
    assert 50 == granted_tokens(hold(some))
    assert 50 == granted_tokens(hold(some, task="nightly"))
    assert 0 == some.num_holds


def test_a_request_without_budgets_above_it_costs_next_to_nothing() -> None:
    """Less than 2 µs; five times that here, for neighbours are on this machine."""
    some = budgets(budget(Measure.TOKENS, 10))
    stranger = ask(tenant="other", key_id="", project="")
    times_s = []
    for _ in range(20):
        began_s = time.perf_counter()
        for _ in range(200):
            some.hold(stranger, prompt_tokens=100, bound=bound)
        times_s.append((time.perf_counter() - began_s) / 200)
    assert min(times_s) < 10e-6


def test_every_measure_is_held_at_its_worst_case() -> None:
    """All of the prompt, all of the output of all sequences, and no token from a cache."""
    some = budgets(*(budget(measure, 10**9) for measure in Measure))
    assert 50 == granted_tokens(hold(some, num_sequences=2))
    assert held(some) == {
        "tokens": 200,
        "input_tokens": 100,
        "cached_tokens": 100,
        "output_tokens": 100,
        "money_nano": 100 + 4 * 100,
        "energy_mj": 150,
        "gpu_us": 300,
        "carbon_ug": 450,
        "requests": 1,
        "concurrency": 1,
    }


def test_money_is_held_at_the_dearer_rate_of_a_prompt() -> None:
    """A cached token may cost more than another; whatever is found cached, the hold covers it."""
    some = budgets(budget(Measure.MONEY_NANO, 10**9))
    hold(some, rates=Rates(1_000_000, 3_000_000, 0))
    assert {"money_nano": 300} == held(some)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_one_hold_over_all_levels_or_none(level: int) -> None:
    """A shortage on any of them leaves all as they were, and is named."""
    limits = [10**6] * 4
    limits[level] = 100
    of = [(budget(Measure.TOKENS, limit),) for limit in limits]
    some = budgets(*of[0], project=of[1], key=of[2], task=of[3])
    shortage = refused(hold(some, task="nightly")).shortage
    assert shortage is not None
    assert ("tenant t", "project t/p", "key k", "task t/nightly")[level] == shortage.level
    assert ({}, 0) == (held(some), some.num_holds)
    assert 50 == granted_tokens(hold(some, prompt=50, task="nightly"))
    assert {"tokens": 400} == held(some)


def test_a_check_says_what_a_hold_would() -> None:
    """And holds nothing, not even a task's name."""
    some = budgets(budget(Measure.TOKENS, 130), task=(budget(Measure.REQUESTS, 5),))
    first, second = ask(task="nightly"), ask(prompt_tokens_bound=200)
    assert 30 == granted_tokens(some.check(first, prompt_tokens=100, bound=bound))
    assert isinstance(some.check(second, prompt_tokens=200, bound=bound), Rejection)
    assert ({}, 0, 0) == (held(some), some.num_holds, len(some._tasks))


def test_what_only_counts_tokens_holds_nothing() -> None:
    """It decides whether a hold is possible."""
    some = budgets(budget(Measure.TOKENS, 0))
    assert 50 == granted_tokens(hold(some, is_counting=True))
    assert 0 == some.num_holds


# -- the cap


@pytest.mark.parametrize(
    ("measure", "limit", "granted"),
    [
        (Measure.TOKENS, 100 + 2 * 7 + 1, 7),
        (Measure.OUTPUT_TOKENS, 2 * 7 + 1, 7),
        (Measure.MONEY_NANO, 100 + 4 * 2 * 7 + 3, 7),
        (Measure.ENERGY_MJ, 107, 7),
        (Measure.INPUT_TOKENS, 100, 50),
    ],
)
def test_the_output_is_capped_to_what_the_budget_covers(measure: Measure, limit: int, granted: int) -> None:
    """To the last whole token of each sequence."""
    some = budgets(budget(measure, limit))
    assert granted == granted_tokens(hold(some, num_sequences=2))


@thorough
@given(
    limits=st.tuples(st.integers(0, 300), st.integers(0, 1_000), st.integers(0, 300)),
    prompt=st.integers(0, 150),
    most=st.integers(0, 60),
    sequences=st.integers(1, 3),
)
def test_the_cap_is_the_largest_output_that_everything_covers(
    limits: tuple[int, int, int], prompt: int, most: int, sequences: int
) -> None:
    """Against trying every one."""

    def covers(prompt: int, output: int) -> bool:
        tokens = prompt + output * sequences
        return tokens <= limits[0] and prompt + 4 * output * sequences <= limits[1] and prompt + output <= limits[2]

    some = budgets(
        budget(Measure.TOKENS, limits[0]),
        project=(budget(Measure.MONEY_NANO, limits[1]),),
        key=(budget(Measure.ENERGY_MJ, limits[2]),),
    )
    answer = hold(some, prompt=prompt, max_output_tokens=most, num_sequences=sequences)
    possible = [output for output in range(min(most, 1), most + 1) if covers(prompt, output)]
    if possible:
        assert max(possible) == granted_tokens(answer)
        return
    shortage = refused(answer).shortage
    assert shortage is not None
    prompts = [each for each in range(1, prompt) if covers(each, min(most, 1))]
    assert (max(prompts) if prompts else None) == shortage.fits_prompt_tokens


def test_a_token_of_each_sequence_is_the_least() -> None:
    """Less is a refusal; where nothing is generated 0 is enough."""
    some = budgets(budget(Measure.OUTPUT_TOKENS, 2))
    assert 3 == getattr(refused(hold(some, num_sequences=3)).shortage, "needed", None)
    assert 1 == granted_tokens(hold(some, num_sequences=2))
    assert 0 == granted_tokens(hold(some, "embed", max_output_tokens=0))


def test_a_smaller_prompt_that_would_fit_is_told() -> None:
    """Worth counting the real one: 89 tokens and one of output are 90."""
    some = budgets(budget(Measure.TOKENS, 90))
    shortage = refused(hold(some)).shortage
    assert shortage is not None
    assert (90, 101, 89) == (shortage.left, shortage.needed, shortage.fits_prompt_tokens)
    some = budgets(budget(Measure.TOKENS, 90), budget(Measure.REQUESTS, 0))
    assert getattr(refused(hold(some)).shortage, "fits_prompt_tokens", 0) is None


def test_a_limit_of_nothing_refuses_what_would_use_any_of_it() -> None:
    """What costs nothing passes a budget of no money."""
    some = budgets(budget(Measure.MONEY_NANO, 0))
    assert refused(hold(some)).should_retry is False
    assert 50 == granted_tokens(hold(some, rates=Rates()))
    assert refused(hold(budgets(budget(Measure.CONCURRENCY, 0)))).should_retry is False


# -- the prompt is known


def test_the_bound_of_a_prompt_is_trimmed_by_what_was_counted() -> None:
    """In every measure it was held in; the cap of the output stays."""
    some = budgets(*(budget(measure, 10**9) for measure in Measure))
    hold(some)
    some.trim("r", 30)
    assert (80, 30, 30, 50, 30 + 200, 80, 160, 240) == tuple(some.held_total().values())[:8]
    some.trim("r", 90)
    assert 30 == some.held_total()[Measure.INPUT_TOKENS]
    some.trim("unknown", 1)


def test_several_sequences_are_not_trimmed() -> None:
    """The first of them says nothing of the others' prompts."""
    some = budgets(budget(Measure.TOKENS, 10**9))
    hold(some, num_sequences=2)
    some.trim("r", 30)
    assert {"tokens": 200} == held(some)


# -- charging


def test_a_charge_turns_hold_into_use_and_the_end_gives_back_the_rest() -> None:
    """Tokens, money and the request itself; concurrency comes back."""
    some = budgets(*(budget(each, 1_000) for each in sorted(set(Measure) - ENERGY)))
    hold(some)
    some.charge("r", "r-1", Tokens(input_tokens=80, cached_tokens=20, output_tokens=10), 105)
    assert 1 == some.held_total()[Measure.CONCURRENCY]
    some.end("r")
    assert ({}, 0) == (held(some), some.num_holds)
    assert {
        "tokens": 90, "input_tokens": 80, "cached_tokens": 20, "output_tokens": 10, "money_nano": 105, "requests": 1,
        "concurrency": 0,
    } == {each.measure.value: each.used for each in some.states(ask())}  # fmt: skip


def test_an_attempt_is_charged_once() -> None:
    """And a request counts once, however many attempts it pays for."""
    some = budgets(budget(Measure.TOKENS, 1_000), budget(Measure.REQUESTS, 10))
    hold(some)
    for attempt_id in ("r-1", "r-1", "r-2"):
        some.charge("r", attempt_id, Tokens(input_tokens=10, output_tokens=5), 0)
    some.end("r")
    some.charge("r", "r-3", Tokens(input_tokens=10, output_tokens=5), 0)
    assert [30, 1] == [each.used for each in some.states(ask())]


def test_no_more_than_the_hold_is_ever_taken() -> None:
    """An engine that lies, or a second attempt that is charged as well: the rest is counted as excess."""
    some = budgets(budget(Measure.TOKENS, 150))
    hold(some)
    some.charge("r", "r-1", Tokens(input_tokens=120, output_tokens=50), 0)
    some.charge("r", "r-2", Tokens(output_tokens=1), 0)
    assert 0 == state(some, Measure.TOKENS).left
    assert ({"input_tokens": 1, "output_tokens": 1}, {"input_tokens": 20, "output_tokens": 1}) == (
        some.excess.times,
        some.excess.amounts,
    )


def test_a_request_that_was_never_charged_does_not_count() -> None:
    """Refused by the queue, or all in vain: everything comes back."""
    some = budgets(budget(Measure.TOKENS, 1_000), budget(Measure.REQUESTS, 1), budget(Measure.ENERGY_MJ, 1_000))
    hold(some)
    some.end("r")
    some.end("r")
    assert [(0, 0)] * 3 == [(each.used, each.held) for each in some.states(ask())]
    assert 0 == some.num_holds


def test_a_charge_belongs_to_the_window_of_its_admission() -> None:
    """Admitted in the last second of a window, ended in the next one."""
    some = budgets(budget(Measure.TOKENS, 150, "calendar minute"))
    hold(some, arrival_unix_s=59.9)
    assert 50 == granted_tokens(hold(some, "later", arrival_unix_s=60.0))
    some.charge("r", "r-1", Tokens(input_tokens=100, output_tokens=50), 0)
    some.end("r")
    assert (0, 150) == state(some, Measure.TOKENS, arrival_unix_s=60.0)[4:6]


# -- energy


def test_energy_stays_held_until_it_is_measured() -> None:
    """What was measured is used, the rest comes back."""
    some = budgets(budget(Measure.ENERGY_MJ, 200))
    hold(some)
    some.charge("r", "r-1", Tokens(input_tokens=100, output_tokens=50), 0)
    some.end("r")
    assert (0, 150) == state(some, Measure.ENERGY_MJ)[4:6]
    some.post("r-1", EnergyBound(120, 0, 0))
    assert (120, 0) == state(some, Measure.ENERGY_MJ)[4:6]
    assert (0, 1, {}) == (some.num_holds, some.excess.num_posted, some.excess.times)


def test_energy_beyond_the_hold_is_the_operators_and_counted() -> None:
    """The budget is charged what was held, no more."""
    some = budgets(budget(Measure.ENERGY_MJ, 200), budget(Measure.CARBON_UG, 1_000))
    hold(some)
    some.charge("r", "r-1", Tokens(), 0)
    for _ in range(2):  # a second word changes nothing
        some.post("r-1", EnergyBound(180, 300, 500))
    some.end("r")
    assert [(150, 0), (450, 0)] == [(each.used, each.held) for each in some.states(ask())]
    assert ({"energy_mj": 1, "carbon_ug": 1}, {"energy_mj": 30, "carbon_ug": 50}) == (
        some.excess.times,
        some.excess.amounts,
    )


def test_energy_comes_back_as_soon_as_the_last_attempt_is_measured() -> None:
    """Of one that was given up nothing may have been measured."""
    some = budgets(budget(Measure.GPU_US, 1_000))
    hold(some)
    for attempt_id in ("r-1", "r-2"):
        some.charge("r", attempt_id, Tokens(), 0)
    some.end("r")
    some.post("r-1", EnergyBound(0, 40, 0))
    assert (40, 260) == state(some, Measure.GPU_US)[4:6]
    some.post("r-2", EnergyBound())
    assert (40, 0, 0) == (*state(some, Measure.GPU_US)[4:6], some.num_holds)


def test_an_attempt_that_was_never_charged_posts_nothing() -> None:
    """The operator's, or one without a budget of energy above it."""
    some = budgets(budget(Measure.TOKENS, 1_000))
    hold(some)
    some.charge("r", "r-1", Tokens(), 0)
    some.end("r")
    some.post("r-1", EnergyBound(10**6, 0, 0))
    assert 0 == some.excess.num_posted


def test_the_bound_of_energy_is_asked_only_where_a_budget_needs_it() -> None:
    """It costs time."""

    def never(prompt_tokens: int, output_tokens: int) -> EnergyBound:
        raise AssertionError

    some = budgets(budget(Measure.TOKENS, 120))
    assert 20 == granted_tokens(some.hold(ask(), prompt_tokens=100, bound=never))
    some.trim("r", 10)


# -- cost-plus: money for energy


@pytest.mark.parametrize(
    ("estimate", "difference", "is_over"), [(50, 40, True), (50, -50, True), (300, 0, True), (0, 300, False)]
)
def test_money_for_energy_stays_held_until_it_is_measured(estimate: int, difference: int, is_over: bool) -> None:
    """The estimate is used at once, the difference when the energy is there; whatever comes first, nothing stays."""
    some = budgets(budget(Measure.MONEY_NANO, 1_000))
    hold(some, rates=PAID)
    assert (0, 100 + 200 + 300) == state(some, Measure.MONEY_NANO)[4:6]
    some.charge("r", "r-1", Tokens(input_tokens=100, output_tokens=10), 140 + estimate)
    if is_over:
        some.end("r")
        still = min(300, 600 - 140 - estimate)
        assert (140 + estimate, still) == state(some, Measure.MONEY_NANO)[4:6]
    some.post("r-1", EnergyBound(0, estimate + difference, 0), money_nano=difference)
    some.end("r")
    assert (140 + estimate + difference, 0) == state(some, Measure.MONEY_NANO)[4:6]
    assert 0 == some.num_holds


def test_money_for_energy_never_overspends() -> None:
    """What an attempt took beyond its hold is counted, and the budget pays no more than was held."""
    some = budgets(budget(Measure.MONEY_NANO, 600))
    hold(some, rates=PAID)
    some.charge("r", "r-1", Tokens(input_tokens=100, output_tokens=50), 300)
    some.end("r")
    assert "money_nano" == getattr(refused(hold(some, "next", rates=PAID)).shortage, "measure", "")
    some.post("r-1", EnergyBound(0, 400, 0), money_nano=400)
    assert (600, 0, 100) == (*state(some, Measure.MONEY_NANO)[4:6], some.excess.amounts["money_nano"])


def test_a_prompt_that_was_counted_gives_back_its_money_for_energy() -> None:
    """And what stays held covers the rest."""
    some = budgets(budget(Measure.MONEY_NANO, 1_000))
    hold(some, rates=PAID)
    some.trim("r", 40)
    assert (0, 40 + 200 + 180) == state(some, Measure.MONEY_NANO)[4:6]
    some.charge("r", "r-1", Tokens(input_tokens=40), 40)
    some.end("r")
    assert (40, 180) == state(some, Measure.MONEY_NANO)[4:6]


def test_money_that_was_charged_beyond_its_hold_does_not_come_back() -> None:
    """It never was in the budget."""
    some = budgets(budget(Measure.MONEY_NANO, 1_000))
    hold(some, rates=PAID)
    some.charge("r", "r-1", Tokens(), 10_000)
    some.post("r-1", EnergyBound(), money_nano=-10_000)
    some.end("r")
    assert (0, 0) == state(some, Measure.MONEY_NANO)[4:6]


# -- tasks


def test_calls_of_one_task_share_one_total() -> None:
    """Of their tenant; another task has its own."""
    some = budgets(task=(budget(Measure.TOKENS, 250, "total"),))
    assert 50 == granted_tokens(hold(some, "a", task="nightly"))
    assert "task t/nightly" == getattr(refused(hold(some, "b", task="nightly")).shortage, "level", "")
    assert 50 == granted_tokens(hold(some, "c", task="other"))
    assert 50 == granted_tokens(hold(some, "d"))


def test_a_tenant_has_so_many_tasks_and_no_more() -> None:
    """A task of which something counts is never forgotten for a new one."""
    some = Budgets({}, {"t": (budget(Measure.REQUESTS, 1, "total"),)}, max_tasks_per_tenant=2)
    for task in ("a", "b"):
        hold(some, task, task=task)
    assert "too_many_tasks" == refused(hold(some, "c", task="c")).reason
    some.end("a")
    assert 50 == granted_tokens(hold(some, "c", task="c", arrival_unix_s=1.0))
    assert "too_many_tasks" == refused(hold(some, "d", task="a", arrival_unix_s=2.0)).reason


# -- reload


def test_other_limits_hold_at_once_and_leave_what_runs() -> None:
    """More or less; what was held comes back to where it was taken."""
    some = budgets(budget(Measure.TOKENS, 200), key=(budget(Measure.TOKENS, 1_000),))
    hold(some)
    some.reload({TENANT: (budget(Measure.TOKENS, 50), budget(Measure.REQUESTS, 1))}, {})
    assert ["tokens", "requests"] == [each.measure.value for each in some.states(ask())]
    assert (0, 150, 0) == state(some, Measure.TOKENS)[4:7]
    some.charge("r", "r-1", Tokens(input_tokens=20), 0)
    some.end("r")
    assert (20, 0, 30) == state(some, Measure.TOKENS)[4:7]
    assert 50 == granted_tokens(hold(some, "next", prompt=0, max_output_tokens=50, tenant="other"))


# -- reading


def test_states_are_told_from_the_tenant_down() -> None:
    """Those of a task that holds nothing yet as well."""
    one = (budget(Measure.TOKENS, 1_000),)
    some = budgets(*one, project=one, key=one, task=one)
    assert [TENANT, PROJECT, KEY, TASK] == [each.level for each in some.states(ask(task="nightly"))]
    assert 0 == len(some._tasks)


def test_a_window_is_told_as_it_is_written_now() -> None:
    """It may mean the same as before in other words, and keeps what it counted."""
    some = budgets(budget(Measure.TOKENS, 1_000, "60m"))
    hold(some)
    some.reload({TENANT: (budget(Measure.TOKENS, 2_000, "1h"),)}, {})
    (told,) = some.states(ask())
    assert ("1h", 2_000, 150) == (told.window, told.limit, told.held)


def test_budgets_near_their_limit_the_fullest_first() -> None:
    """From four fifths on; one of which nothing is used or held is none, whatever its limit."""
    some = budgets(
        budget(Measure.TOKENS, 150),
        budget(Measure.INPUT_TOKENS, 120),
        budget(Measure.OUTPUT_TOKENS, 500),
        key=(budget(Measure.CARBON_UG, 0, "total"),),
    )
    some.hold(ask(), prompt_tokens=100, bound=lambda *_: EnergyBound())
    assert ["tokens", "input_tokens"] == [each.measure.value for each in some.near_limit(0.0)]
    assert ["tokens"] == [each.measure.value for each in some.near_limit(0.0, most=1)]
    assert 3 == len(some.near_limit(0.0, ratio=0.1))
    assert [] == some.near_limit(10**6)


def test_the_tightest_budget_of_each_measure_is_the_one_that_refuses_next() -> None:
    """Whatever its level; as it stands at the moment that is asked for, which may lie in another window."""
    some = budgets(
        budget(Measure.TOKENS, 1_000, "total"),
        budget(Measure.ENERGY_MJ, 10**6),
        key=(budget(Measure.TOKENS, 900, "calendar minute"), budget(Measure.REQUESTS, 60)),
    )
    hold(some, arrival_unix_s=30.0)
    asked = ask("next", arrival_unix_s=30.0)
    measures = (Measure.REQUESTS, Measure.TOKENS, Measure.MONEY_NANO)
    assert [(KEY, 59), (KEY, 750)] == [(each.level, each.left) for each in some.tightest(asked, 30.0, measures)]
    some.charge("r", "r-1", Tokens(input_tokens=100, output_tokens=50), 0)
    some.end("r")
    assert [(KEY, 59), (TENANT, 850)] == [(each.level, each.left) for each in some.tightest(asked, 60.0, measures)]
    assert [] == some.tightest(ask(tenant="nobody", key_id="none", project=""), 0.0, measures)


def test_what_a_request_held_and_used_is_told_by_budget() -> None:
    """Plain values, also after its end."""
    some = budgets(budget(Measure.TOKENS, 1_000, "calendar day"), key=(budget(Measure.CONCURRENCY, 3),))
    granted = hold(some)
    assert isinstance(granted, Granted)
    assert granted.hold is not None
    some.trim("r", 50)
    some.charge("r", "r-1", Tokens(input_tokens=50, output_tokens=10), 0)
    assert [
        {
            "level": "tenant t",
            "measure": "tokens",
            "window": "calendar day",
            "limit": 1_000,
            "held": 150,
            "settled": 60,
        },
        {"level": "key k", "measure": "concurrency", "window": "", "limit": 3, "held": 1, "settled": 0},
    ] == granted.hold.told()
    some.end("r")
    assert [60, 0] == [each["settled"] for each in granted.hold.told()]


# -- whatever happens in which order


class AnyOrder(RuleBasedStateMachine):
    """Requests of two keys hold, are trimmed, charged, ended, measured or not, in any order, while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.num_requests = 0
        self.open: list[str] = []
        self.unposted: list[str] = []

    @initialize(limits=st.lists(st.integers(0, 700), min_size=10, max_size=10), window=st.sampled_from(["1m", "total"]))
    def begin(self, limits: list[int], window: str) -> None:
        of = tuple(budget(each, limit, window) for each, limit in zip(Measure, limits, strict=True))
        self.limits, self.window = limits, window
        self.budgets = budgets(*of, key=of[5:], task=of[:3])

    def some(self, among: list[str], place: int) -> str | None:
        return among[place % len(among)] if among else None

    @rule(
        prompt=st.integers(0, 200),
        most=st.integers(0, 80),
        sequences=st.integers(1, 2),
        key=st.sampled_from(["k", "j"]),
        task=st.sampled_from(["", "a"]),
        rates=st.sampled_from([RATES, PAID]),
    )
    def hold(self, prompt: int, most: int, sequences: int, key: str, task: str, rates: Rates) -> None:
        self.num_requests += 1
        name = f"r{self.num_requests}"
        before = self.budgets.held_total()
        asked = ask(
            name, max_output_tokens=most, num_sequences=sequences, key_id=key, task=task, arrival_unix_s=self.now_s,
            rates=rates,
        )  # fmt: skip
        answer = self.budgets.hold(asked, prompt_tokens=prompt, bound=bound)
        if isinstance(answer, Granted):
            self.open.append(name)
            assert min(most, 1) <= answer.output_tokens <= most
        elif self.now_s == 0.0:
            assert before == self.budgets.held_total()

    @rule(place=st.integers(0, 99), prompt=st.integers(0, 200))
    def trim(self, place: int, prompt: int) -> None:
        if name := self.some(self.open, place):
            self.budgets.trim(name, prompt)

    @rule(place=st.integers(0, 99), parts=st.tuples(*[st.integers(0, 250)] * 3), number=st.integers(1, 2))
    def charge(self, place: int, parts: tuple[int, int, int], number: int) -> None:
        if name := self.some(self.open, place):
            tokens = Tokens(input_tokens=parts[0], cached_tokens=min(parts[:2]), output_tokens=parts[2])
            self.budgets.charge(name, f"{name}-{number}", tokens, parts[0] + parts[1])
            self.unposted.append(f"{name}-{number}")

    @rule(place=st.integers(0, 99))
    def end(self, place: int) -> None:
        if name := self.some(self.open, place):
            self.open.remove(name)
            self.budgets.end(name)

    @rule(place=st.integers(0, 99), amounts=st.tuples(*[st.integers(0, 400)] * 3), money=st.integers(-300, 300))
    def post(self, place: int, amounts: tuple[int, int, int], money: int) -> None:
        if name := self.some(self.unposted, place):
            self.unposted.remove(name)
            self.budgets.post(name, EnergyBound(*amounts), money_nano=money)

    @rule(by_s=st.floats(-30, 90))
    def wait(self, by_s: float) -> None:
        self.now_s = max(self.now_s + by_s, 0.0)

    @rule(limits=st.lists(st.integers(0, 900), min_size=10, max_size=10))
    def reload(self, limits: list[int]) -> None:
        """To more: less would leave more used than the limit, as it should."""
        self.limits = [max(pair) for pair in zip(self.limits, limits, strict=True)]
        of = tuple(budget(each, limit, self.window) for each, limit in zip(Measure, self.limits, strict=True))
        self.budgets.reload({TENANT: of, KEY: of[5:]}, {"t": of[:3]})

    @invariant()
    def nothing_is_overspent(self) -> None:
        for account in self.budgets._all():
            assert min(account.used, account.held) >= 0
            assert account.used + account.held <= account.limit

    def teardown(self) -> None:
        """After everything ended and was measured nothing is held."""
        for name in self.open:
            self.budgets.end(name)
        for name in self.unposted:
            self.budgets.post(name, EnergyBound())
        assert ({}, 0) == (held(self.budgets), self.budgets.num_holds)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = thorough


# -- over a restart


ALL = tuple(budget(measure, 10**9) for measure in Measure if measure is not Measure.CONCURRENCY)


def everywhere() -> Budgets:
    """Every measure on every level."""
    return budgets(*ALL, project=ALL, key=ALL, task=ALL)


def told(some: Budgets, at_unix_s: float) -> list[BudgetState]:
    return some.states(ask(task="nightly", arrival_unix_s=at_unix_s))


@thorough
@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 100), st.integers(0, 50), st.booleans(), st.lists(st.integers(0, 100), max_size=2),
            st.integers(0, 3 * 3600),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_what_was_used_is_restored_request_by_request_or_all_at_once(
    requests: list[tuple[int, int, bool, list[int], int]],
) -> None:
    """Live, by replaying what was charged and measured, or from what was saved: the same on every level."""
    live, replayed = everywhere(), everywhere()
    in_order = sorted(requests, key=lambda each: each[-1])
    for number, (prompt, output, is_charged, energies, arrival_s) in enumerate(in_order):
        asked = ask(f"r{number}", task="nightly", arrival_unix_s=float(arrival_s))
        assert isinstance(live.hold(asked, prompt_tokens=100, bound=bound), Granted)
        tokens = Tokens(input_tokens=prompt, output_tokens=output)
        money_nano = RATES.cost_nano(input_tokens=prompt, cached_tokens=0, output_tokens=output)
        if is_charged:
            live.charge(f"r{number}", f"r{number}-1", tokens, money_nano)
            replayed.restore(asked, Amounts(prompt, 0, output, money_nano), num_requests=1)
        live.end(f"r{number}")
        for energy_mj in energies[: is_charged + 0]:
            carried = live.post(f"r{number}-1", EnergyBound(energy_mj, energy_mj, energy_mj))
            replayed.restore(asked, Amounts(**carried._asdict()))
        if is_charged and not energies:
            live.post(f"r{number}-1", EnergyBound())
    saved = everywhere()
    saved.put_back(live.used())
    for at_unix_s in (max([0.0, *(each[-1] for each in requests)]), 4 * 3600.0):
        assert told(live, at_unix_s) == told(replayed, at_unix_s) == told(saved, at_unix_s)
    assert {} == held(saved)


def test_what_was_used_of_a_budget_that_is_gone_is_not_kept() -> None:
    """Of another measure, another window, another level; a task without a budget is none."""
    first = everywhere()
    first.restore(ask(task="nightly"), Amounts(10, 0, 5, 7), num_requests=1)
    second = budgets(budget(Measure.TOKENS, 100, "2h"), budget(Measure.REQUESTS, 100), key=(budget(Measure.TOKENS, 9),))
    second.put_back(first.used())
    assert {("tenant", "tokens"): 0, ("tenant", "requests"): 1, ("key", "tokens"): 15} == {
        (each.level.kind, each.measure.value): each.used for each in second.states(ask(task="nightly"))
    }
    assert not len(second._tasks)


def test_a_window_is_the_same_however_it_is_written() -> None:
    """And what was used of it counts on."""
    first, second = budgets(budget(Measure.TOKENS, 100, "60m")), budgets(budget(Measure.TOKENS, 100, "1h"))
    first.restore(ask(), Amounts(10, 0, 5))
    second.put_back(first.used())
    assert 15 == state(second, Measure.TOKENS).used


def test_the_most_that_somebody_may_still_cost_is_held_until_it_is_known() -> None:
    """Of money alone, on every level; it is in no state."""
    some = everywhere()
    release = some.reserve(ask(task="nightly"), 70)
    assert {"money_nano": 280} == held(some)
    assert [] == some.used()
    refusal_of = budgets(budget(Measure.MONEY_NANO, 100))
    held_back = refusal_of.reserve(ask(), 100)
    assert Measure.MONEY_NANO == refused(hold(refusal_of)).shortage.measure  # type: ignore[union-attr]
    held_back()
    release()
    assert ({}, {}) == (held(some), held(refusal_of))
