"""The table finds who answers, and says what else there is; queries are read strictly."""

import pytest

from scheduler.accounting.changes import Role
from scheduler.api.admin_routes import (
    ADMIN_ONLY,
    EVERYBODY,
    MAX_NAME_CHARS,
    MAX_QUERY_BYTES,
    OPERATORS,
    Question,
    Reply,
    Route,
    RouteTable,
)
from scheduler.api.errors import ApiError
from scheduler.api.exchange import JSON, NO_STORE


async def nothing(question: Question) -> Reply:
    return Reply(body=b"{}")


def route(method: str, path: str, *parameters: str) -> Route:
    return Route(method=method, path=path, roles=ADMIN_ONLY, answer=nothing, parameters=frozenset(parameters))


TABLE = RouteTable(
    [route("GET", "/a"), route("GET", "/a/{x}"), route("DELETE", "/a/{x}"), route("POST", "/a/{x}/b.c/{y}")]
)


@pytest.mark.parametrize(
    ("method", "path", "template", "names"),
    [
        ("GET", "/a", "/a", {}),
        ("HEAD", "/a", "/a", {}),
        ("GET", "/a/1", "/a/{x}", {"x": "1"}),
        ("DELETE", "/a/b.c", "/a/{x}", {"x": "b.c"}),
        ("POST", "/a/1/b.c/2", "/a/{x}/b.c/{y}", {"x": "1", "y": "2"}),
    ],
)
def test_a_path_leads_to_its_route(method: str, path: str, template: str, names: dict[str, str]) -> None:
    """With what stands for its names."""
    found, told = TABLE.find(method, path)
    assert (template, names) == (found.path, told)
    assert template == TABLE.template_of(path)


@pytest.mark.parametrize(
    "path", ["/", "/b", "/a/", "/a//", "/a/1/", "/a/1/bxc/2", "/a/" + "x" * (MAX_NAME_CHARS + 1), "//a"]
)
def test_other_paths_lead_nowhere(path: str) -> None:
    """A name is one part of a path, and short; what is written down says nothing of it."""
    with pytest.raises(ApiError) as caught:
        TABLE.find("GET", path)
    assert (404, "route_not_found") == (caught.value.status, caught.value.code)
    assert "(other)" == TABLE.template_of(path)


def test_another_method_is_told_which_there_are() -> None:
    """In the header and in words."""
    with pytest.raises(ApiError) as caught:
        TABLE.find("POST", "/a/1")
    assert (405, "method_not_allowed") == (caught.value.status, caught.value.code)
    assert ((b"allow", b"GET, HEAD, DELETE"),) == caught.value.headers


def test_a_route_is_given_once() -> None:
    """Two answers to one question are a mistake of ours."""
    with pytest.raises(AssertionError):
        RouteTable([route("GET", "/a"), route("GET", "/a")])


def test_a_query_is_read_by_the_routes_own_parameters() -> None:
    """Decoded, each once."""
    asked = route("GET", "/a", "after", "limit")
    assert {} == asked.read_query(b"")
    assert {"after": "a/b", "limit": ""} == asked.read_query(b"after=a%2Fb&limit=")


@pytest.mark.parametrize(
    "query", [b"x=1", b"after=1&after=2", b"after", b"&", b"after=%ff", b"\xff=1", b"after=" + b"x" * MAX_QUERY_BYTES,
    b"&".join(b"p%d=1" % number for number in range(20))],
)  # fmt: skip
def test_a_query_that_says_nothing_sure_is_refused(query: bytes) -> None:
    """With what is known there, and none of what was sent."""
    with pytest.raises(ApiError) as caught:
        route("GET", "/a", "after").read_query(query)
    assert (400, "invalid_query") == (caught.value.status, caught.value.code)
    assert "known here: after" in caught.value.message


def test_roles_widen_from_admins_to_everybody() -> None:
    """Billing sees no key, read changes nothing."""
    assert (ADMIN_ONLY, frozenset(Role)) == (frozenset({Role.ADMIN}), EVERYBODY)
    assert ADMIN_ONLY < OPERATORS < EVERYBODY
    assert Role.BILLING not in OPERATORS


def test_no_answer_is_stored_on_the_way() -> None:
    """A key may be in it."""
    assert [JSON, NO_STORE, (b"x", b"1")] == Reply(body=b"", headers=((b"x", b"1"),)).header_list
