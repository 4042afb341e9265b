"""Lives: one beginning, one end, and a memory of it; whoever ends leaves the queue and holds nothing."""

import pytest

from scheduler.core.actions import Rejection
from scheduler.core.attempts import Stats
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.holds import Holds
from scheduler.core.lives import Lives
from scheduler.core.queue import Queue
from scheduler.core.rules import Rules
from scheduler.core.waiting import Waiting
from tests.core_words import request
from workers.types import Outcome

NO = Rejection(reason="no", status=503, message="No.")


class House:
    def __init__(self) -> None:
        self.queue, self.stats = Queue(), Stats()
        self.waiting = Waiting(self.queue, max_wait_s=60.0)
        budgets = {Level("tenant", "t"): (Budget(Measure.TOKENS, 1000, Window.parse("total")),)}
        self.holds = Holds(Rules(budgets=budgets))
        self.lives = Lives(self.waiting, self.holds, self.stats)

    @property
    def held(self) -> int:
        return sum(self.holds.budgets.held_total().values())


def test_whoever_is_refused_leaves_the_queue_and_gives_back_what_it_held() -> None:
    """And is remembered with the reason."""
    house = House()
    entry = house.lives.begin(request(), 0.0)
    house.holds.hold(entry)
    entry.begin_wait("queued", 0.0)
    house.waiting.push(entry)
    reject = house.lives.reject("r", NO, 3.0)
    assert ("r", NO) == (reject.request_id, reject.rejection)
    assert (0, 0, {}) == (len(house.queue), house.held, house.lives.open)
    assert {"no": 1} == house.stats.rejected
    story = house.lives.story("r", lambda key: None)
    assert story is not None
    assert ("rejected", "no", 3.0, 3.0) == (
        story["state"], story["cause"], story["ended_s"], story["waits"][0]["to_s"],
    )  # fmt: skip


def test_whoever_finishes_says_who_answered() -> None:
    """Or that nobody did."""
    house = House()
    entry = house.lives.begin(request(), 0.0)
    finish = house.lives.finish(entry, "r-1", Outcome.COMPLETED, "", 2.0)
    assert ("r", "r-1", Outcome.COMPLETED) == (finish.request_id, finish.attempt_id, finish.outcome)
    assert ({"completed": 1}, {}) == (house.stats.finished, house.lives.open)


def test_places_rise_and_an_id_lives_once_at_a_time() -> None:
    """The queue's order inside a tenant is that of beginnings."""
    house = House()
    assert [1, 2] == [house.lives.begin(request(name), 0.0).place for name in ("a", "b")]
    with pytest.raises(AssertionError, match="twice"):
        house.lives.begin(request("a"), 0.0)


def test_a_wait_is_counted_from_the_arrival() -> None:
    """What the relay took belongs to it; a clock that is behind does not."""
    house = House()
    assert 1.0 == house.lives.begin(request("a", arrival_s=1.0), 5.0).waits_since_s
    assert 5.0 == house.lives.begin(request("b", arrival_s=9.0), 5.0).waits_since_s
