"""How an admin route changes the directory and answers: owner first, once, durable; refusals in the directory's words.

Called by ``scheduler.api.directory`` and ``scheduler.api.directory_keys``. A key that is made here is in its answer and
nowhere else.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from scheduler.accounting.change_log import MAX_PAGE, Logged
from scheduler.accounting.changes import Actor, Deed, Role
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import ChangeRefused, Refusal
from scheduler.api.access import new_key
from scheduler.api.admin_routes import ADMIN_ONLY, Question, Reply, Route
from scheduler.api.directory_views import View, list_view
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Header
from scheduler.api.explain import PREFIX

ROOT = f"{PREFIX}admin"
PAGE = 100
STATUS = {Refusal.UNKNOWN: 404, Refusal.CONFLICT: 409, Refusal.INVALID: 400}
REPLAYED: Header = (b"x-jouleway-replayed", b"1")
PAGING = frozenset({"after", "limit"})

Answer = Callable[[Question], Awaitable[Reply]]


class KeepsDirectory(Protocol):
    """As much as is needed of ``scheduler.tenancy``."""

    directory: Directory
    file_owner: str | None
    """The file that says which tenants there are; None: these routes do."""

    @property
    def now_us(self) -> int: ...

    async def change(self, deed: Deed, *, who: Actor, change_id: str) -> bool:
        """False: made before. Raises: ChangeRefused; anything else: it is not known to be durable."""

    async def page(self, *, before: int | None, limit: int) -> list[Logged]: ...


class Changes:
    """Makes changes for all of these routes."""

    def __init__(self, keeper: KeepsDirectory) -> None:
        self.keeper = keeper

    @property
    def directory(self) -> Directory:
        """As it stands."""
        return self.keeper.directory

    def read(self, path: str, roles: frozenset[Role], answer: Answer, parameters: Iterable[str] = ()) -> Route:
        """A route that shows something."""
        told = _in_words(answer)
        return Route(method="GET", path=f"{ROOT}{path}", roles=roles, answer=told, parameters=frozenset(parameters))

    def change(self, method: str, path: str, answer: Answer, *, is_urgent: bool = False) -> Route:
        """A route that changes something: for admins, and 409 before anything is looked at where the file owns it.

        ``is_urgent``: it takes away, and is made although the ledger cannot say whether it was made before.
        """
        told = _in_words(answer)

        async def owned(question: Question) -> Reply:
            if self.keeper.file_owner is not None:
                raise owned_by_file(self.keeper.file_owner)
            return await told(question)

        return Route(method=method, path=f"{ROOT}{path}", roles=ADMIN_ONLY, answer=owned, is_urgent=is_urgent)

    async def make(self, question: Question, deed: Deed) -> bool:
        """False: made before. Raises: ApiError 503, ChangeRefused."""
        who = Actor(key_id=question.caller.key_id, role=question.caller.role)
        try:
            return await self.keeper.change(deed, who=who, change_id=question.change_id)
        except ChangeRefused:
            raise
        except Exception as error:
            message = (
                "The ledger did not take this change in time; it is in effect once it does. Ask again with the same "
                "Idempotency-Key."
            )
            raise ApiError(503, message, code="not_committed", retry_after_s=1, should_retry=True) from error

    async def make_key(self, question: Question, prefix: str, deed_of: Callable[[str], Deed]) -> str:
        """A new key; ``deed_of`` gets its SHA-256. Raises: ApiError 409 where it was made and shown before."""
        key = new_key(prefix)
        if not await self.make(question, deed_of(hashlib.sha256(key.encode()).hexdigest())):
            message = "This key was made before, and a key is shown once: rotate it for another one."
            raise ApiError(409, message, code="already_made", should_retry=False)
        return key


def owned_by_file(path: str) -> ApiError:
    """These routes may show and not change."""
    message = (
        f"Tenants, keys and budgets are owned by the file {path} (directory: file): change them there and send SIGHUP, "
        "or set directory: api and restart."
    )
    return ApiError(409, message, code="owned_by_file", should_retry=False)


def reply(view: object, *, status: int = 200, is_new: bool = True) -> Reply:
    """As JSON; a change that was made before says so."""
    return Reply(body=msgspec.json.encode(view), status=status, headers=() if is_new else (REPLAYED,))


def limit_of(query: Mapping[str, str]) -> int:
    """Raises: ApiError 400."""
    text = query.get("limit", str(PAGE))
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and 1 <= int(text) <= MAX_PAGE):
        raise ApiError(400, f"limit: must be from 1 to {MAX_PAGE}.", code="invalid_query", param="limit")
    return int(text)


def page_of(names: Iterable[str], query: Mapping[str, str], view: Callable[[str], View]) -> Reply:
    """In the order of names, from the first one behind ``after`` on. Raises: ApiError 400."""
    limit, ordered = limit_of(query), sorted(names)
    start = bisect_right(ordered, query.get("after", ""))
    chosen = ordered[start : start + limit]
    has_more = start + limit < len(ordered)
    return reply(list_view([view(name) for name in chosen], has_more=has_more, last=chosen[-1] if chosen else None))


def _in_words(answer: Answer) -> Answer:
    async def told(question: Question) -> Reply:
        try:
            return await answer(question)
        except ChangeRefused as error:
            raise ApiError(STATUS[error.kind], f"{error}.", code=error.code, param=error.field) from None

    return told
