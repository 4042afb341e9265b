"""A simulated engine's answers on every route have the shapes that the clients' own types take."""

import base64
import json
import struct
from typing import Any

import anthropic.types
import openai.types
import openai.types.chat
import openai.types.responses
import pytest
from pydantic import TypeAdapter

from workers.engines.simulated_openai import (
    CHAT_PATH,
    COMPLETION_PATH,
    EMBEDDING_PATH,
    MESSAGES_PATH,
    RESPONSES_PATH,
    Ask,
    parse_ask,
)
from workers.engines.simulated_writers import WRITERS, Counts, Writer, Written

COUNTS = Counts(prompt=11, output=3, cached=4)
BODIES: dict[str, dict[str, Any]] = {
    CHAT_PATH: {"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": True}},
    COMPLETION_PATH: {"prompt": "x"},
    EMBEDDING_PATH: {"input": ["one", "two", "one"]},
    RESPONSES_PATH: {"input": "x"},
    MESSAGES_PATH: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
}
EVENTS: dict[str, TypeAdapter[Any]] = {
    CHAT_PATH: TypeAdapter(openai.types.chat.ChatCompletionChunk),
    RESPONSES_PATH: TypeAdapter(openai.types.responses.ResponseStreamEvent),
    MESSAGES_PATH: TypeAdapter(anthropic.types.RawMessageStreamEvent),
}


def ask(path: str, **fields: Any) -> Ask:
    return parse_ask(path, json.dumps({**BODIES[path], **fields}).encode(), models=("m",))


def writer(path: str, **fields: Any) -> Writer:
    return WRITERS[path](ask(path, **fields), request_id="r-1", model="m", created=5)


def stream_of(path: str, words: list[bytes], reason: str = "stop") -> list[tuple[str | None, Any]]:
    """(name, data) of every event of one choice with these tokens."""
    each = writer(path)
    parts = [each.first(0, COUNTS)]
    parts += [each.token(each.frame(0), word, None) for word in words[:-1]]
    parts += [each.last(0, words[-1], reason), each.close([Written(b"".join(words), reason)], COUNTS)]
    events = []
    for event in b"".join(parts).removesuffix(b"\n\n").split(b"\n\n"):
        *names, data = event.split(b"\n")
        text = data.removeprefix(b"data: ")
        assert len(names) == (path in (RESPONSES_PATH, MESSAGES_PATH))
        if text != b"[DONE]":
            events.append((names[0].removeprefix(b"event: ").decode() if names else None, json.loads(text)))
    return events


@pytest.mark.parametrize("path", EVENTS)
def test_every_event_is_one_that_the_client_knows(path: str) -> None:
    """Validated by the client's own types; a named event says its name in its data."""
    events = stream_of(path, [b" one", b" two", b" three"])
    for name, data in events:
        EVENTS[path].validate_python(data)
        assert name is None or name == data["type"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (CHAT_PATH, openai.types.chat.ChatCompletion),
        (COMPLETION_PATH, openai.types.Completion),
        (EMBEDDING_PATH, openai.types.CreateEmbeddingResponse),
        (RESPONSES_PATH, openai.types.responses.Response),
        (MESSAGES_PATH, anthropic.types.Message),
    ],
)
def test_a_whole_body_is_one_that_the_client_knows(path: str, kind: Any) -> None:
    """Its tokens are where the client looks for them."""
    answer = TypeAdapter(kind).validate_json(writer(path).whole([Written(b" one", "stop")], COUNTS))
    usage = answer.usage
    expected = {RESPONSES_PATH: 11, MESSAGES_PATH: 7}.get(path, 11)
    assert expected == (usage.input_tokens if path in (RESPONSES_PATH, MESSAGES_PATH) else usage.prompt_tokens)
    assert "m" == answer.model


def test_a_response_s_events_are_numbered_and_its_last_one_repeats_the_text() -> None:
    """From created to completed."""
    events = stream_of(RESPONSES_PATH, [b" one", b" two"])
    assert list(range(len(events))) == [data["sequence_number"] for _, data in events]
    assert " one two" == "".join(data["delta"] for name, data in events if name == "response.output_text.delta")
    last = events[-1][1]["response"]
    assert ("completed", " one two") == (last["status"], last["output"][0]["content"][0]["text"])
    assert 14 == last["usage"]["total_tokens"]


@pytest.mark.parametrize(
    ("path", "reason", "said"),
    [
        (CHAT_PATH, "length", "length"),
        (COMPLETION_PATH, "stop", "stop"),
        (RESPONSES_PATH, "length", "incomplete"),
        (RESPONSES_PATH, "stop", "completed"),
        (MESSAGES_PATH, "length", "max_tokens"),
        (MESSAGES_PATH, "stop", "end_turn"),
    ],
)
def test_each_route_says_why_it_ended(path: str, reason: str, said: str) -> None:
    """In its own words, whole and streamed."""
    whole = json.loads(writer(path).whole([Written(b" one", reason)], COUNTS))
    streamed = json.dumps([data for _, data in stream_of(path, [b" one"], reason)])
    found = whole.get("status") or whole.get("stop_reason") or whole["choices"][0]["finish_reason"]
    assert said == found
    assert json.dumps(said) in streamed


def test_anthropic_s_stream_is_one_block() -> None:
    """Start, text, stop, and the usage before the end."""
    events = stream_of(MESSAGES_PATH, [b" one", b" two"])
    assert [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ] == [name for name, _ in events]  # fmt: skip
    usage = {"input_tokens": 7, "cache_read_input_tokens": 4, "output_tokens": 3}
    assert (usage, 0) == (events[-2][1]["usage"], events[0][1]["message"]["usage"]["output_tokens"])


def test_equal_texts_are_equal_vectors_of_length_one() -> None:
    """Others point elsewhere; the dimensions can be asked for."""
    body = json.loads(writer(EMBEDDING_PATH, dimensions=8).whole([], COUNTS))
    one, two, again = [each["embedding"] for each in body["data"]]
    assert (one == again, one == two, 8) == (True, False, len(one))
    assert sum(x * x for x in one) == pytest.approx(1.0)


def test_vectors_can_be_bytes() -> None:
    """As openai-python asks for them."""
    plain = json.loads(writer(EMBEDDING_PATH).whole([], COUNTS))["data"][0]["embedding"]
    packed = json.loads(writer(EMBEDDING_PATH, encoding_format="base64").whole([], COUNTS))["data"][0]["embedding"]
    assert list(struct.unpack(f"<{len(plain)}f", base64.b64decode(packed))) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_usage_of_every_chunk_can_be_asked_for(include_usage: bool) -> None:
    """vLLM's continuous_usage_stats, which benchmarks send."""
    each = writer(CHAT_PATH, stream_options={"include_usage": include_usage, "continuous_usage_stats": True})
    chunk = json.loads(each.token(each.frame(0), b" one", COUNTS).removeprefix(b"data: "))
    assert 14 == chunk["usage"]["total_tokens"]
