"""Routes of the admin listener as one table: method, path, who may, who answers; a route without a role cannot be made.

Filled by ``scheduler.api.admin`` and by each file that answers operators. It must never know a key.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from scheduler.accounting.changes import Role
from scheduler.api.access import AdminCaller
from scheduler.api.errors import ApiError
from scheduler.api.exchange import JSON, NO_STORE, Header

MAX_NAME_CHARS = 200
"""Of a part of a path."""
MAX_PARAMETERS = 16
MAX_QUERY_BYTES = 4_096
READS = ("GET", "HEAD")

ADMIN_ONLY = frozenset({Role.ADMIN})
OPERATORS = frozenset({Role.ADMIN, Role.READ})
"""Who may see keys, requests and machines."""
EVERYBODY = frozenset(Role)
"""Whoever has an admin key: who used what and what it cost. A route may show less to those who are no operators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was asked, as far as an answer needs it."""

    caller: AdminCaller
    names: Mapping[str, str]
    """What stands in the path where its template has a name in braces."""
    query: Mapping[str, str] = field(default_factory=dict)
    raw_query: bytes = b""
    """As it was sent, for a route that reads it itself."""
    body: bytes = b""
    change_id: str
    """Of the change that it asks for: the same whenever it comes again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is answered."""

    body: bytes
    status: int = 200
    content_type: Header = JSON
    headers: tuple[Header, ...] = ()

    @property
    def header_list(self) -> list[Header]:
        """Nothing of an admin's is ever stored on the way."""
        return [self.content_type, NO_STORE, *self.headers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``path`` with names in braces for parts that vary: ``/v1/jouleway/admin/tenants/{tenant}``."""

    method: str
    """GET answers HEAD too."""
    path: str
    roles: frozenset[Role]
    answer: Callable[[Question], Awaitable[Reply]]
    parameters: frozenset[str] = frozenset()
    """Of the query; others are refused."""
    reads_query: bool = False
    """It reads its query itself, and refuses what it does not know."""
    is_urgent: bool = False
    """It is answered although the ledger cannot say whether it was asked before."""

    def read_query(self, query: bytes) -> dict[str, str]:
        """Raises: ApiError 400 for a parameter that is not known here, given twice, or no text."""
        if not query:
            return {}
        try:
            pairs = parse_qsl(
                query[: MAX_QUERY_BYTES + 1].decode("ascii"),
                keep_blank_values=True,
                strict_parsing=True,
                max_num_fields=MAX_PARAMETERS,
                errors="strict",
            )
        except ValueError:
            pairs = [("", "")]
        found = dict(pairs)
        if len(query) > MAX_QUERY_BYTES or len(found) < len(pairs) or not found.keys() <= self.parameters:
            known = ", ".join(sorted(self.parameters)) or "none"
            message = f"The query is not understood: each parameter once, known here: {known}."
            raise ApiError(400, message, code="invalid_query")
        return found


class RouteTable:
    """Finds who answers."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: list[tuple[re.Pattern[str], Route]] = []
        seen: set[tuple[str, str]] = set()
        for route in routes:
            assert (route.method, route.path) not in seen, f"{route.method} {route.path} is given twice"
            seen.add((route.method, route.path))
            self._routes.append((_pattern(route.path), route))

    def __iter__(self) -> Iterator[Route]:
        return (route for _, route in self._routes)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and what stands for its names. Raises: ApiError 404, 405."""
        wanted = "GET" if method in READS else method
        allowed: list[str] = []
        for pattern, route in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method == wanted:
                return route, match.groupdict()
            allowed += READS if route.method == "GET" else [route.method]
        if not allowed:
            raise ApiError(404, "There is no such route here.", code="route_not_found")
        headers = ((b"allow", ", ".join(allowed).encode()),)
        message = f"This route takes {' and '.join(allowed)}."
        raise ApiError(405, message, code="method_not_allowed", headers=headers)

    def template_of(self, path: str) -> str:
        """What may be written down of a path: never what stands for a name."""
        found = next((route.path for pattern, route in self._routes if pattern.fullmatch(path)), None)
        return found or "(other)"


def _pattern(path: str) -> re.Pattern[str]:
    """A part of a path has no slash; a name is a part of it."""
    parts = re.split(r"\{(\w+)\}", path)
    words = [
        re.escape(part) if number % 2 == 0 else rf"(?P<{part}>[^/]{{1,{MAX_NAME_CHARS}}})"
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(words))
