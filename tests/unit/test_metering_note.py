"""Joules in the answer: beside the usage of a whole body, or as one more chunk in OpenAI's shape."""

import json

import pytest

from scheduler.api.metering_note import note_event, note_of, usage_body, with_note
from tests.fake_dispatcher import charge


def test_a_note_says_what_was_predicted_so_far() -> None:
    """Marked provisional, with the grade of its meter and the id of its receipt."""
    assert {
        "cost_nano": 40, "currency": "EUR", "energy_joules": 1.5, "gpu_seconds": 0.25, "grade": "A",
        "provisional": True, "request_id": "req-x",
    } == note_of(charge(cost_nano=40), "EUR")  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/v1/chat/completions", "chatcmpl-req-x-1", "chat.completion.chunk"),
        ("/v1/completions", "cmpl-req-x-1", "text_completion"),
    ],
)
def test_the_last_chunk_has_the_shape_of_its_route(path: str, name: str, kind: str) -> None:
    """No choices, as the usage chunk: every client reads it."""
    event = note_event(charge(), path=path, currency="USD", created_unix_s=1_700_000_000)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert {
        "id": name, "object": kind, "created": 1_700_000_000, "model": "m", "choices": [],
        "usage": {
            "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
        "jouleway": note_of(charge(), "USD"),
    } == json.loads(event.removeprefix(b"data: "))  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/chat/completions", "chat.completion"), ("/v1/completions", "text_completion")]
)
def test_where_only_the_usage_is_left_it_has_the_shape_of_a_whole_answer(path: str, kind: str) -> None:
    """The same fields as the last chunk, under the name of a whole answer."""
    body = json.loads(usage_body(charge(), path=path, currency="USD", created_unix_s=5))
    chunk = json.loads(note_event(charge(), path=path, currency="USD", created_unix_s=5).removeprefix(b"data: "))
    assert {**chunk, "object": kind} == body


def test_a_whole_answer_keeps_its_bytes_field_by_field() -> None:
    """Numbers and texts are passed on as the engine wrote them."""
    body = b'{"id": "x", "logprob": -1.50, "text": "\\u00e9"}'
    found = with_note(body, charge(), currency="USD")
    assert b'"logprob":-1.50,"text":"\\u00e9"' in found
    assert {**json.loads(body), "jouleway": note_of(charge(), "USD")} == json.loads(found)


@pytest.mark.parametrize("body", [b"[1]", b"", b"{", b"\xff", b'"text"'])
def test_a_body_that_is_no_object_is_left_alone(body: bytes) -> None:
    """What an engine says is passed on, whatever it is."""
    assert body == with_note(body, charge(), currency="USD")
