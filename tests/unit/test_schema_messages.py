"""Messages in Anthropic's words: blocks, images inside of the body only, a limit that must be given."""

import json

import pytest

from scheduler.api.errors import ApiError
from scheduler.api.media import IMAGE_TOKENS
from scheduler.api.schema_messages import MESSAGES, MESSAGES_PATH
from scheduler.api.schemas import parse
from tests.image_files import base64_of, png
from tests.schema_bodies import HELLO, admitted, refused, sent

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64_of(png(14, 28))}}
REMOTE = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}


def test_a_message_is_read() -> None:
    """Whom it is for stays here; the limit becomes the cap."""
    ask = admitted(
        MESSAGES_PATH, max_tokens=9, system="be brief", stream=True, stop_sequences=["x"], temperature=0.1,
        service_tier="flex", metadata={"user_id": "u"},
    )  # fmt: skip
    assert (9, True, "flex", 1, 2) == (
        ask.max_output_tokens, ask.is_stream, ask.service_tier, ask.num_sequences, ask.num_messages,
    )  # fmt: skip
    assert {
        "model": "m", "messages": HELLO, "system": "be brief", "stream": True, "stop_sequences": ["x"],
        "temperature": 0.1, "max_tokens": 7,
    } == sent(ask)  # fmt: skip


def test_anthropic_s_own_word_for_a_tier_is_known() -> None:
    """Its clients send it."""
    assert "default" == admitted(MESSAGES_PATH, service_tier="standard_only").service_tier


@pytest.mark.parametrize("limit", [None, 0, -1, 1.5, "9", 1001])
def test_the_limit_is_checked(limit: object) -> None:
    """Also against what is served here."""
    assert "max_tokens" == refused(MESSAGES_PATH, max_tokens=limit).param


def test_the_limit_must_be_given() -> None:
    """As Anthropic's."""
    with pytest.raises(ApiError) as caught:
        parse(MESSAGES_PATH, json.dumps({"model": "m", "messages": HELLO}).encode(), max_output_tokens=1000)
    assert ("max_tokens", "max_tokens: is missing.") == (caught.value.param, caught.value.message)


def test_blocks_are_read() -> None:
    """An image in the message, another in a tool's result."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see", "cache_control": {"type": "ephemeral"}}, IMAGE]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}, IMAGE]},
            {"type": "tool_result", "tool_use_id": "u"},
        ]},
    ]  # fmt: skip
    ask = admitted(MESSAGES_PATH, messages=messages, system=[{"type": "text", "text": "be brief"}])
    assert (2 * (IMAGE_TOKENS + 2), 5) == (ask.media_tokens, ask.num_messages)
    assert messages == sent(ask)["messages"]


@pytest.mark.parametrize(
    "block",
    [
        REMOTE,
        {"type": "image", "source": {"data": "AAAA"}},
        {"type": "image"},
        {"type": "image", "source": {"type": "base64", "data": base64_of(b"<svg>")}},
        {"type": "document", "source": {"type": "url", "url": "https://example.org/x.pdf"}},
        {"type": "tool_result", "tool_use_id": "t", "content": [REMOTE]},
        {"type": "tool_result", "tool_use_id": "t", "content": 5},
        {"text": "no type"},
        {"type": ["text"]},
        "text",
    ],
)
def test_blocks_that_would_be_fetched_or_are_unknown_are_refused(block: object) -> None:
    """At every depth."""
    assert "messages" == refused(MESSAGES_PATH, messages=[{"role": "user", "content": [block]}]).param


def test_the_system_s_blocks_are_checked_as_well() -> None:
    """By its own name."""
    assert "system" == refused(MESSAGES_PATH, system=[REMOTE]).param


@pytest.mark.parametrize("message", [{}, {"content": "x"}, {"role": 5, "content": "x"}, {"role": "user"}])
def test_a_message_without_form_is_refused(message: dict[str, object]) -> None:
    """Role and content."""
    assert "messages" == refused(MESSAGES_PATH, messages=[message]).param


@pytest.mark.parametrize("field", sorted(MESSAGES.unsupported))
def test_an_unsupported_field_says_why(field: str) -> None:
    """By name."""
    assert "unsupported_parameter" == refused(MESSAGES_PATH, **{field: []}).code
