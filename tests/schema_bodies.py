"""Bodies of every route, and what the reader makes of them."""

import json
from typing import Any

import pytest

from scheduler.api.ask import Ask
from scheduler.api.errors import ApiError
from scheduler.api.schemas import parse

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 10},
}


def body_of(path: str, **fields: Any) -> bytes:
    """The least that the route takes, and these fields."""
    return json.dumps({"model": "m", **LEAST[path], **fields}).encode()


def admitted(path: str, **fields: Any) -> Ask:
    return parse(path, body_of(path, **fields), max_output_tokens=1000)


def sent(ask: Ask, max_output_tokens: int = 7) -> dict[str, Any]:
    """What the engine gets."""
    fields = json.loads(ask.render(max_output_tokens))
    assert isinstance(fields, dict)
    return fields


def refused(path: str, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admitted(path, **fields)
    assert 400 == caught.value.status
    return caught.value
