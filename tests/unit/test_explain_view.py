"""The life of a request in words: everything that is known is said, nothing that is not known is made up."""

from typing import Any

import pytest

from scheduler.commands import explain_view
from scheduler.core.evidence import Evidence
from scheduler.core.score import TERMS as CORE_TERMS

TERMS = {"late": 0, "slows": 120, "wait": 30, "prefill": 500, "prefix": -200, "decode": 50, "gpu": 0}
WORKERS = [
    {"worker_id": "w-0", "zone": "hall-a", "filter": None, "terms": TERMS, "score": 500},
    {"worker_id": "w-1", "zone": "hall-a", "filter": None, "terms": {**TERMS, "prefix": 0}, "score": 700},
    {"worker_id": "w-2", "zone": "abroad", "filter": "residency", "terms": None, "score": None},
]
STORY: dict[str, Any] = {
    "request_id": "req-1", "tenant": "acme", "project": "search", "key_id": "key-1", "task": "", "model": "m",
    "band": "default", "data_class": "important", "zones": ["hall-a", "hall-b"], "state": "finished",
    "outcome": "completed", "cause": "", "arrival_unix_s": 1_790_000_000.0, "ended_s": 1.9, "max_output_tokens": 64,
    "granted_output_tokens": 32, "waits": [{"from_s": 0.0, "to_s": 0.25, "cause": "kv_room"}],
    "attempts": [
        {
            "attempt_id": "req-1-1", "worker_id": "w-0", "zone": "hall-a", "started_s": 0.25, "first_byte_s": 0.5,
            "ended_s": 1.9, "outcome": "completed", "cause": "", "payer": "request",
            "tokens": {"input": 1200, "cached": 800, "output": 32, "is_settled": True}, "gpu_seconds": 0.75,
            "energy_joules": 12.5, "cost_nano": 1_000_000, "grade": "A", "is_final": True,
            "decision": {"reason": "least score", "workers": WORKERS},
        }
    ],
    "budgets": [
        {"level": "tenant acme", "measure": "tokens", "window": "1d", "limit": 100_000, "held": 1264, "settled": 1232},
        {"level": "key k", "measure": "energy_mj", "window": "1h", "limit": 500_000, "held": 40_000, "settled": 9_500},
        {"level": "tenant acme", "measure": "concurrency", "window": "", "limit": 16, "held": 1, "settled": 0},
    ],
    "is_final": True,
}  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    explain_view.show({**STORY, **changes})
    return capsys.readouterr().out


def test_everything_that_is_known_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Who, when, waits, the try with what it took, each worker's terms or filter, budgets."""
    text = shown(capsys)
    for words in (
        "request req-1: finished, completed",
        "tenant acme · project search · key key-1 · model m · band default",
        "data class important · zones hall-a, hall-b",
        "at most 64 tokens of each sequence, 32 granted by its budgets",
        "arrived 2026-09-21 14:13:20 UTC, ended 1.900 s later",
        "waited from 0.000 s to 0.250 s: kv_room",
        "attempt req-1-1 on w-0 in zone hall-a: completed",
        "sent at 0.250 s, first byte at 0.500 s, ended at 1.900 s, paid by the request",
        "1,200 input tokens (800 cached), 32 output tokens · 0.750 GPU-seconds · 12.500 J (measured, grade A)",
        "why there: least score",
    ):
        assert words in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert ["worker", "zone", "filter", *TERMS, "=", "score"] == rows["worker"]
    assert ["w-0", "◂", "hall-a", "–", "0", "120", "30", "500", "-200", "50", "0", "500"] == rows["w-0"]
    assert ["w-2", "abroad", "residency", *["–"] * 8] == rows["w-2"]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "tenant acme tokens 1d 100,000 1,264 1,232" in lines
    assert "key k J 1h 500 40 9.5" in lines
    assert "tenant acme concurrency at once 16 1 0" in lines


def test_who_was_placed_by_a_curve_of_others_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Alike ones in one line; who measured his own needs no word, nor does a story from before they were told."""
    words = ["windows", "catalogue: m on 1 × H100", "catalogue: m on 1 × H100"]
    workers = [{**worker, "curve": curve} for worker, curve in zip(WORKERS, words, strict=True)]
    text = shown(capsys, attempts=[], decision={"reason": "r", "workers": workers})
    assert "  curve of w-1, w-2: catalogue: m on 1 × H100\n" in text
    assert "w-0: " not in text
    assert "curve of" not in shown(capsys)


def test_what_waits_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The last look for a place, with every filter."""
    text = shown(
        capsys,
        state="waiting", outcome=None, attempts=[], budgets=[], ended_s=None, zones=None,
        waits=[{"from_s": 0.0, "to_s": None, "cause": "kv_room"}],
        decision={"reason": "nobody has room", "workers": [WORKERS[2]]},
    )  # fmt: skip
    assert "request req-1: waiting\n" in text
    assert "zones any that may" in text
    assert "waited from 0.000 s to now: kv_room" in text
    assert "the last look for a place: nobody has room" in text
    assert "residency" in text
    assert "budgets above" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": "started", "num_ahead": 0}, "it would be started now\n"),
        ({"verdict": "queued", "num_ahead": 1200}, "queued now, with 1,200 of its band or a higher one before it"),
        (
            {"verdict": "refused", "rejection": {"message": "No worker may.", "reason": "no", "status": 403}},
            "it would be refused: No worker may. (no, status 403)",
        ),
    ],
)
def test_what_would_be_is_said_as_such(capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str) -> None:
    """It never ran; why there is told all the same."""
    decision = {"reason": "least score", "workers": WORKERS}
    text = shown(capsys, state="what_if", outcome=None, attempts=[], waits=[], decision=decision, **changes)
    assert "request req-1: what_if\n" in text
    assert words in text
    assert "the last look for a place: least score" in text


def test_a_running_attempt_and_a_forgotten_decision(capsys: pytest.CaptureFixture[str]) -> None:
    """Joules so far are named as predicted; what is no longer kept is said."""
    attempt = {
        **STORY["attempts"][0],
        "outcome": None, "first_byte_s": None, "ended_s": None, "payer": None, "is_final": False, "decision": None,
        "cost_nano": None,
    }  # fmt: skip
    text = shown(capsys, attempts=[attempt])
    assert "attempt req-1-1 on w-0 in zone hall-a: running" in text
    assert "(predicted so far, grade A)" in text
    assert "why there: no longer kept" in text


def test_a_story_without_what_is_optional_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The least that can be known."""
    explain_view.show({"request_id": "r", "state": "rejected", "outcome": "rejected", "cause": "queue_full"})
    assert "request r: rejected, rejected · queue_full" in capsys.readouterr().out


def test_sums_are_checked_wherever_a_score_is() -> None:
    """Attempt by attempt and of the last look; a worker that was filtered has none."""
    wrong = {**WORKERS[0], "score": 501}
    assert [] == explain_view.wrong_sums(STORY)
    story = {
        "attempts": [{"attempt_id": "a", "decision": {"workers": [WORKERS[2], wrong]}}, {"attempt_id": "b"}],
        "decision": {"workers": [wrong]},
    }
    assert ["w-0 (a)", "w-0 (the last look)"] == explain_view.wrong_sums(story)


def test_what_the_core_tells_adds_up() -> None:
    """Its evidence, as it is told, passes the check of the reader."""
    import numpy as np

    rng = np.random.default_rng(4)
    evidence = Evidence(
        ids=tuple((f"w-{n}", "z", "windows") for n in range(50)),
        codes=np.zeros(50, dtype=np.uint8),
        terms=rng.normal(0, 1e9, (len(CORE_TERMS), 50)).astype(np.float32),
    )
    assert [] == explain_view.wrong_sums({"decision": {"workers": evidence.workers()}})


def test_what_waits_for_a_cheaper_hour_says_which_and_what_that_saves(capsys: pytest.CaptureFixture[str]) -> None:
    """And when it begins at the latest; nothing is said of it where nobody waited for a price."""
    waits = [{"from_s": 0.0, "to_s": None, "cause": "cheaper_hour"}]
    deferral = {
        "until_s": 32_400.0, "latest_start_s": 84_190.0, "nano_per_joule_at_once": 83.333, "nano_per_joule_then": 33.3,
    }  # fmt: skip
    text = shown(capsys, waits=waits, deferral=deferral)
    assert "waited from 0.000 s to now: cheaper_hour" in text
    assert "for a cheaper hour: from 32,400 s on, at 33.30 instead of 83.33 · 10⁻⁹ a joule" in text
    assert "begun by 84,190 s whatever it costs" in text
    assert "cheaper hour" not in shown(capsys)
