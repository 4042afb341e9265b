"""Joules so far, as a part of the answer: beside the usage of a whole body, or as one more chunk of a stream.

Called by ``scheduler.api.openai`` where a client asked for it. It must never read a text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from scheduler.accounting.settlement import Charge
from scheduler.api.schemas import CHAT_PATH


def note_of(charge: Charge) -> dict[str, Any]:
    """What the answer says of its energy: predicted so far; the posting will say what was measured."""
    return {
        "energy_joules": charge.provisional_mj / 1000,
        "gpu_seconds": charge.provisional_gpu_us / 1_000_000,
        "grade": charge.grade.value,
        "provisional": True,
        "request_id": charge.request_id,
    }


def note_event(charge: Charge, *, path: str, model: str, created_unix_s: int) -> bytes:
    """One more chunk in OpenAI's shape, without choices, as the usage chunk is: every client reads it."""
    is_chat = path == CHAT_PATH
    chunk: dict[str, Any] = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{charge.attempt_id}",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": created_unix_s,
        "model": model,
        "choices": [],
        "usage": {
            "prompt_tokens": charge.input_tokens,
            "completion_tokens": charge.output_tokens,
            "total_tokens": charge.input_tokens + charge.output_tokens,
            "prompt_tokens_details": {"cached_tokens": charge.cached_tokens},
        },
        "jouleway": note_of(charge),
    }
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def with_note(body: bytes, charge: Charge) -> bytes:
    """A whole answer with its joules beside the usage; a body that is no JSON object is left alone."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    return msgspec.json.encode({**fields, "jouleway": note_of(charge)})
