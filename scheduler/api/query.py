"""The query string of a route that is read: known names only, each value checked; and the cursor that leads to a page.

Called by ``scheduler.api.usage`` and ``scheduler.api.usage_openai``. It must never know what a name stands for, and no
message of it repeats a value.

A list is written ``name=a&name=b`` or, as OpenAI's clients do, ``name[]=a&name[]=b``. A cursor belongs to the question
that it came with: with other words it is refused. It opens nothing: what may be seen is decided anew on every page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec

from scheduler.accounting.usage import Key
from scheduler.api.errors import ApiError

MAX_QUERY_BYTES = 16 << 10
MAX_VALUES = 256
"""Of all names together."""
MAX_VALUE_CHARS = 256
MAX_CURSOR_CHARS = 8 << 10
MAX_UNIX_S = 253_402_300_800
"""The end of the year 9999."""
PAGE = "page"
LIMIT = "limit"


class Query:
    """The values of every name, in order."""

    def __init__(self, text: bytes, *, names: Iterable[str]) -> None:
        """Raises: ApiError 400 for what is no query string of these names."""
        if len(text) > MAX_QUERY_BYTES:
            raise ApiError(400, f"The query is longer than {MAX_QUERY_BYTES} bytes.", code="query_too_long")
        try:
            pairs = parse_qsl(
                text.decode("ascii"), keep_blank_values=True, strict_parsing=bool(text), errors="strict",
                max_num_fields=MAX_VALUES,
            )  # fmt: skip
        except ValueError:  # UnicodeDecodeError among them
            message = f"The query must be up to {MAX_VALUES} pairs NAME=VALUE in UTF-8, percent-encoded."
            raise ApiError(400, message, code="invalid_query") from None
        known = frozenset(names)
        self._values: dict[str, list[str]] = {}
        for written, value in pairs:
            name = written.removesuffix("[]")
            if name not in known:
                listed = ", ".join(sorted(known))
                raise ApiError(400, f"There is no such parameter; known are: {listed}.", code="unknown_parameter")
            if len(value) > (MAX_CURSOR_CHARS if name == PAGE else MAX_VALUE_CHARS):
                raise bad_value(name, f"expected at most {MAX_VALUE_CHARS} characters")
            self._values.setdefault(name, []).append(value)

    def many(self, name: str) -> tuple[str, ...] | None:
        """None where it is not given."""
        values = self._values.get(name)
        return None if values is None else tuple(values)

    def one(self, name: str) -> str | None:
        """None where it is not given. Raises: ApiError 400 where it is given twice."""
        values = self._values.get(name, [])
        if len(values) > 1:
            raise bad_value(name, "expected once")
        return values[0] if values else None

    def word(self, name: str, allowed: Iterable[str]) -> str | None:
        """One of these. Raises: ApiError 400."""
        value = self.one(name)
        if value is not None and value not in (words := tuple(allowed)):
            raise bad_value(name, f"expected one of {', '.join(words)}")
        return value

    def words(self, name: str, allowed: Iterable[str]) -> tuple[str, ...]:
        """Some of these, in the order in which they are asked for, each once. Raises: ApiError 400."""
        values = tuple(dict.fromkeys(self.many(name) or ()))
        allowed = tuple(allowed)
        if not set(values) <= set(allowed):
            raise bad_value(name, f"expected some of {', '.join(allowed)}")
        return values

    def whole(self, name: str, *, low: int, high: int) -> int | None:
        """A whole number of that range. Raises: ApiError 400."""
        value = self.one(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) <= 18 and low <= int(value) <= high):
            raise bad_value(name, f"expected a whole number from {low} to {high}")
        return int(value)

    def digest(self, *also: str) -> str:
        """Equal for equal questions, whatever their page and its size; ``also``: what else belongs to the question."""
        asked = {name: values for name, values in self._values.items() if name not in (PAGE, LIMIT)}
        return hashlib.blake2b(msgspec.json.encode([also, sorted(asked.items())]), digest_size=8).hexdigest()


class _Written(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    digest: str
    from_us: int
    to_us: int
    after_us: int | None
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where the next page begins."""

    from_us: int
    to_us: int
    """The end of the question as the first page had it: now moves on."""
    after: Key | None = None
    """The last row that was told of the bucket at ``from_us`` or, without buckets, of all."""

    def text(self, digest: str) -> str:
        """``digest`` is ``Query.digest`` of its question."""
        after_us, after = (None, ()) if self.after is None else (int(self.after[0]), tuple(map(str, self.after[1:])))
        written = _Written(digest, self.from_us, self.to_us, after_us, after)
        return base64.urlsafe_b64encode(msgspec.json.encode(written)).decode().rstrip("=")


def cursor_of(query: Query, digest: str, *, num_texts: int) -> Cursor | None:
    """The page that is asked for; None: the first. ``num_texts``: as many as its key has. Raises: ApiError 400."""
    text = query.one(PAGE)
    if text is None:
        return None
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        written = msgspec.json.decode(content, type=_Written)
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError):
        raise _no_cursor() from None
    is_sound = 0 <= written.from_us < written.to_us <= MAX_UNIX_S * 1_000_000
    if written.digest != digest or not is_sound or len(written.after) != (0 if written.after_us is None else num_texts):
        raise _no_cursor()
    after: Key | None = None if written.after_us is None else (written.after_us, *written.after)
    return Cursor(from_us=written.from_us, to_us=written.to_us, after=after)


def bad_value(name: str, expected: str) -> ApiError:
    """What the parameter should have been."""
    return ApiError(400, f"{name}: {expected}.", code="invalid_value", param=name)


def _no_cursor() -> ApiError:
    return bad_value(PAGE, "expected the next_page of an answer to this very question; begin again without it")
