"""Preemption: as few batch attempts as will do, on one worker, the latest first, never twice for the same room."""

from scheduler.core.admission import Limits
from scheduler.core.attempts import Attempt, Entry
from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.fairness import Fairness
from scheduler.core.preemption import victims
from scheduler.core.request import Band, DataClass
from scheduler.core.running import Running
from scheduler.core.score import Work
from tests.core_words import request, view

WORK = Work(prompt_tokens=100, output_tokens=50)


class House:
    """Workers with attempts on them."""

    def __init__(self, **workers: dict[str, object]) -> None:
        self.cluster = Cluster()
        for worker_id, fields in workers.items():
            self.cluster.update(view(worker_id, **fields), 0.0)
        self.running = Running(self.cluster, Fairness(), Limits())
        self.policy = DataPolicy({"safe": DataClass.CORE})

    def run(self, name: str, worker_id: str, band: Band = Band.FLEX, *, prompt: int = 100) -> Attempt:
        entry = Entry(request=request(name, band=band), place=1, waits_since_s=0.0)
        attempt = Attempt(
            attempt_id=f"{name}-1", entry=entry, worker=self.cluster.workers[worker_id], started_s=0.0,
            last_sign_s=0.0, prompt_tokens=prompt, expected_tokens=50,
        )  # fmt: skip
        entry.attempt = attempt
        self.running.start(attempt)
        return attempt

    def victims(self, *, room_ratio: float = 1.0, avoid: frozenset[int] = frozenset(), **values: object) -> list[str]:
        asked = {"band": Band.PRIORITY, **values}
        entry = Entry(request=request("urgent", **asked), place=9, waits_since_s=0.0, avoid=avoid)
        found = victims(self.cluster, entry, WORK, running=self.running, policy=self.policy, room_ratio=room_ratio)
        return [attempt.attempt_id for attempt in found]


def test_the_latest_batch_attempt_gives_way() -> None:
    """It has done least in vain."""
    house = House(w={"max_running": 3})
    house.run("a", "w")
    house.run("b", "w")
    house.run("c", "w", Band.DEFAULT)
    assert ["b-1"] == house.victims()
    assert ["b-1"] == house.victims(band=Band.DEFAULT)
    assert [] == house.victims(band=Band.FLEX)


def test_the_worker_where_fewest_give_way_is_chosen() -> None:
    """Two small ones on one worker, or a large one on the other: the large one."""
    house = House(u={"kv_tokens": 300}, w={"kv_tokens": 300})
    house.run("a", "u", prompt=50)
    house.run("b", "u", prompt=50)
    house.run("c", "u", prompt=50)
    house.run("d", "w", prompt=240)
    assert ["d-1"] == house.victims()


def test_nobody_gives_way_where_it_would_not_be_enough() -> None:
    """Work that was ended for nothing is the worst of all."""
    house = House(w={"kv_tokens": 400})
    house.run("a", "w", Band.DEFAULT, prompt=250)
    house.run("b", "w", prompt=10)
    assert [] == house.victims()


def test_whoever_ends_already_makes_the_room() -> None:
    """On whichever worker: nobody else has to."""
    house = House(w={"max_running": 2}, v={"max_running": 1})
    house.run("a", "w")
    ending = house.run("b", "v", Band.DEFAULT)
    house.run("c", "w")
    assert ["c-1"] == house.victims()
    house.running.abort(ending, "client_gone", 1.0)
    assert [] == house.victims()


def test_a_byte_that_was_sent_protects() -> None:
    """So does having made room often enough."""
    house = House(w={"max_running": 1})
    attempt = house.run("a", "w")
    house.running.note_first_byte(attempt, 1.0)
    assert [] == house.victims()


def test_an_aged_start_is_not_taken_back() -> None:
    """It went before the very bands that would take its room."""
    house = House(w={"max_running": 1})
    house.run("a", "w").is_aged = True
    assert [] == house.victims()


def test_no_room_is_made_where_the_request_may_not_go() -> None:
    """Another zone, a worker that it failed on, one that takes nothing."""
    house = House(w={"max_running": 1, "zone": "open"}, v={"max_running": 1, "zone": "safe"})
    house.run("a", "w")
    assert [] == house.victims(data_class=DataClass.CORE, zones=frozenset({"open"}))
    life = house.cluster.workers["w"].life
    house.cluster.hold(house.cluster.workers["v"])
    assert ["a-1"] == house.victims()
    assert [] == house.victims(avoid=frozenset({life}))


def test_the_reserve_is_not_made_for_lower_bands() -> None:
    """Of four places three are the second band's: two have to go."""
    house = House(w={"max_running": 4})
    for name in "abcd":
        house.run(name, "w")
    assert ["d-1", "c-1"] == house.victims(band=Band.DEFAULT, room_ratio=0.75)


def test_no_more_room_is_made_than_the_filter_asks_for() -> None:
    """Nine tenths of four places are begun by the fourth: one has to go, not two."""
    house = House(w={"max_running": 4})
    for name in "abcd":
        house.run(name, "w")
    assert ["d-1"] == house.victims(band=Band.DEFAULT, room_ratio=0.9)
