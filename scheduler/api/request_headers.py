"""What a client asks for in headers of ours: a task, a deadline, a stricter data class, fewer zones, joules, one run.

Called by ``scheduler.api.intake``. It must never let a header loosen what the key allows, and no value of one reaches
the log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.core.request import DataClass

Headers = Mapping[bytes, list[bytes]]

TASK = b"x-jouleway-task"
DEADLINE = b"x-jouleway-deadline-s"
METERING = b"x-jouleway-metering"
DATA_CLASS = b"x-jouleway-data-class"
ZONES = b"x-jouleway-zones"
IDEMPOTENCY_KEY = b"idempotency-key"
NAMES = frozenset({TASK, DEADLINE, METERING, DATA_CLASS, ZONES, IDEMPOTENCY_KEY})

MAX_TASK_CHARS = 128
MAX_ZONES = 64
MAX_ZONES_CHARS = 2048
MAX_IDEMPOTENCY_KEY_CHARS = 255

_TASK = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,%d}" % (MAX_TASK_CHARS - 1))
_ZONE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_IDEMPOTENCY_KEY = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_IDEMPOTENCY_KEY_CHARS)
_CLASSES = {each.name.lower().encode(): each for each in DataClass}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the headers of one request ask for, within what its key allows."""

    data_class: DataClass
    zones: frozenset[str] | None
    """None: wherever the data class may."""
    task: str = ""
    deadline_s: float | None = None
    """From its arrival."""
    is_metered: bool = False
    idempotency_key: bytes | None = None


def read(headers: Headers, caller: Caller, *, known_zones: frozenset[str] | None = None) -> Wishes:
    """``known_zones``: every configured zone; None = any name may be one. Raises: ApiError 400, 403."""
    if NAMES.isdisjoint(headers):
        return Wishes(data_class=caller.data_class, zones=caller.zones)
    return Wishes(
        data_class=_data_class(headers, caller.data_class),
        zones=_zones(headers, caller.zones, known_zones),
        task=_task(headers),
        deadline_s=_deadline_s(headers),
        is_metered=_is_metered(headers),
        idempotency_key=idempotency_key(headers),
    )


def _task(headers: Headers) -> str:
    """Many calls, one total: a name that the client makes up."""
    value = _only(headers, TASK)
    if value is None:
        return ""
    if _TASK.fullmatch(value) is None:
        raise _invalid(TASK, f"expected 1 to {MAX_TASK_CHARS} letters, digits or any of . _ : / @ + -, once")
    return value.decode("ascii")


def _data_class(headers: Headers, own: DataClass) -> DataClass:
    value = _only(headers, DATA_CLASS)
    if value is None:
        return own
    asked = _CLASSES.get(value.strip().lower())
    if asked is None:
        raise _invalid(DATA_CLASS, f"expected one of {', '.join(each.name.lower() for each in DataClass)}, once")
    if asked < own:
        raise _loosened(DATA_CLASS, f"this key's data is {own.name.lower()}; a request may only be stricter")
    return asked


def _zones(headers: Headers, own: frozenset[str] | None, known: frozenset[str] | None) -> frozenset[str] | None:
    """A subset of the key's zones. A name that no worker could have is a slip, not a zone that happens to be empty."""
    value = _only(headers, ZONES)
    if value is None:
        return own
    names = value.decode("latin-1").split(",") if len(value) <= MAX_ZONES_CHARS else []
    asked = frozenset(name.strip() for name in names)
    if not 0 < len(asked) <= MAX_ZONES or not all(map(_ZONE.fullmatch, asked)):
        raise _invalid(ZONES, f"expected 1 to {MAX_ZONES} names of zones with commas between them, once")
    if own is not None and not asked <= own:
        raise _loosened(ZONES, f"this key may use {', '.join(sorted(own)) or 'no zone'}; a request may only use fewer")
    if known is not None and not asked <= known:
        name = min(asked - known)
        raise ApiError(400, f"{ZONES.decode()}: there is no zone {name}.", code="unknown_zone", param=ZONES.decode())
    return asked


def _deadline_s(headers: Headers) -> float | None:
    value = _only(headers, DEADLINE)
    if value is None:
        return None
    try:
        seconds = float(value) if len(value) <= 32 else math.nan
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise _invalid(DEADLINE, "expected seconds above 0, once")
    return seconds


def _is_metered(headers: Headers) -> bool:
    """Whether the answer shall state joules."""
    value = _only(headers, METERING)
    if value not in (None, b"0", b"1"):
        raise _invalid(METERING, "expected 0 or 1, once")
    return value == b"1"


def idempotency_key(headers: Headers) -> bytes | None:
    """What a client calls this request, so that it is done once; None: nothing. Raises: ApiError 400."""
    value = _only(headers, IDEMPOTENCY_KEY)
    if value is not None and _IDEMPOTENCY_KEY.fullmatch(value) is None:
        raise _invalid(IDEMPOTENCY_KEY, f"expected 1 to {MAX_IDEMPOTENCY_KEY_CHARS} visible ASCII characters, once")
    return value


def _only(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header that may be there once; of one given twice nobody knows which is meant."""
    values = headers.get(name)
    if values is None:
        return None
    return values[0] if len(values) == 1 else b""


def _invalid(name: bytes, expected: str) -> ApiError:
    return ApiError(400, f"{name.decode()}: {expected}.", code="invalid_value", param=name.decode())


def _loosened(name: bytes, why: str) -> ApiError:
    return ApiError(403, f"{name.decode()}: {why}.", code="may_only_tighten", param=name.decode())
