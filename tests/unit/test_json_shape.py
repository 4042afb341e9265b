"""Depth and duplicate keys of JSON, without building it: exact on valid JSON, quick on hostile JSON."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.api.json_shape import MAX_DEPTH, has_duplicate_keys, is_too_deep, num_keys

TEXT = st.text(alphabet=st.sampled_from('ab"\\[]{}:,é😀\n'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def depth_of(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 0


def keys_of(value: object) -> int:
    if isinstance(value, list):
        return sum(map(keys_of, value))
    if isinstance(value, dict):
        return len(value) + sum(map(keys_of, value.values()))
    return 0


@given(VALUES, st.integers(0, 6), st.booleans())
def test_depth_is_exact_on_valid_json(value: object, max_depth: int, is_ascii: bool) -> None:
    """Brackets inside strings, escaped quotes and backslashes do not count."""
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    assert (depth_of(value) > max_depth) == is_too_deep(body, max_depth=max_depth)


@given(VALUES)
def test_keys_are_counted(value: object) -> None:
    """Colons inside strings do not count."""
    assert keys_of(value) == num_keys(json.dumps(value).encode())


@given(VALUES)
def test_valid_json_from_a_dictionary_has_no_duplicate(value: object) -> None:
    """Nobody is refused for nothing."""
    assert not has_duplicate_keys(json.dumps(value).encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{"x":{"a":1,"a":2}}',
        b'[{"a":{}},{"b":1,"c":2,"b":3}]',
        b'{"a:":1,"a:":2}',
    ],
)
def test_a_key_given_twice_is_found(body: bytes) -> None:
    """In any object, however it is written: two readers of such a body see two bodies."""
    assert has_duplicate_keys(body)


@pytest.mark.parametrize("body", [b'{"a":1,"b":1}', b'{"a":{"a":1}}', b'[{"a":1},{"a":1}]', b'{"a":"a:b\\":c"}', b"3"])
def test_equal_keys_of_different_objects_are_fine(body: bytes) -> None:
    """A key may come again where it means something else."""
    assert not has_duplicate_keys(body)


def test_the_default_depth_holds_tool_schemas() -> None:
    """32 levels pass, 33 do not."""
    assert not is_too_deep(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert is_too_deep(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("body", [b"[" * 1_000_000, b'{"a":' * 200_000, b'["' * 500_000, b"]" * 1_000_000])
def test_a_hostile_megabyte_takes_milliseconds(body: bytes) -> None:
    """No recursion, and the event loop is not held. (A generous bound: this machine is shared.)"""
    started_s = time.perf_counter()
    is_too_deep(body)
    assert time.perf_counter() - started_s < 0.5
