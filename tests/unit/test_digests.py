"""What is stated of texts: bytes and digests that anybody who has the text and the salt can compute again."""

import hashlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.digests import NOTHING, Stated, asked_of, canonical_json, stated_of, text_bytes

SALT = bytes(range(16))

NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
"""RFC 8785, appendix B: IEEE 754 bits and what ECMAScript writes."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | texts | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def body_of(**fields: object) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 5, "temperature": 0.5, **fields}).encode()


def digest(text: str | bytes, salt: bytes = SALT) -> str:
    """As somebody else would compute it."""
    return hashlib.sha256(salt + (text.encode() if isinstance(text, str) else text)).hexdigest()


@pytest.mark.parametrize(("bits", "written"), NUMBERS.items())
def test_numbers_are_written_as_ecmascript_writes_them(bits: str, written: str) -> None:
    """Every sample of the standard."""
    assert written.encode() == canonical_json(struct.unpack(">d", bytes.fromhex(bits))[0])


def test_the_standards_own_example_is_canonical() -> None:
    """RFC 8785, section 3.2.2: numbers, escapes, literals; and 3.2.3: keys by UTF-16, where an emoji is a surrogate."""
    given_text = r"""{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}"""
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert expected.encode() == canonical_json(json.loads(given_text))
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    in_order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert in_order == list(json.loads(canonical_json(dict.fromkeys(keys, 0))))


def test_integers_that_a_double_does_not_hold_are_written_as_the_double() -> None:
    """As any reader of the standard's has them; token ids are never so large."""
    assert b"[9007199254740992,9007199254740992,1e+21]" == canonical_json([2**53, 2**53 + 1, 10**21])


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10**400])
def test_what_json_cannot_carry_is_refused(number: float) -> None:
    """It has no canonical form."""
    with pytest.raises((ValueError, OverflowError)):
        canonical_json([number])


@given(values)
def test_the_canonical_form_says_the_same_in_one_way(value: Any) -> None:
    """It reads back as the value, its keys are in order everywhere, and it is its own canonical form."""
    written = canonical_json(value)
    back = json.loads(written, object_pairs_hook=_in_order, parse_int=float)
    assert back == _as_doubles(value)
    assert written == canonical_json(back)


def _in_order(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert keys == sorted(keys, key=lambda key: key.encode("utf-16-be"))
    return dict(pairs)


def _as_doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_doubles(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_doubles(item) for item in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@given(values.filter(lambda value: value is not None), st.sampled_from(["messages", "prompt", "input"]))
def test_what_was_asked_is_digested_in_its_canonical_form(value: Any, field: str) -> None:
    """Whatever it is and however the client wrote it: escapes, blanks and the order of keys change nothing."""
    expected = Stated(text_bytes(value), digest(canonical_json(value)))
    assert expected == asked_of(SALT, json.dumps({field: value, "stream": True}, indent=2).encode())
    assert expected == asked_of(SALT, json.dumps({"n": 1, field: value}, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("fields", "num_bytes", "canonical"),
    [
        ({"prompt": "äöü"}, 6, '"äöü"'),
        ({"prompt": ["one", "three"]}, 8, '["one","three"]'),
        ({"prompt": [1, 2, 3]}, 0, "[1,2,3]"),
        ({"prompt": [[1, 2], [3]]}, 0, "[[1,2],[3]]"),
        ({"input": "say it", "instructions": "briefly"}, 13, '"say it"'),
        ({"messages": [{"role": "user", "content": "x😀"}]}, 5, '[{"content":"x😀","role":"user"}]'),
        ({"messages": [{"role": "user", "content": None}]}, 0, '[{"content":null,"role":"user"}]'),
        ({"messages": [{"role": "user", "content": ["a", "bc"]}]}, 3, '[{"content":["a","bc"],"role":"user"}]'),
        ({"messages": [], "prompt": "not this"}, 0, "[]"),
    ],
)
def test_bytes_and_digest_of_each_kind_of_request(fields: dict[str, Any], num_bytes: int, canonical: str) -> None:
    """Texts count in UTF-8; token ids have no bytes, and a digest all the same."""
    assert Stated(num_bytes, digest(canonical)) == asked_of(SALT, body_of(**fields))


@pytest.mark.parametrize(
    ("items", "num_bytes"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "abc"}, {"type": "text", "text": "de"}]}], 5),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}], 0),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}], 0),
        ([{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "four"}]}]}], 4),
        ([{"role": "assistant", "content": "hi", "tool_calls": [{"function": {"arguments": "{}"}}]}], 2),
        ([{"type": "function_call_output", "call_id": "c", "output": "found"}], 5),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "ok"}]}], 2),
    ],
)
def test_bytes_are_those_of_the_texts_in_messages(items: list[dict[str, Any]], num_bytes: int) -> None:
    """Parts, nested results and outputs of tools; not pictures, not sounds, not calls."""
    assert num_bytes == text_bytes(items)


def test_a_system_prompt_counts_beside_the_messages() -> None:
    """In Anthropic's words it is no message; the digest is of the messages."""
    messages = [{"role": "user", "content": "hi"}]
    system = [{"type": "text", "text": "be brief"}]
    asked = asked_of(SALT, body_of(messages=messages, system=system))
    assert Stated(2 + 8, digest('[{"content":"hi","role":"user"}]')) == asked


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"input_ids": [1]}', b'{"prompt": 1e999}', b"\xff", b'{"prompt":' + b"[" * 5000,
     b'{"prompt": "\\ud800"}'],
)  # fmt: skip
def test_of_what_cannot_be_read_nothing_is_stated(body: bytes) -> None:
    """A route without text, or a body that the engine will refuse: no error from here."""
    assert NOTHING == asked_of(SALT, body)


def test_a_text_is_stated_by_its_bytes_and_its_salted_digest() -> None:
    """Another salt, another digest; the empty text has one too."""
    text = "größer".encode()
    assert Stated(8, digest("größer")) == stated_of(SALT, text)
    assert digest(text, salt=b"1" * 16) == stated_of(b"1" * 16, text).digest != stated_of(SALT, text).digest
    assert Stated(0, hashlib.sha256(SALT).hexdigest()) == stated_of(SALT, b"")
