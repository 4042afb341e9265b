"""How each route says the same things: an error, the usage, joules, and which event is the last of a stream.

Called by every file that answers a client. It must never read a text, and knows of a stream only how its events begin.

Three dialects are spoken: OpenAI's chats, completions and embeddings; OpenAI's responses; Anthropic's messages. The
word of an error (``code``) is the same in all of them, beside whatever else the dialect has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from scheduler.accounting.settlement import Charge
from scheduler.api.errors import ApiError
from scheduler.api.schema_chat import CHAT_PATH
from scheduler.api.schema_completion import COMPLETION_PATH
from scheduler.api.schema_embedding import EMBEDDING_PATH
from scheduler.api.schema_messages import MESSAGES_PATH
from scheduler.api.schema_responses import RESPONSES_PATH

NOTE = "jouleway"
"""The field that holds what an answer says of its cost and energy; also the name of such an event."""

Note = Mapping[str, Any]
Headers = Mapping[bytes, list[bytes]]

_encode = msgspec.json.Encoder().encode


class Dialect(Protocol):
    """One way of speaking."""

    @property
    def last_events(self) -> tuple[bytes, ...]:
        """How the events begin after which a client takes its answer for whole; they leave after the charge."""

    @property
    def id_header(self) -> bytes | None:
        """Where its clients look for the request's id, beside ``x-request-id``."""

    def error_body(self, error: ApiError) -> bytes: ...

    def error_event(self, error: ApiError) -> bytes:
        """Inside a stream that has begun; the dialect's own clients raise on it."""

    def note_event(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        """What is said of an answer's cost before its last event; clients that do not know it pass over it."""

    def usage_body(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        """A whole answer of which nothing but the usage is left."""

    def usage_stream(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        """The same as a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAi:
    """Chats, completions, embeddings: ``data:`` events without names, ``[DONE]`` at the end."""

    prefix: str
    """Of an answer's id, as vLLM makes it."""
    kind: str
    chunk_kind: str
    last_events: tuple[bytes, ...] = (b"data: [DONE]",)
    id_header: bytes | None = None

    def error_body(self, error: ApiError) -> bytes:
        return error.body()

    def error_event(self, error: ApiError) -> bytes:
        return error.event()

    def note_event(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        """One more chunk without choices, as the usage chunk is: every client reads it."""
        return b"data: %b\n\n" % _encode(self._fields(self.chunk_kind, charge, note, created_unix_s))

    def usage_body(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        return _encode(self._fields(self.kind, charge, note, created_unix_s))

    def usage_stream(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        return self.note_event(charge, note, created_unix_s=created_unix_s) + b"data: [DONE]\n\n"

    def _fields(self, kind: str, charge: Charge, note: Note, created_unix_s: int) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{charge.attempt_id}",
            "object": kind,
            "created": created_unix_s,
            "model": charge.model,
            "data" if kind == "list" else "choices": [],
            "usage": {
                "prompt_tokens": charge.input_tokens,
                "completion_tokens": charge.output_tokens,
                "total_tokens": charge.input_tokens + charge.output_tokens,
                "prompt_tokens_details": {"cached_tokens": charge.cached_tokens},
            },
            NOTE: note,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """Named events; the last one says how the response ended."""

    last_events: tuple[bytes, ...] = (
        b"event: response.completed",
        b"event: response.incomplete",
        b"event: response.failed",
    )
    id_header: bytes | None = None

    def error_body(self, error: ApiError) -> bytes:
        return error.body()

    def error_event(self, error: ApiError) -> bytes:
        """OpenAI's error event, and within it the object on which openai-python raises."""
        inner = msgspec.json.decode(error.body())["error"]
        fields = {
            "type": "error",
            "code": inner["code"],
            "message": inner["message"],
            "param": inner["param"],
            "sequence_number": 0,
            "error": inner,
        }
        return _named("error", fields)

    def note_event(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        return _named(NOTE, {"type": NOTE, "sequence_number": 0, NOTE: note})

    def usage_body(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        return _encode(_response(charge, note, created_unix_s))

    def usage_stream(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        response = _response(charge, note, created_unix_s)
        created = {"type": "response.created", "sequence_number": 0, "response": {**response, "status": "in_progress"}}
        completed = {"type": "response.completed", "sequence_number": 1, "response": response}
        return _named("response.created", created) + _named("response.completed", completed)


def _response(charge: Charge, note: Note, created_unix_s: int) -> dict[str, Any]:
    return {
        "id": f"resp_{charge.attempt_id}",
        "object": "response",
        "created_at": created_unix_s,
        "model": charge.model,
        "status": "completed",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": charge.input_tokens,
            "input_tokens_details": {"cached_tokens": charge.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": charge.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": charge.input_tokens + charge.output_tokens,
        },
        NOTE: note,
    }


ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's ``type`` for a status; any other 4xx is invalid_request_error, any other 5xx api_error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anthropic:
    """Named events from ``message_start`` to ``message_stop``; errors of a shape of their own."""

    last_events: tuple[bytes, ...] = (b"event: message_stop",)
    id_header: bytes | None = b"request-id"

    def error_body(self, error: ApiError) -> bytes:
        return _encode(self._error(error))

    def error_event(self, error: ApiError) -> bytes:
        return _named("error", self._error(error))

    def _error(self, error: ApiError) -> dict[str, Any]:
        inner = msgspec.json.decode(error.body())["error"]  # bounded there
        kind = ANTHROPIC_KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {**inner, "type": kind}}

    def note_event(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        return _named(NOTE, {"type": NOTE, NOTE: note})

    def usage_body(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        return _encode({**self._message(charge), "stop_reason": "end_turn", NOTE: note})

    def usage_stream(self, charge: Charge, note: Note, *, created_unix_s: int) -> bytes:
        message = self._message(charge)
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        return b"".join(
            (
                _named("message_start", {"type": "message_start", "message": message}),
                _named("message_delta", {"type": "message_delta", "delta": delta, "usage": message["usage"]}),
                self.note_event(charge, note, created_unix_s=created_unix_s),
                _named("message_stop", {"type": "message_stop"}),
            )
        )

    def _message(self, charge: Charge) -> dict[str, Any]:
        """Its input tokens are those that were not read from the cache."""
        return {
            "id": f"msg_{charge.attempt_id}",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": charge.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": charge.input_tokens - charge.cached_tokens,
                "cache_read_input_tokens": charge.cached_tokens,
                "output_tokens": charge.output_tokens,
            },
        }


CHAT_DIALECT = OpenAi(prefix="chatcmpl", kind="chat.completion", chunk_kind="chat.completion.chunk")

DIALECTS: Mapping[str, Dialect] = {
    CHAT_PATH: CHAT_DIALECT,
    COMPLETION_PATH: OpenAi(prefix="cmpl", kind="text_completion", chunk_kind="text_completion"),
    EMBEDDING_PATH: OpenAi(prefix="embd", kind="list", chunk_kind="list"),
    RESPONSES_PATH: Responses(),
    MESSAGES_PATH: Anthropic(),
}


def dialect(path: str) -> Dialect:
    """How the route at ``path`` speaks; whatever is none, as OpenAI's chats."""
    return DIALECTS.get(path, CHAT_DIALECT)


def authorizations(headers: Headers) -> list[bytes]:
    """All keys that a request came with, as Authorization headers say them. Anthropic's clients have a header of their
    own; the same key in both is one.
    """
    values = list(headers.get(b"authorization", ()))
    for key in headers.get(b"x-api-key", ()):
        value = b"Bearer " + key
        if value not in values:
            values.append(value)
    return values


def _named(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(fields))
