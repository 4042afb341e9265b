"""Keys are found by their hash, hosts by their name; everything malformed is refused with the right words."""

import hashlib

import pytest

from scheduler.accounting.changes import Role
from scheduler.api.access import (
    MAX_HOSTS_REMEMBERED,
    AdminCaller,
    Caller,
    Hosts,
    Key,
    Keys,
    bearer_token,
    digest_of,
    key_id_of,
    new_key,
    offered_sha256,
)
from scheduler.api.errors import ApiError
from scheduler.core.request import Band

SECRET = "jw-0123456789abcdef"


def key(secret: str = SECRET, tenant: str = "alpha") -> Key:
    digest = digest_of(secret)
    caller = Caller(tenant=tenant, project="p", key_id=key_id_of(digest), best_band=Band.DEFAULT)
    return Key(digest=digest, caller=caller)


def refused(keys: Keys, values: list[bytes]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.caller(values)
    assert (401, "invalid_api_key") == (caught.value.status, caught.value.code)
    return caught.value


def test_a_key_leads_to_its_caller() -> None:
    """Of several, the right one; the scheme's case does not matter."""
    keys = Keys([key(), key("jw-another-0123456789", "beta")])
    assert "alpha" == keys.caller([b"Bearer " + SECRET.encode()]).tenant
    assert "beta" == keys.caller([b"bearer jw-another-0123456789"]).tenant
    assert 2 == len(keys)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [SECRET.encode()],
        [b"Basic " + SECRET.encode()],
        [b"BEARER " + SECRET.encode()],
        [b"Bearer  " + SECRET.encode()],
        [b"Bearer " + SECRET.encode() + b" "],
        [b"Bearer " + SECRET.encode() + b"\n"],
        [b"Bearer a b"],
        [b"Bearer \xc3\xa9"],
        [b"Bearer " + b"x" * 513],
        [b"Bearer " + SECRET.encode(), b"Bearer " + SECRET.encode()],
    ],
)
def test_what_is_not_one_bearer_key_is_refused(values: list[bytes]) -> None:
    """Missing, malformed, twice: never guessed at."""
    refused(Keys([key()]), values)


@pytest.mark.parametrize("wrong", ["jw-0123456789abcdeg", "jw-0123456789abcde", "x"])
def test_a_wrong_key_is_refused(wrong: str) -> None:
    """And the answer does not say how wrong."""
    error = refused(Keys([key()]), [f"Bearer {wrong}".encode()])
    assert wrong not in error.message
    assert (b"www-authenticate", b"Bearer") in error.header_list()


def test_a_hash_that_begins_like_a_known_one_is_not_that_key() -> None:
    """The public id only finds the entry; the whole hash decides."""
    real = digest_of(SECRET)
    forged = real[:5] + bytes(27)
    caller = Caller(tenant="alpha", project="p", key_id=key_id_of(forged), best_band=Band.FLEX)
    assert key_id_of(forged) == key_id_of(real)
    refused(Keys([Key(digest=forged, caller=caller)]), [b"Bearer " + SECRET.encode()])


def test_the_hash_is_the_one_that_the_documentation_names() -> None:
    """``printf %s "$KEY" | sha256sum``."""
    assert hashlib.sha256(SECRET.encode()).digest() == digest_of(SECRET)
    assert f"key-{hashlib.sha256(SECRET.encode()).hexdigest()[:10]}" == key_id_of(digest_of(SECRET))


def test_nothing_of_a_key_is_kept_or_shown() -> None:
    """Neither in the object nor in its words."""
    given = key()
    assert SECRET not in repr(given) + repr(vars(Keys([given])))


def test_the_token_is_the_key_itself() -> None:
    """The admin listener checks it against its own hash."""
    assert SECRET.encode() == bearer_token([b"Bearer " + SECRET.encode()])


def test_two_keys_with_one_id_are_a_mistake_of_ours() -> None:
    """The configuration refuses equal keys before this."""
    with pytest.raises(AssertionError):
        Keys([key(), key()])


def test_a_key_ends_by_the_wall_clock() -> None:
    """At its end it is a wrong key like any other."""
    now_s = 99.9
    digest = digest_of(SECRET)
    caller = AdminCaller(key_id="adm-1", role=Role.READ, expires_unix_s=100.0)
    keys = Keys([Key(digest=digest, caller=caller)], unix_clock=lambda: now_s)
    values = [b"Bearer " + SECRET.encode()]
    assert caller == keys.caller(values)
    now_s = 100.0
    with pytest.raises(ApiError) as caught:
        keys.caller(values)
    assert "Incorrect API key provided." == caught.value.message


def test_a_rotated_key_has_two_secrets_and_one_id() -> None:
    """They are found by their own hashes."""
    callers = Caller(tenant="a", project="p", key_id="key-first", best_band=Band.FLEX)
    keys = Keys(Key(digest=digest_of(secret), caller=callers) for secret in ("one", "two"))
    assert ["key-first"] * 2 == [keys.caller([b"Bearer " + secret]).key_id for secret in (b"one", b"two")]


def test_new_keys_differ_and_say_what_they_are() -> None:
    """256 bits behind a prefix."""
    tenant_key, admin_key = new_key(), new_key("jwa-")
    assert (True, True) == (tenant_key.startswith("jw-"), admin_key.startswith("jwa-"))
    assert len({new_key() for _ in range(100)}) == 100
    assert len(tenant_key) == len("jw-") + 43


def test_whose_key_was_offered_is_asked_by_its_hash() -> None:
    """Where there is exactly one that can be read."""
    assert hashlib.sha256(b"x").hexdigest() == offered_sha256([b"Bearer x"])
    assert [None] * 3 == [offered_sha256(values) for values in ([], [b"Basic x"], [b"Bearer x", b"Bearer y"])]


# -- hosts


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"LOCALHOST",
        b"localhost:8000",
        b"127.0.0.1",
        b"127.0.0.1:1",
        b"[::1]",
        b"[::1]:65535",
        b"Api.Example",
    ],
)
def test_loopback_and_configured_names_are_served(host: bytes) -> None:
    """Whatever the port and the case."""
    Hosts(["api.example"]).check([host])


@pytest.mark.parametrize(
    "host", [b"evil.example", b"api.example.evil", b"127.0.0.1.evil.example", b"localhost.", b"0.0.0.0", b"[::2]"]
)
def test_any_other_name_is_a_page_that_rebinds_dns(host: bytes) -> None:
    """Also without TLS a browser cannot be made to ask us."""
    with pytest.raises(ApiError) as caught:
        Hosts(["api.example"]).check([host])
    assert (403, "host_not_allowed") == (caught.value.status, caught.value.code)
    assert host.decode() not in caught.value.message


@pytest.mark.parametrize(
    "values",
    [
        [], [b""], [b"local host"], [b"localhost:"], [b"localhost:99999999"], [b"localhost:80:80"], [b"http://localhost"],
        [b"localhost/x"], [b"user@localhost"], [b"localhost\r\nx: y"], [b"localhost", b"localhost"], [b"::1"],
        [b"\xff"],
    ],
)  # fmt: skip
def test_a_malformed_host_is_refused(values: list[bytes]) -> None:
    """Missing, twice, or anything that is no name and port."""
    with pytest.raises(ApiError) as caught:
        Hosts().check(values)
    assert (400, "bad_host") == (caught.value.status, caught.value.code)


def test_memory_of_hosts_is_bounded() -> None:
    """Ports differ without end; what is remembered does not."""
    hosts = Hosts()
    for port in range(1, 2 * MAX_HOSTS_REMEMBERED):
        hosts.check([b"localhost:%d" % port])
    assert MAX_HOSTS_REMEMBERED == len(hosts._seen)


def test_a_host_once_seen_is_still_checked_for_being_alone() -> None:
    """The short way is for one header only."""
    hosts = Hosts()
    hosts.check([b"localhost"])
    with pytest.raises(ApiError):
        hosts.check([b"localhost", b"evil.example"])


def test_names_beyond_ascii_are_compared_as_they_travel() -> None:
    """In the Host header they are punycode."""
    Hosts(["bücher.example"]).check([b"xn--bcher-kva.example"])
