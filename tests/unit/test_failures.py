"""Every way to get no answer has a status, a word and a hint whether to come again."""

import json
from typing import Any

import pytest

from scheduler.api.failures import failure_of, refusal_of
from scheduler.core.actions import Rejection, Shortage
from scheduler.streams import End
from workers.types import Outcome


def shortage(measure: str = "tokens", **values: Any) -> Shortage:
    fields = {"level": "tenant acme", "window": "1m", "limit": 100, "left": 7, "needed": 20, **values}
    return Shortage(measure=measure, **fields)


def budget_refusal(reason: str = "rate_limit_exceeded", measure: str = "tokens", **values: Any) -> Rejection:
    return Rejection(reason=reason, status=429, message="Too much.", shortage=shortage(measure), **values)


@pytest.mark.parametrize(
    ("end", "status", "code", "retry_after_s", "should_retry"),
    [
        (End(outcome=Outcome.FAILED, cause="worker_lost"), 503, "worker_lost", 1, None),
        (End(outcome=Outcome.FAILED, cause="stalled"), 503, "stalled", 1, None),
        (End(outcome=Outcome.FAILED, cause="engine_error:ValueError"), 500, "engine_error", None, None),
        (End(outcome=Outcome.FAILED, cause=""), 500, "engine_error", None, None),
        (End(outcome=Outcome.FAILED, cause="render_failed"), 500, "render_failed", None, None),
        (End(outcome=Outcome.ABORTED, cause="deadline_exceeded"), 504, "deadline_exceeded", None, False),
        (End(outcome=Outcome.ABORTED, cause="shutting_down"), 503, "shutting_down", 1, None),
        (
            End(rejection=Rejection(reason="deadline_infeasible", status=504, message="Late.")),
            504, "deadline_infeasible", None, False,
        ),
    ],
)  # fmt: skip
def test_every_end_without_an_answer_has_a_status(
    end: End, status: int, code: str, retry_after_s: int | None, should_retry: bool | None
) -> None:
    """Whoever lost a worker may try again; whoever is late need not."""
    error = failure_of(end)
    assert (status, code, retry_after_s, should_retry) == (
        error.status, error.code, error.retry_after_s, error.should_retry,
    )  # fmt: skip


def test_a_missing_model_is_a_wrong_parameter() -> None:
    """The field is named."""
    error = refusal_of(Rejection(reason="model_not_found", status=404, message="None."))
    assert ("model", "model_not_found") == (error.param, error.code)


@pytest.mark.parametrize(
    ("reason", "said", "expected"),
    [
        ("rate_limit_exceeded", None, None),
        ("insufficient_quota", None, False),
        ("insufficient_quota", True, True),
        ("rate_limit_exceeded", False, False),
    ],
)
def test_a_spent_quota_is_not_asked_again(reason: str, said: bool | None, expected: bool | None) -> None:
    """Client libraries repeat a 429 by themselves; only a rate passes in seconds. What the core says comes first."""
    assert expected is refusal_of(budget_refusal(reason, should_retry=said)).should_retry


@pytest.mark.parametrize(
    ("reason", "measure", "kind"),
    [
        ("insufficient_quota", "money_nano", "insufficient_quota"),
        ("insufficient_quota", "tokens", "insufficient_quota"),
        ("rate_limit_exceeded", "tokens", "tokens"),
        ("rate_limit_exceeded", "output_tokens", "tokens"),
        ("rate_limit_exceeded", "requests", "requests"),
        ("rate_limit_exceeded", "concurrency", "rate_limit_error"),
        ("rate_limit_exceeded", "money_nano", "rate_limit_error"),
    ],
)
def test_the_type_of_a_429_is_openais(reason: str, measure: str, kind: str) -> None:
    """``tokens``, ``requests``, ``insufficient_quota``; what OpenAI does not count has the type of the status."""
    assert kind == json.loads(refusal_of(budget_refusal(reason, measure)).body())["error"]["type"]


def test_a_refusal_by_budget_says_which_and_how_it_stands() -> None:
    """Level, limit, what is left, what was needed, when it resets; when to come again is a header."""
    rejection = Rejection(
        reason="rate_limit_exceeded",
        status=429,
        retry_after_s=12,
        message="Too much.",
        shortage=shortage(resets_unix_s=1_700_000_012.5),
    )
    error = failure_of(End(rejection=rejection, cause=rejection.reason))
    assert {
        "level": "tenant acme", "measure": "tokens", "window": "1m", "limit": 100, "left": 7, "needed": 20,
        "resets_unix_s": 1_700_000_012.5,
    } == json.loads(error.body())["error"]["budget"]  # fmt: skip
    assert [(b"retry-after", b"12")] == error.header_list()


def test_no_other_refusal_names_a_budget() -> None:
    """The key is absent, as in OpenAI's own errors."""
    error = refusal_of(Rejection(reason="queue_full", status=503, retry_after_s=2, message="Full."))
    assert {"message", "type", "param", "code"} == json.loads(error.body())["error"].keys()
