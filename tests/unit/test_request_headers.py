"""Headers of ours may tighten what a key allows, never loosen it; a malformed one is an error that names it."""

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.request_headers import MAX_ZONES, NAMES, Wishes, read
from scheduler.core.request import Band, DataClass

KNOWN = frozenset({"eu-1", "eu-2", "us-1"})


def caller(data_class: DataClass = DataClass.IMPORTANT, zones: frozenset[str] | None = None) -> Caller:
    return Caller(
        tenant="acme", project="p", key_id="key-1", best_band=Band.DEFAULT, data_class=data_class, zones=zones
    )


def wishes(name: str, *values: bytes, of: Caller | None = None, known: frozenset[str] | None = KNOWN) -> Wishes:
    return read({name.encode(): list(values)}, of or caller(), known_zones=known)


def refused(name: str, *values: bytes, of: Caller | None = None, known: frozenset[str] | None = KNOWN) -> ApiError:
    with pytest.raises(ApiError) as caught:
        wishes(name, *values, of=of, known=known)
    assert name == caught.value.param
    return caught.value


def outcome(headers: dict[bytes, list[bytes]], of: Caller) -> Wishes | int:
    """What is read, or the status of the refusal."""
    try:
        return read(headers, of, known_zones=KNOWN)
    except ApiError as error:
        return error.status


def test_without_headers_everything_is_the_keys() -> None:
    """Most requests have none."""
    own = caller(DataClass.CORE, frozenset({"eu-1"}))
    assert Wishes(data_class=DataClass.CORE, zones=frozenset({"eu-1"})) == read({b"host": [b"x"]}, own)


def test_all_of_them_together() -> None:
    """Each is read into its field."""
    headers = {
        b"x-jouleway-task": [b"acme/nightly:7"],
        b"x-jouleway-deadline-s": [b"2.5"],
        b"x-jouleway-metering": [b"1"],
        b"x-jouleway-data-class": [b" Core "],
        b"x-jouleway-zones": [b"eu-1, eu-2"],
        b"idempotency-key": [b"7f3c-1"],
    }
    assert headers.keys() == NAMES
    assert Wishes(
        data_class=DataClass.CORE,
        zones=frozenset({"eu-1", "eu-2"}),
        task="acme/nightly:7",
        deadline_s=2.5,
        is_metered=True,
        idempotency_key=b"7f3c-1",
    ) == read(headers, caller(), known_zones=KNOWN)


# -- malformed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-jouleway-task", b""),
        ("x-jouleway-task", b"two words"),
        ("x-jouleway-task", b"-x"),
        ("x-jouleway-task", b"x\n"),
        ("x-jouleway-task", "tägliche".encode()),
        ("x-jouleway-task", b"x" * 129),
        ("x-jouleway-task", b"x" * 1_000_000),
        *(("x-jouleway-deadline-s", v) for v in (b"0", b"-1", b"nan", b"inf", b"1e999", b"soon", b"", b"1" * 10**6)),
        *(("x-jouleway-metering", v) for v in (b"", b"2", b"yes", b"01")),
        *(("x-jouleway-data-class", v) for v in (b"", b"secret", b"0", b"core,general", b"\xff", b"c" * 1_000_000)),
        *(("x-jouleway-zones", v) for v in (b"", b",", b"eu-1,,eu-2", b"EU-1", b"eu 1", b"\xff", b"a," * 500_000)),
        ("x-jouleway-zones", b",".join(b"zone-%d" % i for i in range(MAX_ZONES + 1))),
        *(("idempotency-key", v) for v in (b"", b"two words", b"x\x7f", b"k" * 256, b"k" * 1_000_000)),
    ],
)  # fmt: skip
def test_a_malformed_header_is_an_error_that_names_it(name: str, value: bytes) -> None:
    """Never a silent default; a megabyte is refused as fast as a byte, and not repeated."""
    begun_s = time.perf_counter()
    error = refused(name, value, known=None)
    assert (400, "invalid_value") == (error.status, error.code)
    assert time.perf_counter() - begun_s < 0.2
    assert len(error.message) < 200


@pytest.mark.parametrize("name", sorted(name.decode() for name in NAMES))
def test_a_header_given_twice_is_refused(name: str) -> None:
    """Nobody could say which one was meant, even where both say the same."""
    value = {"x-jouleway-data-class": b"core", "x-jouleway-zones": b"eu-1"}.get(name, b"1")
    assert (400, "invalid_value") == ((error := refused(name, value, value)).status, error.code)
    wishes(name, value)


def test_no_value_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A task's name may say who somebody's customers are."""
    caplog.set_level(logging.DEBUG)
    refused("x-jouleway-task", b"CANARY value")
    assert "CANARY" not in caplog.text


@given(st.sampled_from(sorted(NAMES)), st.binary(max_size=300))
def test_whatever_a_header_holds_it_is_read_or_refused(name: bytes, value: bytes) -> None:
    """No other exception leaves, and what is read is within its bounds."""
    found = outcome({name: [value]}, caller())
    if isinstance(found, int):
        assert found in (400, 403)
        return
    assert found.data_class >= DataClass.IMPORTANT
    assert len(found.task) <= 128
    assert found.deadline_s is None or 0 < found.deadline_s < float("inf")
    assert found.zones is None or found.zones <= KNOWN


# -- never looser


@pytest.mark.parametrize("own", DataClass)
@pytest.mark.parametrize("asked", DataClass)
def test_a_data_class_can_only_become_stricter(own: DataClass, asked: DataClass) -> None:
    """The key's class is the least."""
    value = asked.name.lower().encode()
    if asked < own:
        error = refused("x-jouleway-data-class", value, of=caller(own))
        assert (403, "may_only_tighten") == (error.status, error.code)
    else:
        assert asked is wishes("x-jouleway-data-class", value, of=caller(own)).data_class


@given(
    st.none() | st.frozensets(st.sampled_from(sorted(KNOWN))),
    st.frozensets(st.sampled_from([*sorted(KNOWN), "nowhere"]), min_size=1),
)
def test_zones_can_only_become_fewer(own: frozenset[str] | None, asked: frozenset[str]) -> None:
    """Whatever is asked: an error, or a part of what the key allows."""
    headers = {b"x-jouleway-zones": [",".join(sorted(asked)).encode()]}
    allowed = KNOWN if own is None else own
    found = outcome(headers, caller(zones=own))
    if asked <= allowed:
        assert isinstance(found, Wishes)
        assert asked == found.zones
    else:
        assert found == (400 if own is None else 403)


def test_a_zone_that_nobody_configured_is_a_slip() -> None:
    """Told at once and by name, not by an empty cluster; where zones are not known any name may be one."""
    error = refused("x-jouleway-zones", b"eu-1,eu-9")
    assert (400, "unknown_zone") == (error.status, error.code)
    assert "eu-9" in error.message
    assert frozenset({"eu-9"}) == wishes("x-jouleway-zones", b"eu-9", known=None).zones


def test_a_key_without_any_zone_says_so() -> None:
    """An empty set is no freedom."""
    assert 403 == refused("x-jouleway-zones", b"eu-1", of=caller(zones=frozenset())).status
