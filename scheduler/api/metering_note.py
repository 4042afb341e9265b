"""Joules so far, as a part of the answer: beside the usage of a whole body, or as one more chunk of a stream.

Called by ``scheduler.api.openai`` where a client asked for it, and where only the usage of an answer is left to say. It
must never read a text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from scheduler.accounting.settlement import Charge
from scheduler.api.dialects import NOTE, dialect


def note_of(charge: Charge, currency: str) -> dict[str, Any]:
    """What the answer says of its cost (10⁻⁹ units of the currency) and of its energy: predicted so far; the posting
    will say what was measured.
    """
    return {
        "cost_nano": charge.cost_nano,
        "currency": currency,
        "energy_joules": charge.provisional_mj / 1000,
        "gpu_seconds": charge.provisional_gpu_us / 1_000_000,
        "grade": charge.grade.value,
        "provisional": True,
        "request_id": charge.request_id,
    }


def note_event(charge: Charge, *, path: str, currency: str, created_unix_s: int) -> bytes:
    """One more event before the last one of a stream; clients that do not know it pass over it."""
    return dialect(path).note_event(charge, note_of(charge, currency), created_unix_s=created_unix_s)


def usage_body(charge: Charge, *, path: str, currency: str, created_unix_s: int) -> bytes:
    """A whole answer of which nothing but the usage is left."""
    return dialect(path).usage_body(charge, note_of(charge, currency), created_unix_s=created_unix_s)


def usage_stream(charge: Charge, *, path: str, currency: str, created_unix_s: int) -> bytes:
    """The same as a stream."""
    return dialect(path).usage_stream(charge, note_of(charge, currency), created_unix_s=created_unix_s)


def with_note(body: bytes, charge: Charge, *, currency: str) -> bytes:
    """A whole answer with its joules beside the usage; a body that is no JSON object is left alone."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    return msgspec.json.encode({**fields, NOTE: note_of(charge, currency)})
