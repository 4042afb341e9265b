"""The picture of the workers: credit adds up and returns to 0, foreign load, silence, columns that are reused."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.cluster import Claim, Cluster, WorkerView
from scheduler.core.curves import PRIOR_CURVES
from scheduler.core.table import Row
from tests.core_words import MODEL, curves, thorough, view
from workers.types import EngineInfo, WorkerState, WorkerStatus

NONE = Claim(sequences=0, prefill_tokens=0, decode_tokens=0, context_tokens=0, kv_tokens=0)


def claim(sequences: int = 1, prefill: int = 10, decode: int = 20, context: int = 0, kv: int = 30) -> Claim:
    return Claim(
        sequences=sequences, prefill_tokens=prefill, decode_tokens=decode, context_tokens=context, kv_tokens=kv
    )


def cell(cluster: Cluster, worker_id: str, row: int) -> float:
    return float(cluster.table[row, cluster.workers[worker_id].column])


# -- credit


def test_credit_is_claimed_changed_and_released() -> None:
    """All that an attempt owns is counted once, and nothing of it stays."""
    cluster = Cluster()
    worker = cluster.update(view(), 0.0)
    cluster.claim(worker, "a", claim())
    cluster.claim(worker, "b", claim(prefill=5))
    cluster.change(worker, "a", claim(prefill=0, decode=19, context=11))
    assert claim(sequences=2, prefill=5, decode=39, context=11, kv=60) == cluster.credit("w")
    assert 2 == cell(cluster, "w", Row.ATTEMPTS)
    cluster.release(worker, "a")
    cluster.release(worker, "b")
    assert (NONE, 0) == (cluster.credit("w"), cell(cluster, "w", Row.ATTEMPTS))


def test_nothing_is_claimed_twice() -> None:
    """Credit that is owned twice would never come back."""
    cluster = Cluster()
    worker = cluster.update(view(), 0.0)
    cluster.claim(worker, "a", claim())
    with pytest.raises(AssertionError, match="owns credit already"):
        cluster.claim(worker, "a", claim())


@thorough
@given(st.integers(0, 2**32))
def test_credit_is_the_sum_of_what_is_owned(seed: int) -> None:
    """In any order of any sizes, to the token, and 0 at the end: whole numbers below 2⁵³ add exactly."""
    chance, owned = random.Random(seed), {}
    cluster = Cluster()
    worker = cluster.update(view(), 0.0)
    for _ in range(60):
        name, each = f"a{chance.randrange(8)}", Claim(*(chance.randrange(2**40) for _ in range(5)))
        if name not in owned:
            cluster.claim(worker, name, each)
            owned[name] = each
        elif chance.random() < 0.5:
            cluster.change(worker, name, each)
            owned[name] = each
        else:
            cluster.release(worker, name)
            del owned[name]
        assert not owned or tuple(map(sum, zip(*owned.values(), strict=True))) == tuple(cluster.credit("w"))
    for name in owned:
        cluster.release(worker, name)
    assert (NONE, 0) == (cluster.credit("w"), cell(cluster, "w", Row.ATTEMPTS))


# -- what workers say


def test_a_report_is_taken_over() -> None:
    """Room, limits, curves and state stand in the worker's column."""
    cluster = Cluster()
    cluster.update(view(kv_tokens=77, max_sequences=5, max_running=3, curves=curves(t0_s=0.5, context_s=0.25)), 9.0)
    rows = (Row.READY, Row.HEARD_S, Row.KV_ROOM, Row.MAX_SEQUENCES, Row.MAX_ATTEMPTS, Row.T0_S, Row.T_CONTEXT_S)
    assert [1, 9.0, 77, 5, 3, 0.5, 0.25] == [cell(cluster, "w", row) for row in rows]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_curves_that_cannot_be_are_not_believed(wrong: float) -> None:
    """One NaN would win every placement: the prior holds until the worker knows better."""
    cluster = Cluster()
    cluster.update(view(curves=curves(decode_s=wrong)), 0.0)
    column = cluster.table[Row.T0_S : Row.T_CONTEXT_S + 1, cluster.workers["w"].column]
    assert PRIOR_CURVES.time_s == tuple(column)


def test_foreign_load_counts_when_two_reports_agree() -> None:
    """A report is older than the claim it is compared with: one alone may count what has just ended."""
    cluster = Cluster()
    seen = []
    for num_running, kv_used in [(5, 900), (3, 400), (3, 500), (0, 0)]:
        cluster.update(view(num_running=num_running, num_waiting=1, kv_used_tokens=kv_used), 0.0)
        seen.append((cell(cluster, "w", Row.FOREIGN_SEQUENCES), cell(cluster, "w", Row.FOREIGN_KV)))
    assert [(0, 0), (4, 400), (4, 400), (1, 0)] == seen


def test_what_we_own_is_not_foreign() -> None:
    """Only what exceeds our claims is somebody else's."""
    cluster = Cluster()
    worker = cluster.update(view(), 0.0)
    cluster.claim(worker, "a", claim(sequences=2, kv=100))
    for _ in range(2):
        cluster.update(view(num_running=3, kv_used_tokens=90), 0.0)
    assert (1, 0) == (cell(cluster, "w", Row.FOREIGN_SEQUENCES), cell(cluster, "w", Row.FOREIGN_KV))


def test_idleness_is_dated_from_its_first_report() -> None:
    """And ends with any load."""
    cluster = Cluster()
    dates = []
    for now_s, num_running in [(1.0, 0), (2.0, 0), (3.0, 1), (4.0, 0)]:
        dates.append(cluster.update(view(num_running=num_running), now_s).idle_since_s)
    assert [1.0, 1.0, None, 4.0] == dates


def test_silence_holds_and_then_loses() -> None:
    """Held workers get nothing until their next report; unheard ones are named in order of their ids."""
    cluster = Cluster()
    for worker_id, heard_s in [("b", 0.0), ("a", 0.0), ("c", 50.0)]:
        cluster.update(view(worker_id), heard_s)
    cluster.hold_silent(11.0, 10.0)
    assert [False, False, True] == [cluster.is_ready(cluster.workers[name]) for name in "abc"]
    assert [] == cluster.unheard(60.0, 60.0)
    assert ["a", "b"] == cluster.unheard(60.5, 60.0)
    cluster.update(view("a"), 61.0)
    assert cluster.is_ready(cluster.workers["a"])


def test_columns_are_ordered_by_worker_id_and_follow_models() -> None:
    """Whatever the order in which workers came, changed their models and went."""
    cluster = Cluster()
    for name in "cab":
        cluster.update(view(name), 0.0)
    names = [cluster.worker_at(int(column)).worker_id for column in cluster.columns_of(MODEL)]
    assert ["a", "b", "c"] == names
    cluster.update(view("b", models=("other",)), 0.0)
    cluster.remove("c")
    assert ["a"] == [cluster.worker_at(int(column)).worker_id for column in cluster.columns_of(MODEL)]
    assert ["b"] == [cluster.worker_at(int(column)).worker_id for column in cluster.columns_of("other")]
    assert 0 == len(cluster.columns_of("nobody's"))


def test_the_table_grows_and_columns_are_reused_clean() -> None:
    """A worker that comes after a lost one inherits nothing, and has another life."""
    cluster = Cluster()
    for number in range(40):
        cluster.update(view(f"w{number:02}", num_running=9, kv_used_tokens=9), 0.0)
    lost = cluster.workers["w07"]
    cluster.remove("w07")
    assert not cluster.table[:, lost.column].any()
    back = cluster.update(view("w07"), 1.0)
    assert (lost.column, NONE) == (back.column, cluster.credit("w07"))
    assert back.life not in {worker.life for name, worker in cluster.workers.items() if name != "w07"} | {lost.life}
    assert 40 == len({worker.column for worker in cluster.workers.values()}) == len(cluster.columns_of(MODEL))


def test_a_worker_with_credit_cannot_be_forgotten() -> None:
    """Somebody still waits for what runs there."""
    cluster = Cluster()
    cluster.claim(cluster.update(view(), 0.0), "a", claim())
    with pytest.raises(AssertionError, match="1 attempts are still owned"):
        cluster.remove("w")


def test_another_ready_worker() -> None:
    """A retry elsewhere needs an elsewhere, of the same model."""
    cluster = Cluster()
    one = cluster.update(view("a"), 0.0)
    assert cluster.has_ready(MODEL)
    assert not cluster.has_ready(MODEL, other_than=one)
    cluster.update(view("b", models=("other",)), 0.0)
    assert not cluster.has_ready(MODEL, other_than=one)
    cluster.update(view("c"), 0.0)
    assert cluster.has_ready(MODEL, other_than=one)
    cluster.hold(cluster.workers["c"])
    assert not cluster.has_ready(MODEL, other_than=one)


# -- views


def test_a_view_says_what_a_status_says() -> None:
    """Without an engine a worker serves nothing, and is not ready whatever it says."""
    info = EngineInfo(
        engine="simulated", version="1", models=("m", "n"), max_model_len_tokens=8, kv_tokens=99, max_sequences=0,
        num_gpus=1,
    )  # fmt: skip
    status = WorkerStatus(worker_id="w", state=WorkerState.READY, info=info, num_running=2, num_waiting=1, zone="z")
    seen = WorkerView.of(status, max_running=7)
    assert ("w", WorkerState.READY, ("m", "n"), "z", 99, 1, 7, 2, 1) == (
        seen.worker_id, seen.state, seen.models, seen.zone, seen.kv_tokens, seen.max_sequences, seen.max_running,
        seen.num_running, seen.num_waiting,
    )  # fmt: skip
    unborn = WorkerView.of(WorkerStatus(worker_id="w", state=WorkerState.READY))
    assert (WorkerState.STARTING, ()) == (unborn.state, unborn.models)
    assert WorkerState.STOPPED is WorkerView.of(WorkerStatus(worker_id="w", state=WorkerState.STOPPED)).state


@pytest.mark.parametrize("state", list(WorkerState))
def test_only_a_ready_worker_takes_work(state: WorkerState) -> None:
    """Starting, sick, draining and stopped ones are seen and left alone."""
    cluster = Cluster()
    assert (state is WorkerState.READY) == cluster.is_ready(cluster.update(view(state=state), 0.0))
    assert np.array_equal(cluster.columns_of(MODEL), [0])


def test_ids_say_whose_curve_it_is_now() -> None:
    """Shared between decisions until a word changes; a report that changes none changes nothing."""
    cluster = Cluster()
    known = msgspec.structs.replace(curves(), source="catalogue: m on 1 × H100", batch_range=(2.0, 4.0))
    seen = []
    for num_running in (0, 1, 3, 4):
        cluster.update(view(curves=known, num_running=num_running), 0.0)
        seen.append(cluster.ids())
    assert seen[1] is seen[2]
    inside, outside = known.source, f"{known.source}, extrapolated: measured at 2 to 4 sequences"
    assert [outside, inside, inside, outside] == [ids[cluster.workers["w"].column][2] for ids in seen]
