"""The judge of the budget race: it sees each thing that must not be."""

from typing import Any

import pytest

from benchmarks.budget_race import Limit, Racer, check_refusal, judged, race_configuration, racers, spent

TOKENS = Limit(level="tenant t", measure="tokens", window="total", limit=100)
BUDGET = {"level": "tenant t", "measure": "tokens", "window": "total", "limit": 100, "left": 3, "needed": 5}
QUOTA = {
    "code": "insufficient_quota", "type": "insufficient_quota", "message": "The budget of tenant t is …",
    "budget": BUDGET,
}  # fmt: skip
RATE = {**QUOTA, "code": "rate_limit_exceeded", "type": "tokens"}
NO_RETRY, SOON = {"x-should-retry": "false"}, {"retry-after": "1"}


def racer() -> Racer:
    return Racer(name="t", key="k", limits=(TOKENS,), last={**BUDGET, "left": 3})


def row(**values: int) -> dict[str, Any]:
    return {"tenant": "t", "input_tokens": 60, "output_tokens": 37, "cost_nano": 0, **values}


def snapshot(held: int = 0, **values: Any) -> dict[str, Any]:
    state = {"num_open": 0, "num_running": 0, "open_attempts": 0, "budget_held": {"tokens": held}}
    return {**state, "tenants": [row()], **values}


def problems(who: Racer, *, after_race: dict[str, Any] | None = None, last: dict[str, Any] | None = None) -> list[str]:
    found: list[str] = judged([who], [after_race or snapshot(), last or snapshot()])["problems"]
    return found


def test_a_race_in_which_all_went_well_has_no_problem() -> None:
    """What was spent and what was told to be left are the limit together."""
    assert [] == problems(racer())


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"tenants": [row(output_tokens=41)]}, "1 tokens overspent"),
        ({"tenants": [row(output_tokens=36)]}, "told 3 left"),
        ({"held": 2}, "held tokens is 2"),
        ({"num_running": 1}, "num_running is 1"),
    ],
)
def test_each_thing_that_must_not_be_is_a_problem(last: dict[str, Any], words: str) -> None:
    """One token too many, one that nobody has, one that stays held."""
    assert any(words in problem for problem in problems(racer(), last=snapshot(**last)))


def test_holds_are_judged_after_the_race_too() -> None:
    """Not only when everything was asked again."""
    assert any("after the race held tokens" in problem for problem in problems(racer(), after_race=snapshot(held=1)))


@pytest.mark.parametrize("word", ["broken:OSError", "status:500", "timeout", "cut"])
def test_an_answer_that_was_none_is_a_problem(word: str) -> None:
    """Neither served nor refused."""
    who = racer()
    who.ended[word] += 1
    assert [f"1 requests ended {word}"] == problems(who)


def test_a_budget_that_refused_nobody_shows_nothing() -> None:
    """The race was not run to its end."""
    who = racer()
    who.last = {}
    assert ["t: never refused"] == problems(who)


def test_clients_get_no_token_that_is_not_charged() -> None:
    """Answers are counted on both sides."""
    who = racer()
    who.output_tokens = 38
    assert ["t: clients were given more tokens than were charged"] == problems(who)


@pytest.mark.parametrize(("error", "headers"), [(QUOTA, NO_RETRY), (RATE, SOON)])
def test_a_right_refusal_is_one(error: dict[str, Any], headers: dict[str, str]) -> None:
    """Both kinds."""
    who = racer()
    assert error["code"] == check_refusal(who, error, headers)
    assert [] == who.wrong


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (QUOTA, {}),
        (QUOTA, SOON),
        (RATE, {}),
        (RATE, {**SOON, **NO_RETRY}),
        ({**QUOTA, "type": "tokens"}, NO_RETRY),
        ({**QUOTA, "code": "queue_full"}, NO_RETRY),
        ({**QUOTA, "message": "No."}, NO_RETRY),
        ({key: value for key, value in QUOTA.items() if key != "budget"}, NO_RETRY),
        *(
            ({**QUOTA, "budget": {**BUDGET, name: value}}, NO_RETRY)
            for name, value in (("level", "tenant u"), ("limit", 99), ("window", "1h"), ("left", 5), ("left", -1))
        ),
    ],
)
def test_a_wrong_refusal_is_seen(error: dict[str, Any], headers: dict[str, str]) -> None:
    """Whatever of it is wrong."""
    who = racer()
    check_refusal(who, error, headers)
    assert who.wrong


def test_racers_have_budgets_of_every_kind_at_every_level() -> None:
    """And the configuration says them."""
    who = racers(10)
    limits = [limit for each in who for limit in each.limits]
    assert {"tenant", "project", "key", "task"} == {limit.level.partition(" ")[0] for limit in limits}
    assert {"tokens", "output_tokens", "money_nano", "requests"} == {limit.measure for limit in limits}
    tenants = race_configuration(who)["tenants"]
    assert isinstance(tenants, list)
    assert 10 == len({tenant["keys"][0]["sha256"] for tenant in tenants})
    assert [{"money": 0.7, "per": "total"}] == tenants[1]["budgets"]


def test_requests_are_counted_by_their_answers() -> None:
    """Refused ones use nothing."""
    who = racer()
    who.ended.update({"whole": 2, "stream": 3, "hung_up_at_once": 1, "insufficient_quota": 9})
    assert 6 == spent(who, Limit(level="key k", measure="requests", window="1d", limit=9), row())
