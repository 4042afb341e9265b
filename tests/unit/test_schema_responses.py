"""Responses without a memory: nothing is kept, looked up, run or fetched here."""

from typing import Any

import pytest

from scheduler.api.media import IMAGE_TOKENS
from scheduler.api.schema_responses import RESPONSES, RESPONSES_PATH, ResponsesBody
from tests.image_files import png, url_of
from tests.schema_bodies import admitted, refused, sent

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def test_a_text_is_read() -> None:
    """The engine is told to keep nothing, whatever the client said of it."""
    ask = admitted(
        RESPONSES_PATH, instructions="be brief", max_output_tokens=9, stream=True, service_tier="priority",
        metadata={"a": "b"}, user="u", store=None, tools=[FUNCTION],
    )  # fmt: skip
    assert (9, True, "priority", 1, 2) == (
        ask.max_output_tokens, ask.is_stream, ask.service_tier, ask.num_sequences, ask.num_messages,
    )  # fmt: skip
    assert {
        "model": "m", "input": "hello", "instructions": "be brief", "stream": True, "metadata": {"a": "b"},
        "tools": [FUNCTION], "store": False, "max_output_tokens": 7,
    } == sent(ask)  # fmt: skip


def test_null_is_as_good_as_absent() -> None:
    """Clients send null for what is not set; vLLM would refuse it in some places."""
    optional = set(ResponsesBody.__struct_fields__) - {"model", "input"}
    nothing = dict.fromkeys(optional)
    assert {"model", "input", "store", "max_output_tokens"} == set(sent(admitted(RESPONSES_PATH, **nothing)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("store", True), ("background", True), ("previous_response_id", "resp_1"), ("previous_response_id", "")],
)
def test_what_would_be_kept_is_refused(field: str, value: object) -> None:
    """There is no store; saying no to it is fine."""
    error = refused(RESPONSES_PATH, **{field: value})
    assert (field, "unsupported_parameter") == (error.param, error.code)
    assert not {"background", "previous_response_id"} & sent(admitted(RESPONSES_PATH, **{field: None})).keys()
    assert admitted(RESPONSES_PATH, store=False, background=False)


def test_the_limit_is_checked() -> None:
    """Against what is served here."""
    assert "max_output_tokens" == refused(RESPONSES_PATH, max_output_tokens=1001).param


@pytest.mark.parametrize("field", sorted(RESPONSES.unsupported))
def test_an_unsupported_field_says_why(field: str) -> None:
    """By name."""
    error = refused(RESPONSES_PATH, **{field: "x"})
    assert ("unsupported_parameter", field) == (error.code, error.param)


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview", "file_search", "mcp", "code_interpreter", None])
def test_tools_that_would_run_on_the_server_are_refused(kind: str | None) -> None:
    """Some of them fetch addresses."""
    assert "unsupported_tool" == refused(RESPONSES_PATH, tools=[{"type": kind}]).code


def test_a_conversation_is_read() -> None:
    """Messages, reasoning, calls and their outputs, as a client sends back what it got."""
    conversation = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "it rains"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": url_of(png(28, 28)), "detail": "auto"}]},
    ]
    ask = admitted(RESPONSES_PATH, input=conversation)
    assert (6, IMAGE_TOKENS + 4) == (ask.num_messages, ask.media_tokens)
    assert conversation == sent(ask)["input"]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"type": "file_search_call", "id": "x", "queries": []},
        {"type": "message", "content": "no role"},
        {"role": "user", "content": 5},
        {"role": "user", "content": ["text"]},
        {"role": "user", "content": [{"type": "input_file", "file_url": "https://example.org/x.pdf"}]},
        {"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/x.png"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": {"url": "https://example.org/x.png"}}]},
        {"type": "function_call_output", "call_id": "c",
         "output": [{"type": "input_image", "image_url": "http://169.254.169.254/"}]},
    ],
)  # fmt: skip
def test_what_is_kept_elsewhere_or_would_be_fetched_is_refused(item: dict[str, Any]) -> None:
    """In messages and in outputs of tools."""
    assert "input" == refused(RESPONSES_PATH, input=[item]).param


def test_an_empty_conversation_is_refused() -> None:
    """There is nothing to answer."""
    assert "input" == refused(RESPONSES_PATH, input=[]).param
