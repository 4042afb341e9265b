"""Evidence: terms that sum to the score, every worker told, and a memory that is bounded in bytes."""

import numpy as np

from scheduler.core.evidence import OVERHEAD_BYTES, Decision, Evidence, EvidenceBook
from scheduler.core.filters import Filter
from scheduler.core.score import TERMS
from tests.core_words import view
from tests.placement_words import cluster_of, decides, own
from workers.types import WorkerState


def decision(num_columns: int = 4, reason: str = "") -> Decision:
    evidence = Evidence(
        (("", "", ""),) * num_columns, np.zeros(num_columns, np.uint8), np.zeros((len(TERMS), num_columns), np.float32)
    )
    return Decision(worker=None, reason=reason, cached_tokens=0, first_s=0.0, due_s=0.0, evidence=evidence)


def test_the_terms_sum_to_the_score_and_the_least_score_was_chosen() -> None:
    """To the last unit, for whoever adds up what he reads."""
    cluster = cluster_of(view("a"), view("b"), view("c", state=WorkerState.SICK), view("d", models=("other",)))
    own(cluster, "a", prefill_tokens=333, decode_tokens=77, context_tokens=12_345)
    found = decides(cluster)
    told = {each["worker_id"]: each for each in found.explain()["workers"]}
    assert ["a", "b", "c", "d"] == list(told)
    assert [None, None, "not_ready", "model"] == [told[name]["filter"] for name in "abcd"]
    for name in "ab":
        assert set(TERMS) == set(told[name]["terms"])
        assert sum(told[name]["terms"].values()) == told[name]["score"]
    assert told["c"]["terms"] is told["c"]["score"] is None
    assert found.worker is not None
    assert "b" == found.worker.worker_id == min("ab", key=lambda name: told[name]["score"])
    assert "local" == told["a"]["zone"]


def test_who_was_out_has_no_score_even_where_others_have() -> None:
    """And where nobody passed there are no terms at all."""
    cluster = cluster_of(view("a", state=WorkerState.SICK))
    told = decides(cluster).explain()
    curve = "none: 1000 W a GPU"
    assert [
        {"worker_id": "a", "zone": "local", "curve": curve, "filter": "not_ready", "terms": None, "score": None}
    ] == told["workers"]
    assert "1 not_ready" in told["reason"]
    assert Filter.PASSED.word is None


def test_the_oldest_evidence_goes_first() -> None:
    """Bounded in bytes, whatever the number of workers."""
    each = decision().evidence.num_bytes
    book = EvidenceBook(max_bytes=3 * each)
    for number in range(5):
        book.keep(f"a{number}", decision(reason=str(number)))
    assert [None, None, "2", "3", "4"] == [(book.explain(f"a{number}") or {}).get("reason") for number in range(5)]
    assert (3, 3 * each) == (len(book), book.num_bytes)
    book.keep("big", decision(num_columns=10 * each))
    assert (0, 0) == (len(book), book.num_bytes)


def test_a_later_decision_takes_the_place_of_the_one_before() -> None:
    """A request that waits is tried again and again."""
    book = EvidenceBook()
    for reason in ("one", "two"):
        book.keep("r", decision(reason=reason))
    assert (1, decision().evidence.num_bytes) == (len(book), book.num_bytes)
    assert {"reason": "two", "workers": []} == book.explain("r")
    book.drop("r")
    book.drop("r")
    assert (0, 0, None) == (len(book), book.num_bytes, book.explain("r"))


def test_what_is_kept_is_counted() -> None:
    """Arrays and what goes with them."""
    assert OVERHEAD_BYTES + 4 + 4 * 4 * len(TERMS) == decision().evidence.num_bytes
