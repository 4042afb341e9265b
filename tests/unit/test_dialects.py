"""Each route's own words: errors that its clients raise on, notes that they pass over, usage where they look for it."""

import json
from typing import Any

import pytest

from scheduler.api.dialects import ANTHROPIC_KINDS, DIALECTS, NOTE, authorizations, dialect
from scheduler.api.errors import ApiError
from scheduler.api.schemas import ROUTES
from scheduler.api.streaming import EventHold
from tests.fake_dispatcher import charge

ERROR = ApiError(429, "Too much.", code="rate_limit_exceeded", param="model", budget={"limit": 5})
NOTED = {"energy_joules": 1.5}
CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


def events_of(stream: bytes) -> list[tuple[str | None, Any]]:
    """(name, data) of each event."""
    assert stream.endswith(b"\n\n")
    found = []
    for event in stream[:-2].split(b"\n\n"):
        *names, data = event.split(b"\n")
        name = names[0].removeprefix(b"event: ").decode() if names else None
        text = data.removeprefix(b"data: ")
        found.append((name, None if text == b"[DONE]" else json.loads(text)))
    return found


def test_every_route_has_a_dialect() -> None:
    """And what is no route speaks as chats do."""
    assert set(ROUTES) == set(DIALECTS)
    assert dialect(CHAT) is dialect("/health")


# -- errors


@pytest.mark.parametrize("path", [CHAT, COMPLETION, EMBEDDING, RESPONSES, "/elsewhere"])
def test_openai_s_error_bodies_are_the_same_everywhere(path: str) -> None:
    """Four keys, and the budget."""
    assert ERROR.body() == dialect(path).error_body(ERROR)


def test_an_error_in_anthropic_s_shape() -> None:
    """Its type by the status; our word, the field and the budget beside it."""
    assert {
        "type": "error",
        "error": {
            "type": "rate_limit_error", "message": "Too much.", "code": "rate_limit_exceeded", "param": "model",
            "budget": {"limit": 5},
        },
    } == json.loads(dialect(MESSAGES).error_body(ERROR))  # fmt: skip


@pytest.mark.parametrize(
    ("status", "kind"), [*ANTHROPIC_KINDS.items(), (400, "invalid_request_error"), (422, "invalid_request_error"),
                         (405, "invalid_request_error"), (500, "api_error"), (502, "api_error")]
)  # fmt: skip
def test_every_status_has_a_type(status: int, kind: str) -> None:
    """Anthropic's words; what has none of its own is invalid, or ours."""
    assert kind == json.loads(dialect(MESSAGES).error_body(ApiError(status, "x", code="x")))["error"]["type"]


@pytest.mark.parametrize("path", DIALECTS)
def test_an_error_within_a_stream_is_one_event_with_the_word(path: str) -> None:
    """openai-python raises on an ``error`` object in the data, Anthropic's client on the event's name."""
    [(name, data)] = events_of(dialect(path).error_event(ERROR))
    assert {CHAT: None, COMPLETION: None, EMBEDDING: None}.get(path, "error") == name
    assert ("Too much.", "rate_limit_exceeded") == (data["error"]["message"], data["error"]["code"])


def test_an_error_event_of_responses_is_openai_s() -> None:
    """All that its schema names is there."""
    [(_, data)] = events_of(dialect(RESPONSES).error_event(ERROR))
    assert {"type": "error", "code": "rate_limit_exceeded", "message": "Too much.", "param": "model"}.items() <= (
        data.items()
    )
    assert isinstance(data["sequence_number"], int)


@pytest.mark.parametrize("path", DIALECTS)
def test_no_error_is_longer_than_4_kib(path: str) -> None:
    """However long the message, and however many escapes it takes."""
    assert len(dialect(path).error_body(ApiError(400, "\x01" * 100_000, code="x" * 1000))) < 4096 + 256


# -- usage and joules


@pytest.mark.parametrize("path", DIALECTS)
def test_a_note_is_one_event_that_ends_nothing(path: str) -> None:
    """It leaves before the last event; so it must not look like one."""
    event = dialect(path).note_event(charge(), NOTED, created_unix_s=5)
    [(_, data)] = events_of(event)
    assert NOTED == data[NOTE]
    assert event == EventHold(dialect(path).last_events).take(event)


@pytest.mark.parametrize("path", DIALECTS)
def test_a_stream_of_the_usage_alone_ends_as_its_route_does(path: str) -> None:
    """Its last event is one, and the only one."""
    stream = dialect(path).usage_stream(charge(), NOTED, created_unix_s=5)
    hold = EventHold(dialect(path).last_events)
    for event in stream[:-2].split(b"\n\n"):
        assert b"" == hold.held
        hold.take(event + b"\n\n")
    assert stream.endswith(hold.held)
    assert hold.held


USAGE: dict[str, dict[str, Any]] = {
    RESPONSES: {
        "input_tokens": 7, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 10,
    },
    MESSAGES: {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 3},
}  # fmt: skip
OPENAI_USAGE = {
    "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "name", "empty"),
    [
        (CHAT, "chat.completion", "chatcmpl-req-x-1", "choices"),
        (COMPLETION, "text_completion", "cmpl-req-x-1", "choices"),
        (EMBEDDING, "list", "embd-req-x-1", "data"),
        (RESPONSES, "response", "resp_req-x-1", "output"),
        (MESSAGES, "message", "msg_req-x-1", "content"),
    ],
)
def test_where_only_the_usage_is_left_it_has_the_shape_of_a_whole_answer(
    path: str, kind: str, name: str, empty: str
) -> None:
    """Each dialect's words for tokens; Anthropic's input leaves out what was read from the cache."""
    body = json.loads(dialect(path).usage_body(charge(), NOTED, created_unix_s=5))
    assert (kind, name, "m", []) == (body.get("object", body.get("type")), body["id"], body["model"], body[empty])
    assert (USAGE.get(path, OPENAI_USAGE), NOTED) == (body["usage"], body[NOTE])


def test_the_chunk_of_a_chat_has_no_choices() -> None:
    """As the usage chunk: every client reads it."""
    [(name, data)] = events_of(dialect(CHAT).note_event(charge(), NOTED, created_unix_s=1_700_000_000))
    assert name is None
    assert {
        "id": "chatcmpl-req-x-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m",
        "choices": [], "usage": OPENAI_USAGE, NOTE: NOTED,
    } == data  # fmt: skip


# -- keys


@pytest.mark.parametrize(
    ("headers", "values"),
    [
        ({}, []),
        ({b"authorization": [b"Bearer a"]}, [b"Bearer a"]),
        ({b"x-api-key": [b"a"]}, [b"Bearer a"]),
        ({b"authorization": [b"Bearer a"], b"x-api-key": [b"a"]}, [b"Bearer a"]),
        ({b"authorization": [b"Bearer a"], b"x-api-key": [b"b"]}, [b"Bearer a", b"Bearer b"]),
        ({b"x-api-key": [b"a", b"b"]}, [b"Bearer a", b"Bearer b"]),
    ],
)
def test_both_headers_of_a_key_are_read(headers: dict[bytes, list[bytes]], values: list[bytes]) -> None:
    """Two different keys stay two, which is refused."""
    assert values == authorizations(headers)
