"""Who may ask: keys of tenants and of admins by their hash, and the names that may stand in the Host header.

Called by ``scheduler.api.app`` and ``scheduler.api.admin``. It must never keep, log or return a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from scheduler.accounting.changes import Role
from scheduler.api.errors import ApiError
from scheduler.core.request import Band, DataClass

KEY_PREFIX, ADMIN_KEY_PREFIX = "jw-", "jwa-"
MAX_HOSTS_REMEMBERED = 256
_BEARER = re.compile(rb"[Bb]earer ([\x21-\x7e]{1,512})")
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
LOOPBACK_HOSTS = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a key stands for."""

    tenant: str
    project: str
    key_id: str
    """Public: from the hash of its first secret, safe to print; a rotation does not change it."""
    best_band: Band
    """The highest priority that it gets."""
    data_class: DataClass = DataClass.GENERAL
    """Of everything that is asked with it; a request may only be stricter."""
    zones: frozenset[str] | None = None
    """Where it may run; None = wherever its data class may."""
    expires_unix_s: float | None = None
    """From then on the key opens nothing; None = never by time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminCaller:
    """Whom an admin key stands for."""

    key_id: str
    role: Role
    expires_unix_s: float | None = None


class _Expires(Protocol):
    @property
    def expires_unix_s(self) -> float | None: ...


AnyCaller = TypeVar("AnyCaller", bound=_Expires)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Generic[AnyCaller]):
    """A key that may be used, by the SHA-256 of its bytes."""

    digest: bytes
    caller: AnyCaller


def new_key(prefix: str = KEY_PREFIX) -> str:
    """A key that nobody can guess: 256 bits."""
    return prefix + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """What is stored instead of a key. Keys are random and long, so one round of SHA-256 cannot be guessed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def key_id_of(digest: bytes) -> str:
    """The public name of a key: the first ten digits of its hash."""
    return f"key-{digest.hex()[:10]}"


class Keys(Generic[AnyCaller]):
    """Finds the caller of an Authorization header: a tenant's on one listener, an admin's on the other."""

    def __init__(self, keys: Iterable[Key[AnyCaller]], *, unix_clock: Callable[[], float] = time.time) -> None:
        self._unix_clock = unix_clock
        self.reload(keys)

    def reload(self, keys: Iterable[Key[AnyCaller]]) -> None:
        """These keys and no others from now on."""
        known: dict[str, Key[AnyCaller]] = {}
        for key in keys:
            index = key_id_of(key.digest)
            assert index not in known, f"{index} is given twice"
            known[index] = key
        self._keys = known

    def __len__(self) -> int:
        return len(self._keys)

    def caller(self, values: list[bytes]) -> AnyCaller:
        """``values`` are all Authorization headers of the request. Raises: ApiError 401."""
        digest = hashlib.sha256(bearer_token(values)).digest()
        # Its first digits lead to at most one key; whether it is the right one is told in constant time.
        key = self._keys.get(key_id_of(digest))
        if key is None or not hmac.compare_digest(key.digest, digest) or self._is_over(key.caller):
            raise unauthorized("Incorrect API key provided.")
        return key.caller

    def _is_over(self, caller: AnyCaller) -> bool:
        return caller.expires_unix_s is not None and self._unix_clock() >= caller.expires_unix_s


def offered_sha256(values: list[bytes]) -> str | None:
    """The hash of whatever key was sent, in hexadecimal, to say whose it was; None where none can be read."""
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    return None if match is None else hashlib.sha256(match[1]).hexdigest()


def bearer_token(values: list[bytes]) -> bytes:
    """The key in the Authorization headers of a request. Raises: ApiError 401."""
    if not values:
        raise unauthorized("No API key was given: send the header 'Authorization: Bearer KEY'.")
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise unauthorized("The Authorization header is malformed: it must be 'Bearer KEY', once.")
    return match[1]


def unauthorized(message: str) -> ApiError:
    """A key is missing or wrong."""
    return ApiError(401, message, code="invalid_api_key", headers=((b"www-authenticate", b"Bearer"),))


class Hosts:
    """Names under which we may be asked. Anything else is a page that rebinds DNS, or a wrong proxy."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = LOOPBACK_HOSTS | {name.lower().encode("idna") for name in names}
        self._seen: set[bytes] = set()

    def check(self, values: list[bytes], *, setting: str = "server.allowed_hosts") -> None:
        """``values`` are all Host headers of the request. Raises: ApiError 400, 403."""
        if len(values) == 1 and values[0] in self._seen:
            return
        match = _HOST.fullmatch(values[0]) if len(values) == 1 else None
        if match is None:
            raise ApiError(400, "The Host header is missing or malformed.", code="bad_host")
        if match[1].lower() not in self._names:
            raise ApiError(403, f"This Host is not served here (setting {setting}).", code="host_not_allowed")
        if len(self._seen) < MAX_HOSTS_REMEMBERED:
            self._seen.add(values[0])
