"""Chats: messages and what they may be made of, tools, and the two names of the limit."""

from typing import Any

import pytest

from scheduler.api.media import IMAGE_TOKENS, SOUND_TOKENS
from scheduler.api.schema_chat import CHAT_PATH
from scheduler.api.schema_fields import MAX_MESSAGES
from tests.image_files import png, url_of
from tests.schema_bodies import HELLO, admitted, refused, sent

IMAGE = {"type": "image_url", "image_url": {"url": url_of(png(14, 14)), "detail": "low"}}


def user(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_chat_is_read() -> None:
    """Everything that the relay and the core need to know of it."""
    ask = admitted(
        CHAT_PATH, max_completion_tokens=9, n=2, stream=True, stream_options={"include_usage": True},
        service_tier="flex",
    )  # fmt: skip
    assert (CHAT_PATH, "m", True, "flex", 2, 9, 1) == (
        ask.path, ask.model, ask.is_stream, ask.service_tier, ask.num_sequences, ask.max_output_tokens,
        ask.num_messages,
    )  # fmt: skip


def test_the_engine_gets_what_was_admitted_and_its_limit() -> None:
    """The client's own limit is replaced by the cap, fields of OpenAI's bookkeeping are taken out."""
    ask = admitted(
        CHAT_PATH, max_tokens=500, temperature=0.5, user="u", metadata={"a": "b"}, store=False, service_tier="auto"
    )
    assert {"model": "m", "messages": HELLO, "temperature": 0.5, "max_completion_tokens": 7} == sent(ask)


def test_the_newer_name_of_the_limit_wins() -> None:
    """And the message names the one that was given."""
    assert 5 == admitted(CHAT_PATH, max_tokens=500, max_completion_tokens=5).max_output_tokens
    assert "max_completion_tokens" == refused(CHAT_PATH, max_completion_tokens=1001).param
    assert "max_tokens" == refused(CHAT_PATH, max_tokens=1001).param


@pytest.mark.parametrize("field", ["tools", "response_format", "logprobs", "parallel_tool_calls", "tool_choice"])
def test_tools_schemas_and_logprobs_pass_as_they_are(field: str) -> None:
    """The engine reads them."""
    value: Any = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }.get(field, True)
    assert value == sent(admitted(CHAT_PATH, **{field: value}))[field]


def test_media_counts_by_its_size_and_not_as_text() -> None:
    """The base64 of an image is not text."""
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 4000, "format": "wav"}}
    ask = admitted(CHAT_PATH, messages=user({"type": "text", "text": "see"}, IMAGE, sound))
    assert IMAGE_TOKENS + 1 + SOUND_TOKENS + 3000 == ask.media_tokens
    assert ask.text_bytes < 500


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "text", "image_url": {"url": "http://169.254.169.254/"}},
        {"type": "audio_url", "audio_url": {"url": "http://169.254.169.254/"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "text", "text": "x", "image_embeds": "AAAA"},
        {"type": "input_audio", "input_audio": "AAAA"},
        {"type": ["text"]},
        5,
    ],
)
def test_parts_that_would_make_the_engine_fetch_or_unpickle_are_refused(part: object) -> None:
    """Addresses are not fetched, tensors not loaded, films not decoded."""
    assert "messages" == refused(CHAT_PATH, messages=user(part)).param


@pytest.mark.parametrize("message", [{}, {"content": "x"}, {"role": 5, "content": "x"}, {"role": "user", "content": 5}])
def test_a_message_without_form_is_refused(message: dict[str, Any]) -> None:
    """Role and content are what templates read."""
    assert "messages" == refused(CHAT_PATH, messages=[message]).param


def test_the_number_of_messages_is_bounded() -> None:
    """So is that of tools."""
    assert "messages" == refused(CHAT_PATH, messages=HELLO * (MAX_MESSAGES + 1)).param
    assert "messages" == refused(CHAT_PATH, messages=[]).param
    assert "tools" == refused(CHAT_PATH, tools=[{}] * 129).param
