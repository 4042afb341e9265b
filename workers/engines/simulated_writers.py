"""How a simulated engine writes its answers: each route's events and bodies, as vLLM writes them.

Called by ``workers.engines.simulated_answer``. Pure: values in, bytes out. It must never know a step or a clock.
"""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib
from typing import Any, NamedTuple

import msgspec

from workers.engines.simulated_openai import (
    CHAT_PATH,
    COMPLETION_PATH,
    EMBEDDING_PATH,
    MESSAGES_PATH,
    RESPONSES_PATH,
    Ask,
)

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


class Counts(NamedTuple):
    """Tokens of an answer so far."""

    prompt: int
    output: int
    cached: int


class Written(NamedTuple):
    """One choice that ended."""

    text: bytes
    reason: str
    """``length`` or ``stop``."""


class Writer:
    """Chats and completions; the base of the other routes. What does not change with a token is encoded once."""

    name = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, ask: Ask, *, request_id: str, model: str, created: int) -> None:
        self.ask = ask
        self.answer_id = f"{self.name}-{request_id}"
        self.model = model
        self.created = created

    # -- a stream: ``first``, ``token``…, ``last`` for each choice, then ``close``

    def first(self, index: int, counts: Counts) -> bytes:
        """Before the first token of a choice."""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return b'%b,"choices":[{"index":%d,%b}]%b}\n\n' % (self._head, index, delta, self._null_usage)

    def frame(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text of a token."""
        start = b'%b,"choices":[{"index":%d,' % (self._head, index)
        end = b'"},"logprobs":null,"finish_reason":null}]%b}\n\n' % self._null_usage
        return start + b'"delta":{"content":"', end

    def token(self, frame: tuple[bytes, bytes], text: bytes, counts: Counts | None) -> bytes:
        """``counts``: where the client asked for the usage of every chunk."""
        before, after = frame
        if counts is None:
            return before + text + after
        usage = b'"usage":' + _encode(self.usage(counts))
        if self.ask.include_usage:
            return before + text + after.replace(b'"usage":null', usage)
        return before + text + after[: -len(b"}\n\n")] + b"," + usage + b"}\n\n"

    def last(self, index: int, text: bytes, reason: str) -> bytes:
        """The token that ends a choice."""
        before, after = self.frame(index)
        return before + text + after.replace(b'"finish_reason":null', b'"finish_reason":"%b"' % reason.encode())

    def close(self, choices: list[Written], counts: Counts) -> bytes:
        """After the last choice."""
        if not self.ask.include_usage:
            return DONE
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._head, _encode(self.usage(counts))) + DONE

    # -- whole

    def whole(self, choices: list[Written], counts: Counts) -> bytes:
        """The body of an answer that is not streamed."""
        listed = [
            {"index": index, **self._content(written.text.decode()), "logprobs": None, "finish_reason": written.reason}
            for index, written in enumerate(choices)
        ]
        fields = {"id": self.answer_id, "object": self.kind, "created": self.created, "model": self.model}
        return _encode({**fields, "choices": listed, "usage": self.usage(counts)})

    def usage(self, counts: Counts) -> dict[str, object]:
        """The route's usage object."""
        return {
            "prompt_tokens": counts.prompt,
            "completion_tokens": counts.output,
            "total_tokens": counts.prompt + counts.output,
            "prompt_tokens_details": {"cached_tokens": counts.cached},
        }

    def _content(self, text: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": text}}

    @property
    def _head(self) -> bytes:
        fields = {"id": self.answer_id, "object": self.chunk_kind, "created": self.created, "model": self.model}
        return b"data: " + _encode(fields)[:-1]

    @property
    def _null_usage(self) -> bytes:
        """As vLLM: with include_usage each chunk before the last says usage null."""
        return b',"usage":null' if self.ask.include_usage else b""


class CompletionWriter(Writer):
    """Text instead of messages."""

    name = "cmpl"
    kind = chunk_kind = "text_completion"

    def first(self, index: int, counts: Counts) -> bytes:
        return b""

    def frame(self, index: int) -> tuple[bytes, bytes]:
        start = b'%b,"choices":[{"index":%d,' % (self._head, index)
        end = b'","logprobs":null,"finish_reason":null,"stop_reason":null}]%b}\n\n' % self._null_usage
        return start + b'"text":"', end

    def _content(self, text: str) -> dict[str, object]:
        return {"text": text}


class EmbeddingWriter(Writer):
    """Vectors that only depend on the text: equal texts are equal vectors, others point anywhere."""

    name = "embd"

    def whole(self, choices: list[Written], counts: Counts) -> bytes:
        data = [
            {"index": index, "object": "embedding", "embedding": self._vector(prompt)}
            for index, prompt in enumerate(self.ask.prompts)
        ]
        fields = {"id": self.answer_id, "object": "list", "created": self.created, "model": self.model}
        return _encode({**fields, "data": data, "usage": self.usage(counts)})

    def _vector(self, prompt: bytes) -> list[float] | str:
        draw = random.Random(zlib.crc32(prompt))
        vector = [draw.gauss(0.0, 1.0) for _ in range(self.ask.num_dimensions)]
        length = math.sqrt(sum(x * x for x in vector))
        vector = [x / length for x in vector]
        if not self.ask.is_base64:
            return vector
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class ResponsesWriter(Writer):
    """Named and numbered events around one message."""

    name = "resp"

    def __init__(self, ask: Ask, *, request_id: str, model: str, created: int) -> None:
        super().__init__(ask, request_id=request_id, model=model, created=created)
        self._item_id = f"msg_{request_id}"
        self._number = 0

    def first(self, index: int, counts: Counts) -> bytes:
        response = self._response("in_progress", [], None)
        where = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        return b"".join(
            (
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=self._item("", "in_progress")),
                self._event("response.content_part.added", **where, part=_part("")),
            )
        )

    def frame(self, index: int) -> tuple[bytes, bytes]:
        kind = b"response.output_text.delta"
        where = b'"item_id":"%b","output_index":0,"content_index":0,"logprobs":[]' % self._item_id.encode()
        return b'event: %b\ndata: {"type":"%b",%b,"delta":"' % (kind, kind, where), b'","sequence_number":%d}\n\n'

    def token(self, frame: tuple[bytes, bytes], text: bytes, counts: Counts | None) -> bytes:
        return frame[0] + text + frame[1] % self._next_number()

    def last(self, index: int, text: bytes, reason: str) -> bytes:
        return self.token(self.frame(index), text, None)

    def close(self, choices: list[Written], counts: Counts) -> bytes:
        text, reason = choices[0].text.decode(), choices[0].reason
        where = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        return b"".join(
            (
                self._event("response.output_text.done", **where, text=text, logprobs=[]),
                self._event("response.content_part.done", **where, part=_part(text)),
                self._event("response.output_item.done", output_index=0, item=self._item(text, _status(reason))),
                # As vLLM: the event is called completed, the response in it says whether it is.
                self._event("response.completed", response=self._ended(text, reason, counts)),
            )
        )

    def whole(self, choices: list[Written], counts: Counts) -> bytes:
        return _encode(self._ended(choices[0].text.decode(), choices[0].reason, counts))

    def usage(self, counts: Counts) -> dict[str, object]:
        return {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
            "output_tokens": counts.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts.prompt + counts.output,
        }

    def _ended(self, text: str, reason: str, counts: Counts) -> dict[str, Any]:
        return self._response(_status(reason), [self._item(text, _status(reason))], counts)

    def _response(self, status: str, output: list[dict[str, Any]], counts: Counts | None) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": "response",
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "error": None,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None if counts is None else self.usage(counts),
        }

    def _item(self, text: str, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [_part(text)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _event(self, kind: str, **fields: object) -> bytes:
        return _named(kind, {"type": kind, "sequence_number": self._next_number(), **fields})

    def _next_number(self) -> int:
        self._number += 1
        return self._number - 1


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(reason: str) -> str:
    return "incomplete" if reason == "length" else "completed"


class MessagesWriter(Writer):
    """Anthropic's events around one block of text."""

    name = "msg"

    def first(self, index: int, counts: Counts) -> bytes:
        message = self._message([], None, Counts(counts.prompt, 0, counts.cached))
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        start = _named("message_start", {"type": "message_start", "message": message})
        return start + _named("content_block_start", block)

    def frame(self, index: int) -> tuple[bytes, bytes]:
        kind = b"content_block_delta"
        start = b'event: %b\ndata: {"type":"%b","index":0,"delta":{"type":"text_delta","text":"' % (kind, kind)
        return start, b'"}}\n\n'

    def token(self, frame: tuple[bytes, bytes], text: bytes, counts: Counts | None) -> bytes:
        return frame[0] + text + frame[1]

    def last(self, index: int, text: bytes, reason: str) -> bytes:
        return self.token(self.frame(index), text, None)

    def close(self, choices: list[Written], counts: Counts) -> bytes:
        delta = {"stop_reason": _stop_reason(choices[0].reason), "stop_sequence": None}
        return b"".join(
            (
                _named("content_block_stop", {"type": "content_block_stop", "index": 0}),
                _named("message_delta", {"type": "message_delta", "delta": delta, "usage": self.usage(counts)}),
                _named("message_stop", {"type": "message_stop"}),
            )
        )

    def whole(self, choices: list[Written], counts: Counts) -> bytes:
        text, reason = choices[0].text.decode(), choices[0].reason
        return _encode(self._message([{"type": "text", "text": text}], _stop_reason(reason), counts))

    def usage(self, counts: Counts) -> dict[str, object]:
        """Its input tokens are those that were not read from the cache."""
        return {
            "input_tokens": counts.prompt - counts.cached,
            "cache_read_input_tokens": counts.cached,
            "output_tokens": counts.output,
        }

    def _message(self, content: list[dict[str, Any]], stop_reason: str | None, counts: Counts) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.model,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": self.usage(counts),
        }


def _stop_reason(reason: str) -> str:
    return "max_tokens" if reason == "length" else "end_turn"


def _named(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(fields))


WRITERS: dict[str, type[Writer]] = {
    CHAT_PATH: Writer,
    COMPLETION_PATH: CompletionWriter,
    EMBEDDING_PATH: EmbeddingWriter,
    RESPONSES_PATH: ResponsesWriter,
    MESSAGES_PATH: MessagesWriter,
}
"""By route."""
