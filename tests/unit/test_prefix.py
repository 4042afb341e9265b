"""Equal beginnings of prompts have equal hashes up to there; tenants share none, and no text is kept."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler.api.prefix import MAX_PARTS, PART_BYTES, part_bytes, prefix_blocks

SALT = b"tenant-alpha"


def blocks(salt: bytes = SALT, **fields: Any) -> tuple[int, ...]:
    return prefix_blocks(json.dumps({"model": "m", **fields}).encode(), salt=salt)


def num_shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Blocks at which both are still equal, from the start."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def test_a_longer_conversation_begins_as_the_shorter_one() -> None:
    """Each turn of an agent shares all whole parts of the one before."""
    turns = [{"role": "user", "content": f"turn {i} " + "word " * 500} for i in range(6)]
    short, long = blocks(messages=turns[:5]), blocks(messages=turns)
    assert num_shared(short, long) == len(short) - 1


def test_what_differs_early_shares_nothing_later() -> None:
    """The hashes are chained: an equal part after a different one is no equal prefix."""
    tail = "same " * 2000
    assert 0 == num_shared(blocks(prompt="a" + tail), blocks(prompt="b" + tail))


def test_what_an_engine_puts_first_comes_first() -> None:
    """Two bodies with the same tools and system text share them, in whatever order their fields stand."""
    tools = [{"type": "function", "function": {"name": f"f{i}", "description": "x" * 200}} for i in range(20)]
    first = blocks(messages=[{"role": "user", "content": "one"}], tools=tools)
    second = blocks(tools=tools, messages=[{"role": "user", "content": "two"}])
    assert num_shared(first, second) >= len(first) - 1 >= 4


def test_sampling_and_the_model_are_no_part_of_the_prompt() -> None:
    """Only what the engine's cache knows counts."""
    assert blocks(prompt="x" * 5000, temperature=1) == blocks(prompt="x" * 5000, seed=7)


def test_tenants_share_nothing() -> None:
    """Equal prompts under two salts look unlike, and so do equal parts within one prompt."""
    first, second = blocks(prompt="x" * 5000), blocks(prompt="x" * 5000, salt=b"tenant-beta")
    assert not set(first) & set(second)
    assert len(set(first)) == len(first)


def test_a_body_without_a_prompt_has_no_parts() -> None:
    """Nothing to share."""
    assert () == blocks()


@given(st.integers(min_value=0, max_value=10**9))
def test_there_are_never_more_parts_than_the_bound(num_bytes: int) -> None:
    """And no more bytes a part than that needs."""
    size = part_bytes(num_bytes)
    assert -(-num_bytes // size) <= MAX_PARTS
    assert size == PART_BYTES or num_bytes > size // 2 * MAX_PARTS


@given(st.text(min_size=1, max_size=4000), st.text(max_size=4000))
def test_the_parts_are_the_whole_prompt(start: str, rest: str) -> None:
    """So many as its bytes need; a changed last character changes the last hash."""
    prompt = start + rest
    found = blocks(prompt=prompt)
    assert len(found) == -(-len(json.dumps(prompt)) // PART_BYTES)
    assert found[-1] != blocks(prompt=prompt[:-1] + ("a" if prompt[-1] != "a" else "b"))[-1]
    assert all(0 <= each < 2**64 for each in found)
