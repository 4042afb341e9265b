"""The shape of a JSON text without building it: how deep it is nested, whether an object names a key twice.

Called by ``scheduler.api.schemas`` on bytes that a stranger sent. Vectorised, because a body of 1 MiB must not hold the
event loop for long: every pass is a few milliseconds, and small bodies take none.

Once escaped backslashes and quotes are taken out, each quote opens or closes a string; what lies outside of strings is
structure.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_DEPTH = 32


def is_too_deep(body: bytes, *, max_depth: int = MAX_DEPTH) -> bool:
    """Whether arrays and objects are nested deeper than that. Exact for valid JSON; anything for the rest."""
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return False
    text, is_outside = _structure(body)
    opens = ((text == 0x5B) | (text == 0x7B)) & is_outside
    closes = ((text == 0x5D) | (text == 0x7D)) & is_outside
    depths = np.cumsum(opens.view(np.int8) - closes.view(np.int8), dtype=np.int32)
    return bool(depths.max(initial=0) > max_depth)


def has_duplicate_keys(body: bytes) -> bool:
    """Whether an object of this valid JSON names a key twice: then decoding it kept fewer keys than were written."""
    kept = msgspec.json.encode(msgspec.json.decode(body))
    if b"\\" not in body:  # strings come back as they were, so that whatever is lost was a key and its value
        return body.count(b":") != kept.count(b":")
    return num_keys(body) != num_keys(kept)


def num_keys(body: bytes) -> int:
    """Colons outside of strings."""
    text, is_outside = _structure(body)
    return int(np.count_nonzero((text == 0x3A) & is_outside))


def _structure(body: bytes) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The text without escapes, and which of its characters lie outside of strings."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    text = np.frombuffer(body, dtype=np.uint8)
    is_outside = (np.cumsum(text == 0x22, dtype=np.int32) & 1) == 0
    return text, is_outside
