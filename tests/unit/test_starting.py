"""Starting: a worker is chosen, its credit claimed, the try remembered; in vain, nothing changes."""

from scheduler.core.admission import Admission, Limits
from scheduler.core.attempts import Entry, Stats
from scheduler.core.cluster import Cluster, WorkerView
from scheduler.core.data_policy import DataPolicy
from scheduler.core.fairness import Fairness
from scheduler.core.parking import Parking
from scheduler.core.queue import Queue
from scheduler.core.request import Band
from scheduler.core.rules import Rules
from scheduler.core.running import Running
from scheduler.core.starting import Starter
from scheduler.core.waiting import Turn
from tests.core_words import request, view
from workers.types import WorkerState


class House:
    """A starter with everything around it."""

    def __init__(self, *workers: WorkerView, rules: Rules | None = None) -> None:
        self.rules, self.cluster, limits = rules or Rules(), Cluster(), Limits()
        for each in workers:
            self.cluster.update(each, 0.0)
        fairness, policy = Fairness(), DataPolicy(self.rules.zones)
        self.running = Running(self.cluster, fairness, limits)
        admission = Admission(self.cluster, Queue(limits.queue, fairness), limits, policy)
        self.stats = Stats()
        self.parking = Parking(self.cluster, self.rules.parking)
        self.starter = Starter(self.cluster, admission, self.running, self.parking, self.rules, self.stats)


def an_entry(request_id: str = "r", **values: object) -> Entry:
    entry = Entry(request=request(request_id, **values), place=1, waits_since_s=0.0)
    entry.begin_wait("queued", 0.0)
    return entry


def test_a_start_is_an_attempt_with_credit_and_the_end_of_a_wait() -> None:
    """The output that is sent is what its hold covers, not what it asked for."""
    house = House(view("w"))
    entry = an_entry(max_output_tokens=50)
    entry.granted_tokens = 7
    dispatch = house.starter.start(Turn(entry), 3.0)
    assert dispatch is not None
    assert ("r-1", "w", 7) == (dispatch.attempt_id, dispatch.worker_id, dispatch.max_output_tokens)
    attempt = house.running.get("r-1")
    assert attempt is not None
    assert ([attempt], attempt, 3.0) == (entry.tries, entry.attempt, entry.waits[-1].to_s)
    assert 1 == house.cluster.credit("w").sequences
    assert attempt.expected_tokens <= 7
    assert 1 == house.stats.dispatched
    why = house.starter.explain("r-1")
    assert why is not None
    (worker,) = why["workers"]
    assert worker["score"] == sum(worker["terms"].values())


def test_in_vain_nothing_changes_but_what_is_told() -> None:
    """It may be tried again at any time; meanwhile it says why it waits, and no longer than that."""
    house = House(view("w", state=WorkerState.STARTING))
    entry = an_entry()
    assert house.starter.start(Turn(entry), 3.0) is None
    assert (0, [], None, None) == (len(house.running), entry.tries, entry.attempt, entry.waits[-1].to_s)
    why = house.starter.explain("r")
    assert why is not None
    assert ["not_ready"] == [worker["filter"] for worker in why["workers"]]
    house.cluster.update(view("w"), 4.0)
    assert house.starter.start(Turn(entry), 4.0) is not None
    assert house.starter.explain("r") is None


def test_lower_bands_leave_the_reserve_alone_until_they_are_aged() -> None:
    """Of 10 places one is the first band's."""
    house = House(view("w", max_running=10, max_sequences=10), rules=Rules(reserve_ratio=0.1))
    for number in range(9):
        assert house.starter.start(Turn(an_entry(f"r{number}", band=Band.FLEX)), 0.0) is not None
    entry = an_entry("late", band=Band.FLEX)
    assert house.starter.start(Turn(entry), 0.0) is None
    assert house.starter.start(Turn(entry, is_aged=True), 0.0) is not None


def test_a_higher_band_takes_the_place_of_batch_work() -> None:
    """The latest started gives way; nobody else does, while it ends."""
    house = House(view("w", max_running=2), rules=Rules(reserve_ratio=0.0))
    batch = [an_entry(name, band=Band.FLEX) for name in ("a", "b")]
    for entry in batch:
        assert house.starter.start(Turn(entry), 0.0) is not None
    urgent = an_entry("urgent", band=Band.PRIORITY)
    assert house.starter.start(Turn(urgent), 1.0) is None
    assert ["b-1"] == [attempt.attempt_id for attempt in house.starter.preempt(urgent, 1.0)]
    assert (1, None) == (house.stats.preempted, batch[1].attempt)
    assert [] == house.starter.preempt(urgent, 1.0)
