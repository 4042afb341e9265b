"""Bodies that a simulated engine takes: every route's prompt and limit, refused as vLLM refuses them."""

import json
from typing import Any

import pytest

from workers.engines.simulated_openai import (
    CHAT_PATH,
    COMPLETION_PATH,
    COUNT_PATH,
    DEFAULT_COMPLETION_TOKENS,
    EMBEDDING_PATH,
    MESSAGES_PATH,
    RESPONSES_PATH,
    BadRequest,
    parse_ask,
)

HELLO = [{"role": "user", "content": "hello"}]


def parsed(path: str, **fields: Any) -> Any:
    return parse_ask(path, json.dumps({"model": "m", **fields}).encode(), models=("m",))


@pytest.mark.parametrize(
    ("path", "fields", "prompts", "limit"),
    [
        (CHAT_PATH, {"messages": HELLO, "max_tokens": 3}, (b"<|user|>hello",), 3),
        (CHAT_PATH, {"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 2}, (b"<|user|>hello",), 2),
        (COMPLETION_PATH, {"prompt": ["a", "b"]}, (b"a", b"b"), DEFAULT_COMPLETION_TOKENS),
        (EMBEDDING_PATH, {"input": [[1], [2]]}, (b"\1\0\0\0", b"\2\0\0\0"), 0),
        (RESPONSES_PATH, {"input": "hello", "instructions": "brief"}, (b"brief<|user|>hello",), None),
        (RESPONSES_PATH, {"input": [*HELLO, {"type": "function_call_output", "output": "x"}], "max_output_tokens": 3},
         (b"<|user|>hello<|tool|>",), 3),
        (MESSAGES_PATH, {"messages": HELLO, "max_tokens": 3, "system": [{"type": "text", "text": "brief"}]},
         (b"brief<|user|>hello",), 3),
        (COUNT_PATH, {"messages": HELLO, "system": "brief"}, (b"brief<|user|>hello",), None),
    ],
)  # fmt: skip
def test_prompt_and_limit_of_every_route(path: str, fields: dict[str, Any], prompts: Any, limit: int | None) -> None:
    """What is computed, and how much may come of it."""
    asked = parsed(path, **fields)
    assert (prompts, limit) == (asked.prompts, asked.max_tokens)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (MESSAGES_PATH, {"messages": HELLO}, "max_tokens"),
        (MESSAGES_PATH, {"messages": [], "max_tokens": 3}, "messages"),
        (RESPONSES_PATH, {}, "input"),
        (RESPONSES_PATH, {"input": [5]}, "input"),
        (RESPONSES_PATH, {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        (EMBEDDING_PATH, {"input": {}}, "input"),
        (EMBEDDING_PATH, {"input": "x", "dimensions": 65}, "dimensions"),
        (CHAT_PATH, {"messages": [{"role": "user", "content": 5}]}, "messages"),
    ],
)
def test_what_is_wrong_is_named(path: str, fields: dict[str, Any], param: str) -> None:
    """As vLLM's error object says it."""
    with pytest.raises(BadRequest) as caught:
        parsed(path, **fields)
    assert (400, param) == (caught.value.status, caught.value.param)


def test_an_embedding_is_never_streamed() -> None:
    """The field has no meaning there."""
    assert not parsed(EMBEDDING_PATH, input="x", stream=True).is_stream


def test_errors_have_the_shape_of_their_route() -> None:
    """vLLM speaks Anthropic's on Anthropic's routes."""
    error = BadRequest("no", param="x")
    assert {"error": {"message": "no", "type": "BadRequestError", "param": "x", "code": 400}} == json.loads(
        error.body(CHAT_PATH)
    )
    for path in (MESSAGES_PATH, COUNT_PATH):
        assert {"type": "error", "error": {"type": "BadRequestError", "message": "no"}} == json.loads(error.body(path))
