"""OpenAI's error bodies: four keys, a word as code, bounded, nothing of an engine's insides."""

import json
from typing import Any

import pytest

from scheduler.api.errors import ApiError, engine_error, error_body, error_object, kind_of


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    assert ["message", "type", "param", "code"] == list(error)
    return error


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
        (404, "not_found_error"), (405, "invalid_request_error"), (408, "invalid_request_error"),
        (413, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error"), (503, "server_error"),
        (504, "server_error"),
    ],
)  # fmt: skip
def test_each_status_has_openais_type(status: int, kind: str) -> None:
    """Clients choose their exception by status and type."""
    assert kind == kind_of(status)


def test_a_body_has_all_four_keys() -> None:
    """Null where there is nothing to say, never absent."""
    assert {"message": "No.", "type": "invalid_request_error", "param": None, "code": None} == error_of(
        error_body(400, "No.", code=None)
    )


@pytest.mark.parametrize("character", ["x", "é", "😀", '"', "\\", "\x00", "\n"])
def test_no_body_is_larger_than_4_kib(character: str) -> None:
    """Whatever a client made us repeat, and however JSON has to write it."""
    body = error_body(400, character * 5000, code=character * 200, param=character * 200)
    assert 400 < len(body) <= 4096
    assert error_of(body)["message"].startswith(character * 300)


def test_a_long_message_is_cut_visibly() -> None:
    """At a thousand characters."""
    message = error_object(400, "x" * 2000, code=None)["error"]["message"]  # type: ignore[index]
    assert (1000, "…") == (len(message), message[-1])


def test_headers_say_when_to_come_back() -> None:
    """At least a second, whole seconds; retries only where they help."""
    error = ApiError(503, "Full.", code="queue_full", retry_after_s=0, should_retry=False)
    assert [(b"retry-after", b"1"), (b"x-should-retry", b"false")] == error.header_list()
    assert [] == ApiError(400, "No.", code=None).header_list()


def test_an_error_event_is_one_event() -> None:
    """openai-python raises APIError on it."""
    event = ApiError(503, "Lost.", code="worker_lost").event()
    assert event.startswith(b"data: {")
    assert 1 == event.count(b"\n\n")
    assert "worker_lost" == error_of(event.removeprefix(b"data: ").strip())["code"]


def test_a_budget_that_refused_stands_in_the_error() -> None:
    """As figures, inside the object that clients hand on; the type may be narrower than the status."""
    budget = {"level": "tenant acme", "limit": 10, "left": 3}
    error = ApiError(429, "Spent.", code="insufficient_quota", kind="insufficient_quota", budget=dict(budget))
    found = json.loads(error.body())["error"]
    assert budget == found.pop("budget")
    expected = {"message": "Spent.", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    assert expected == found
    assert b"data: %b\n\n" % error.body() == error.event()


def test_an_error_with_a_budget_is_bounded_too() -> None:
    """The message gives way, the figures stay."""
    error = ApiError(429, "\x00" * 5000, code="insufficient_quota", budget={"level": "task " + "x" * 300})
    assert len(error.body()) <= 4096
    assert "task " + "x" * 300 == json.loads(error.body())["error"]["budget"]["level"]


# -- what an engine says


def engine_body(message: str, **fields: object) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400, **fields}}
    ).encode()


def test_a_number_as_code_becomes_null() -> None:
    """vLLM's code is the status; OpenAI's is a word or null."""
    error = error_of(engine_error(400, engine_body("temperature must be positive", param="temperature")).body())
    expected = {"message": "temperature must be positive", "type": "invalid_request_error", "param": "temperature"}
    assert {**expected, "code": None} == error


@pytest.mark.parametrize(
    "message", ["This model's maximum context length is 2048 tokens.", "Input exceeds max_model_len (2048)"]
)
def test_a_context_that_is_too_long_has_openais_word(message: str) -> None:
    """Agents shorten their history on it."""
    assert "context_length_exceeded" == error_of(engine_error(400, engine_body(message)).body())["code"]


def test_a_missing_model_has_openais_word() -> None:
    """Also where only the engine knew."""
    assert "model_not_found" == error_of(engine_error(404, engine_body("no such LoRA")).body())["code"]


def test_a_route_that_the_model_does_not_serve_is_said() -> None:
    """An embedding model has no chats: its engine does not know the route at all."""
    error = engine_error(404, b'{"detail":"Not Found"}')
    assert (404, "route_not_served", "model") == (error.status, error.code, error.param)


@pytest.mark.parametrize("status", [500, 503])
def test_nothing_of_an_engines_failure_is_shown(status: int) -> None:
    """Its text may hold paths, tensors, prompts."""
    body = engine_error(status, engine_body("SECRET /models/x.py line 3")).body()
    assert b"SECRET" not in body
    assert "engine_error" == error_of(body)["code"]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"error":"text"}', b'{"error":{"message":5}}', b"\xff", b"[" * 100_000]
)
def test_an_error_without_an_error_object_still_has_a_body(body: bytes) -> None:
    """In our words."""
    assert "The engine refused this request." == error_of(engine_error(400, body).body())["message"]
