"""What is stated of texts that are not kept: their UTF-8 bytes and salted SHA-256 digests. Pure.

Called by ``workers.attempts`` for what an attempt was asked, and by the engines for what they answered. It must never
know a clock, a random number or an engine, and nothing that it returns holds a text.

Whoever holds a receipt (so the salt) and a text can compute bytes and digest again; whoever holds the digest only
learns nothing of a text that it cannot guess whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from decimal import Decimal
from types import GenericAlias
from typing import Any, NamedTuple

import msgspec

SALT_BYTES = 16
"""Of each attempt's own salt: equal texts of two attempts have different digests."""

MAX_EXACT = 2**53
"""Beyond it an integer of JSON is written as the double that RFC 8785 takes it for."""

MAX_PLAIN_DIGITS = 21
"""Of a number's integer part; a longer one ECMAScript writes with an exponent."""

TEXT_KEYS = ("content", "text", "output")
"""Where messages and their parts carry text: chats, Anthropic's blocks and their nested results, items of responses."""

ASKED_FIELDS = ("messages", "prompt", "input")
"""Of a body: the first that is there is what was asked."""

BESIDE_FIELDS = ("system", "instructions")
"""Of Anthropic's messages and of responses: text that a chat has among its messages. Counted in bytes only."""

NUMBERLESS_LEVELS = 6
"""So deep nest messages, parts and results at most where a body is read the quick way."""

_encode = msgspec.json.encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


class Stated(NamedTuple):
    """Of one text, or of all that a request asked."""

    num_bytes: int = 0
    digest: str = ""
    """Hex; empty where there is no text at all."""


NOTHING = Stated()


def digest_of(salt: bytes, text: bytes) -> str:
    """Hex SHA-256(salt || text)."""
    return hashlib.sha256(salt + text).hexdigest()


def stated_of(salt: bytes, text: bytes) -> Stated:
    """Of a choice's whole generated text in UTF-8.

    It is the choice's content as the client gets it: without special tokens, and without a stop string that is not to
    be shown. Where a reasoning or tool parser divides an answer it is the engine's whole text before that, and where an
    answer echoes its prompt it is what follows it. Of an aborted stream it is what had left for the client, of any
    other answer that was broken off what had been generated.
    """
    return Stated(len(text), digest_of(salt, text))


def asked_of(salt: bytes, body: bytes) -> Stated:
    """Of an engine's body: the UTF-8 bytes of the texts in it, and the digest of RFC 8785's form of what was asked.

    That is the body's ``messages``, else its ``prompt``, else its ``input``. Nothing where there is none of them, or
    where the body is no JSON: whether it is good is the engine's to say.
    """
    try:
        try:
            asked, is_numberless = _decode_numberless(body), True
        except msgspec.ValidationError:
            asked, is_numberless = _decode(body), False
        what = next((value for name in ASKED_FIELDS if (value := getattr(asked, name)) is not None), None)
        if what is None:
            return NOTHING
        num_bytes = text_bytes(what) + sum(text_bytes(getattr(asked, name)) for name in BESIDE_FIELDS)
        canonical = _encode_sorted(what) if is_numberless else b""
        if not is_numberless or not canonical.isascii():
            canonical = canonical_json(what)
        return Stated(num_bytes, digest_of(salt, canonical))
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError):
        return NOTHING


def text_bytes(value: object) -> int:
    """UTF-8 bytes of a text, of each of a list, or of what messages and parts carry; token ids and media have none."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    num_bytes = 0
    if isinstance(value, dict):
        for key in TEXT_KEYS:
            if key in value:
                num_bytes += text_bytes(value[key])
    elif isinstance(value, list) and value and not isinstance(value[0], int):
        for item in value:
            num_bytes += text_bytes(item)
    return num_bytes


def canonical_json(value: object) -> bytes:
    """RFC 8785 (JCS) of a decoded JSON value: keys sorted by UTF-16 code units, no white space, ECMAScript's numbers.

    Raises: ValueError, OverflowError for a number that JSON cannot carry; RecursionError.
    """
    if isinstance(value, dict):
        members = [_encode(key) + b":" + canonical_json(value[key]) for key in sorted(value, key=_utf16)]
        return b"{" + b",".join(members) + b"}"
    if isinstance(value, list):
        if set(map(type, value)) == {int} and max(max(value), -min(value)) <= MAX_EXACT:
            return _encode(value)  # a prompt of token ids may have as many as a context holds
        return b"[" + b",".join([canonical_json(item) for item in value]) + b"]"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) > MAX_EXACT):
        return _number(float(value))
    return _encode(value)


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def _number(value: float) -> bytes:
    """ECMAScript's Number::toString: the fewest digits that say the same double, as Python's repr finds them."""
    if value == 0:
        return b"0"  # also of −0
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    if not isinstance(exponent, int):
        raise ValueError("JSON has no infinity and no NaN")
    figures = "".join(map(str, digits))
    point = len(figures) + exponent  # where the decimal point stands, counted from the first figure
    if 0 < point <= MAX_PLAIN_DIGITS:
        whole, rest = figures[:point].ljust(point, "0"), figures[point:]
        text = f"{whole}.{rest}" if rest else whole
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{figures}"
    else:
        mantissa = f"{figures[0]}.{figures[1:]}" if len(figures) > 1 else figures
        text = f"{mantissa}e{point - 1:+d}"
    return f"{'-' if sign else ''}{text}".encode()


# -- a body, read once: only what was asked, all else passes over


def _decoder(kind: Any) -> Callable[[bytes], Any]:
    fields = [(name, kind, None) for name in (*ASKED_FIELDS, *BESIDE_FIELDS)]
    return msgspec.json.Decoder(msgspec.defstruct("Asked", fields)).decode


def _numberless(levels: int) -> Any:
    """JSON without a number. Where all is ASCII too, to sort the keys is to make it canonical, and quick."""
    leaf: Any = str | bool | None
    kind = leaf
    for _ in range(levels):
        kind = leaf | GenericAlias(list, (kind,)) | GenericAlias(dict, (str, kind))
    return kind


_decode = _decoder(Any)
_decode_numberless = _decoder(_numberless(NUMBERLESS_LEVELS))
