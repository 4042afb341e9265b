"""Hard filters: each by its word, asked in a fixed order, closed where something is unknown."""

import pytest

from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.filters import Filter
from scheduler.core.prefixes import Prefixes
from scheduler.core.request import Band, DataClass, Slo
from scheduler.core.score import Work
from scheduler.core.slack import UNDERWAY, Promise
from scheduler.core.table import BACKLOG_S, LEAST_BACKLOG_TOKENS
from tests.core_words import MODEL, curves, request, view
from tests.placement_words import WORK, chosen, cluster_of, decides, filters, own
from workers.types import WorkerState

SLOW = curves(prefill_s=0.01)


def test_every_filter_has_a_word_and_passing_has_none() -> None:
    """What explain shows."""
    assert Filter.PASSED.word is None
    assert Filter.KV_ROOM.word == "kv_room"
    assert len({each.word for each in Filter}) == len(Filter)


@pytest.mark.parametrize(
    ("unfit", "word"),
    [
        ({"state": WorkerState.SICK}, "not_ready"),
        ({"state": WorkerState.DRAINING}, "not_ready"),
        ({"models": ("other",)}, "model"),
        ({"max_running": 1}, "attempts"),
        ({"kv_tokens": 1100}, "kv_room"),
        ({"max_sequences": 1}, "sequences"),
        ({"zone": "yard"}, "residency"),
    ],
    ids=lambda unfit: unfit if isinstance(unfit, str) else next(iter(unfit)),
)
def test_no_score_overrides_a_filter(unfit: dict[str, object], word: str) -> None:
    """A worker a thousand times faster is not chosen if it may not be, and explain says why."""
    policy = DataPolicy({"vault": DataClass.CORE})
    fast, slow = {"curves": curves(t0_s=1e-5), "zone": "vault"}, {"curves": curves(t0_s=10.0), "zone": "vault"}
    cluster = cluster_of(view("a", **{**fast, **unfit}), view("z", **slow))
    for name in "az":
        own(cluster, name, kv_tokens=1000)
    asked = request(data_class=DataClass.CORE)
    decision = decides(cluster, asked, policy=policy)
    assert {"a": word, "z": None} == filters(decision)
    assert "z" == chosen(cluster, asked, policy=policy)
    cluster.hold(cluster.workers["z"])
    nowhere = decides(cluster, asked, policy=policy)
    assert nowhere.worker is None
    assert word in nowhere.reason or word == "model"


def test_a_worker_is_told_the_first_filter_that_it_does_not_pass() -> None:
    """Readiness before residency before room."""
    cluster = cluster_of(view("a", state=WorkerState.SICK, zone="yard", max_running=1))
    own(cluster, "a")
    asked = request(data_class=DataClass.CORE)
    assert {"a": "not_ready"} == filters(decides(cluster, asked))
    cluster.update(view("a", zone="yard", max_running=1), 0.0)
    assert {"a": "residency"} == filters(decides(cluster, asked))
    assert {"a": "attempts"} == filters(decides(cluster))


def test_foreign_load_takes_room() -> None:
    """What runs there for somebody else counts in sequences and KV."""
    cluster = cluster_of(view(max_sequences=8))
    own(cluster, "w")
    for _ in range(2):
        cluster.update(view(max_sequences=8, num_running=8), 0.0)
    assert {"w": "sequences"} == filters(decides(cluster))
    for _ in range(2):
        cluster.update(view(kv_used_tokens=9_900), 0.0)
    assert {"w": "kv_room"} == filters(decides(cluster))


def test_an_idle_worker_has_room_for_anything() -> None:
    """A bound may overstate: who fits nowhere would otherwise wait for ever; the engine has the last word."""
    cluster = cluster_of(view(max_sequences=2))
    huge = Work(prompt_tokens=10**6, output_tokens=10**6, num_sequences=64)
    assert "w" == chosen(cluster, work=huge, room_ratio=0.9)
    own(cluster, "w")
    assert chosen(cluster, work=huge) is None


@pytest.mark.parametrize(
    ("limit", "owned"),
    [
        ({"kv_tokens": 1000}, {"kv_tokens": 800}),
        ({"max_sequences": 10}, {"sequences": 9}),
        ({"max_running": 2}, {}),
    ],
    ids=["kv_room", "sequences", "attempts"],
)
def test_lower_bands_leave_a_reserve(limit: dict[str, int], owned: dict[str, int]) -> None:
    """Room that the first band still finds, a lower one with a smaller share of it does not."""
    cluster = cluster_of(view(**limit))
    own(cluster, "w", **owned)
    assert "w" == chosen(cluster)
    assert chosen(cluster, room_ratio=0.5) is None


def test_prompts_wait_here_and_not_in_the_engine() -> None:
    """Half a second of prompts before it is enough; who has a prefix there waits for as long as it saves."""
    cluster = cluster_of(view(kv_tokens=10**6, curves=curves(t0_s=1e-6, prefill_s=1e-5, decode_s=0.0)))
    own(cluster, "w", prefill_tokens=int(BACKLOG_S / 1e-5) - 1)
    assert "w" == chosen(cluster)
    own(cluster, "w", prefill_tokens=2)
    assert {"w": "backlog"} == filters(decides(cluster))
    prefixes, asked = Prefixes(), request(prefix_blocks=(1, 2))
    prefixes.add(cluster.workers["w"], asked, 100)
    assert "w" == chosen(cluster, asked, prefixes=prefixes)


def test_a_slow_engine_has_two_full_steps_before_it() -> None:
    """However long they take: it must not run dry between two words of ours."""
    cluster = cluster_of(view(curves=SLOW))
    own(cluster, "w", prefill_tokens=LEAST_BACKLOG_TOKENS - 1)
    assert "w" == chosen(cluster)
    own(cluster, "w", prefill_tokens=1)
    assert chosen(cluster) is None


def test_prompts_of_lower_bands_do_not_stand_before_a_higher_one() -> None:
    """The engine computes it first; what has begun stays first."""
    cluster = cluster_of(view(curves=SLOW))
    own(cluster, "w", promise=Promise(rank=Band.FLEX), prefill_tokens=90_000)
    assert {"w": "backlog"} == filters(decides(cluster, request(band=Band.FLEX)))
    assert "w" == chosen(cluster, request(band=Band.DEFAULT))
    own(cluster, "w", promise=Promise(rank=Band.DEFAULT), prefill_tokens=90_000)
    assert chosen(cluster, request(band=Band.DEFAULT)) is None
    assert "w" == chosen(cluster, request(band=Band.PRIORITY))
    own(cluster, "w", promise=Promise(rank=UNDERWAY), prefill_tokens=90_000)
    assert chosen(cluster, request(band=Band.PRIORITY)) is None


def test_a_worker_where_it_failed_is_avoided_while_another_could_run_it() -> None:
    """Even if the other is full; when no other is left the same one is better than none."""
    cluster = cluster_of(view("a"), view("b", max_running=1))
    avoid = frozenset({cluster.workers["a"].life})
    assert "b" == chosen(cluster, avoid=avoid)
    own(cluster, "b")
    assert {"a": "avoided", "b": "attempts"} == filters(decides(cluster, avoid=avoid))
    cluster.hold(cluster.workers["b"])
    assert "a" == chosen(cluster, avoid=avoid)


def test_a_worker_is_not_avoided_for_one_that_may_not_run_it() -> None:
    """The other is ready, but of another zone."""
    cluster = cluster_of(view("a", zone="vault"), view("b", zone="yard"))
    avoid = frozenset({cluster.workers["a"].life})
    assert "a" == chosen(cluster, request(zones=frozenset({"vault"})), avoid=avoid)


def test_a_worker_that_came_back_is_not_avoided() -> None:
    """It is another process."""
    cluster = cluster_of(view("a"), view("b"))
    avoid = frozenset({cluster.workers["a"].life})
    cluster.remove("a")
    cluster.update(view("a"), 1.0)
    assert "a" == chosen(cluster, avoid=avoid)


def test_what_somebody_waits_for_who_came_before_is_kept() -> None:
    """Only where the earlier one may run: in its zones, on workers of its model, which may serve others too."""
    both = cluster_of(view("a", models=(MODEL, "other")), view("b"))
    assert {"a": "kept", "b": None} == filters(decides(both, closed_to=(request("stranger", model="other"),)))
    cluster = cluster_of(view("a", zone="vault"), view("b", zone="yard"))
    earlier = request("earlier", zones=frozenset({"vault"}))
    assert {"a": "kept", "b": None} == filters(decides(cluster, closed_to=(earlier,)))
    assert chosen(cluster, closed_to=(earlier, request("other"))) is None
    assert "a" == chosen(cluster, closed_to=(request("stranger", model="other"),))


# -- objectives


def busy(cluster: Cluster, worker_id: str, *, due_s: float) -> None:
    """Somebody decodes there, eight tokens before its end."""
    own(cluster, worker_id, promise=Promise(UNDERWAY, due_s, 8.0, 1e9), decode_tokens=8)


def test_nobody_s_promise_is_broken_while_another_worker_breaks_none() -> None:
    """The faster one has a running request that bears no more delay."""
    cluster = cluster_of(view("a", curves=curves(t0_s=1e-4)), view("b", curves=curves(t0_s=0.01)))
    busy(cluster, "a", due_s=0.009)  # 8 steps of 1.1 ms
    decision = decides(cluster)
    assert {"a": "slows_others", "b": None} == filters(decision)
    busy(cluster, "b", due_s=100.0)
    assert "b" == chosen(cluster)


def test_a_promise_that_is_broken_already_closes_no_worker() -> None:
    """Its lateness is priced instead: otherwise one late request would close a worker for ever."""
    cluster = cluster_of(view("a"))
    busy(cluster, "a", due_s=0.0)
    assert {"a": None} == filters(decides(cluster))


def test_its_own_target_closes_a_worker_while_another_keeps_it() -> None:
    """Too many prompts before it, or steps that are too long."""
    late = cluster_of(view("a", curves=curves(prefill_s=1e-3)), view("b", curves=curves(prefill_s=1e-3)))
    own(late, "a", prefill_tokens=2_000)
    assert {"a": "slo", "b": None} == filters(decides(late))
    slow = cluster_of(view("a", curves=curves(t0_s=0.049)), view("b"))
    own(slow, "a", sequences=5)
    assert {"a": "slo", "b": None} == filters(decides(slow))


def test_whose_target_is_lost_goes_where_it_breaks_no_other_s() -> None:
    """It waited for too long already."""
    cluster = cluster_of(view("a", curves=curves(t0_s=1e-4)), view("b"))
    busy(cluster, "a", due_s=0.009)
    found = decides(cluster, request(slo=Slo(ttft_s=1.0, ttft_ratio=1.0)), now_s=0.0)
    assert {"a": "slows_others", "b": None} == filters(found)
    assert {"a": "slows_others", "b": None} == filters(decides(cluster, request(arrival_s=-100.0)))


def test_where_every_promise_would_be_broken_it_still_goes_somewhere() -> None:
    """Where it costs least, and not never."""
    cluster = cluster_of(view("a"), view("b"))
    busy(cluster, "a", due_s=0.5041)  # 24 steps of the prior curve's 21 ms
    busy(cluster, "b", due_s=0.5281)
    busy(cluster, "b", due_s=0.5281)  # 24 steps of 22 ms for both by now
    decision = decides(cluster, request(arrival_s=-100.0), WORK)
    assert {"a": None, "b": None} == filters(decision)
    assert decision.worker is not None
    assert decision.is_crowded
    assert not decides(cluster_of(view("a"), view("b"))).is_crowded


def test_no_pile_of_prompts_grows_while_another_worker_has_room() -> None:
    """Who waits there would get its first tokens between the prompts behind it; alone a long prompt piles on nobody."""
    steep = curves(t0_s=0.01, prefill_s=1e-4)
    cluster = cluster_of(*(view(name, kv_tokens=10**6, curves=steep) for name in "ab"))
    long = Work(prompt_tokens=9_000, output_tokens=50)
    own(cluster, "a", prefill_tokens=500)
    assert {"a": "slows_others", "b": None} == filters(decides(cluster, work=long))
    own(cluster, "b", prefill_tokens=500)
    assert {"a": None, "b": None} == filters(decides(cluster, work=long))
    assert {"a": None, "b": None} == filters(decides(cluster))
