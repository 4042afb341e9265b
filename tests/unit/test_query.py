"""Query strings are read strictly, and a cursor leads on in its own question and nowhere else."""

import base64

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.api import query
from scheduler.api.errors import ApiError
from scheduler.api.query import Cursor, Query, cursor_of

NAMES = ("start_time", "models", "batch", "limit", "page")


def refused(text: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        Query(text, names=NAMES)
    assert 400 == caught.value.status
    return caught.value


def page(text: str | None, digest: str = "d", num_texts: int = 2) -> Cursor | None:
    asked = Query(b"" if text is None else b"page=" + text.encode(), names=NAMES)
    return cursor_of(asked, digest, num_texts=num_texts)


def test_lists_are_read_as_both_kinds_of_clients_write_them() -> None:
    """Repeated, or with brackets; empty and encoded values stay as they are."""
    for text in (b"models=a&models=&models=%C3%A9+%2F", b"models[]=a&models%5B%5D=&models[]=%C3%A9%20%2F"):
        assert ("a", "", "é /") == Query(text, names=NAMES).many("models")
    assert None is Query(b"", names=NAMES).many("models")


def test_one_value_comes_once() -> None:
    """Of two nobody knows which is meant."""
    asked = Query(b"batch=true&models=a&models=b", names=NAMES)
    assert ("true", None) == (asked.one("batch"), asked.one("limit"))
    with pytest.raises(ApiError, match="models: expected once"):
        asked.one("models")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"tenant=other", "unknown_parameter"),
        (b"models", "invalid_query"),
        (b"&", "invalid_query"),
        (b"models=%ff", "invalid_query"),
        (b"models=\xc3\xa9", "invalid_query"),
        (b"models=a&" * 300 + b"models=a", "invalid_query"),
        (b"models=" + b"a" * 257, "invalid_value"),
        (b"models=" + b"a" * (16 << 10), "query_too_long"),
    ],
)
def test_what_is_no_question_of_these_names_is_refused(text: bytes, code: str) -> None:
    """Nothing that was written is repeated; a filter with a slip in its name never widens an answer."""
    error = refused(text)
    assert code == error.code
    assert "other" not in error.message


@pytest.mark.parametrize("value", ["", "-1", "1.0", "1e3", "٣", "0x1", " 1", "9" * 19, "0", "32"])
def test_a_number_is_whole_and_within_its_range(value: str) -> None:
    """Nothing is cut to fit."""
    asked = Query(f"limit={value}".encode() if value.isascii() else b"limit=%D9%A3", names=NAMES)
    with pytest.raises(ApiError, match="limit: expected a whole number from 1 to 31"):
        asked.whole("limit", low=1, high=31)


def test_numbers_and_words() -> None:
    """As they are, or None where nothing was said."""
    asked = Query(b"limit=31&batch=true&models=b&models=a&models=b", names=NAMES)
    assert (31, None) == (asked.whole("limit", low=1, high=31), asked.whole("start_time", low=0, high=1))
    assert ("true", None) == (asked.word("batch", ("true", "false")), asked.word("page", ()))
    assert (("b", "a"), ()) == (asked.words("models", "abc"), asked.words("page", ()))
    for wrong in (lambda: asked.word("batch", ("yes",)), lambda: asked.words("models", "a")):
        with pytest.raises(ApiError, match="expected"):
            wrong()


def test_equal_questions_have_one_digest() -> None:
    """The page and its size are not part of it, the order of names neither; everything else is."""
    texts = (b"models=a&batch=true", b"batch=true&models=a&limit=3", b"page=x&models[]=a&batch=true")
    assert 1 == len({Query(text, names=NAMES).digest("r") for text in texts})
    others = (b"models=a", b"models=b&batch=true", b"models=a&models=b&batch=true", b"models=b&models=a&batch=true")
    assert 4 == len({Query(text, names=NAMES).digest("r") for text in others})
    assert Query(b"", names=NAMES).digest("r") != Query(b"", names=NAMES).digest("s")


times = st.integers(0, query.MAX_UNIX_S * 10**6 - 1)


@given(from_us=times, after=st.none() | st.tuples(times, st.text(), st.text()))
@example(from_us=0, after=(0, "", "\x00"))
def test_a_cursor_comes_back_as_it_was(from_us: int, after: tuple[int, str, str] | None) -> None:
    """Whatever texts its key holds; it needs no encoding in a URL."""
    cursor = Cursor(from_us=from_us, to_us=query.MAX_UNIX_S * 10**6, after=after)
    text = cursor.text("d")
    assert text.replace("-", "").replace("_", "").isalnum()
    assert cursor == page(text)


def test_without_a_cursor_it_is_the_first_page() -> None:
    """None, and not an empty one."""
    assert None is page(None)


def test_a_cursor_of_another_question_is_refused() -> None:
    """It would skip rows of this one."""
    text = Cursor(from_us=0, to_us=10, after=(0, "a", "b")).text("d")
    for how in ({"digest": "e"}, {"num_texts": 1}, {"num_texts": 3}):
        with pytest.raises(ApiError, match="begin again"):
            page(text, **how)  # type: ignore[arg-type]


def written(*fields: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(fields)).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "!!!!", "é", "AAAA", base64.urlsafe_b64encode(b"[" * 6_000).decode(),
        written("d", 5, 5, None, ()), written("d", -1, 5, None, ()), written("d", 0, 10**30, None, ()),
        written("d", 0, 5, None, ("x", "y")), written("d", 0, 5, 0, ("x", 1)), written("d", 0, 5), written({}),
        written("d", 0, 5, 0, ("x", "y"), 7), written("d", True, 5, 0, ("x", "y")),
    ],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """Made up, cut or too large: one answer."""
    with pytest.raises(ApiError) as caught:
        page("%C3%A9" if text == "é" else text)
    assert (400, "page") == (caught.value.status, caught.value.param)
