"""A validation error becomes lines that name a key by its path, say what was expected and repeat no value."""

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from scheduler.config_errors import MAX_PROBLEMS, ConfigError, path_of, problems_of


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    max_wait_s: float = 1.0
    size_bytes: int = 1
    ratio_of_all: float = 0.5
    free: dict[str, str | int | list[str]] = {}


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner = Inner()
    by_name: dict[str, Inner] = {}
    several: tuple[Inner, ...] = ()
    maybe: Inner | None = None


def problems(environment: dict[str, str] | None = None, **values: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer(**values)  # type: ignore[arg-type]
    return problems_of(caught.value, Outer, environment or {})


@pytest.mark.parametrize(
    ("location", "path"),
    [((), ""), (("a",), "a"), (("workers", 0, "engine"), "workers[0].engine"), (("a", "b", 3), "a.b[3]")],
)
def test_a_location_reads_as_it_is_written(location: tuple[str | int, ...], path: str) -> None:
    """Sections by dots, entries by their number."""
    assert path == path_of(location)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"inner": {"max_wait": 1}}, "inner.max_wait: unknown key; did you mean max_wait_s?"),
        ({"by_name": {"x": {"size": 1}}}, "by_name.x.size: unknown key; did you mean size_bytes?"),
        ({"several": [{}, {"rato_of_all": 1}]}, "several[1].rato_of_all: unknown key; did you mean ratio_of_all?"),
        ({"maybe": {"max_wait_ms": 1}}, "maybe.max_wait_ms: unknown key; did you mean max_wait_s?"),
        ({"zzz": 1}, "zzz: unknown key; known here: by_name, inner, maybe, several"),
        ({"inner": {"size_kilo": 1}}, "inner.size_kilo: unknown key; did you mean size_bytes?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(values: dict[str, object], line: str) -> None:
    """Of the same section; by its first word where nothing looks alike; else with all that are known there."""
    assert [line] == problems(**values)


@pytest.mark.parametrize(
    ("value", "words"),
    [("5s", "seconds"), ([1], "seconds"), ("1 MiB", "bytes")],
)
def test_a_value_with_a_unit_is_told_that_the_name_says_it(value: object, words: str) -> None:
    """Units end names."""
    name = "size_bytes" if words == "bytes" else "max_wait_s"
    (line,) = problems(inner={name: value})
    assert f"inner.{name}: is a plain number of {words}, without a unit: the name says it" == line


def test_a_union_is_one_problem() -> None:
    """Pydantic names each branch; the file has one key."""
    assert ["inner.free.x: must be a word, a number, true, false or a list"] == problems(
        inner={"free": {"x": {"y": "secret"}}}
    )


def test_the_number_of_lines_is_bounded() -> None:
    """The first ones, and how many more."""
    lines = problems(**{f"key{number:02d}": 1 for number in range(MAX_PROBLEMS + 5)})
    assert (MAX_PROBLEMS + 1, "and 5 more") == (len(lines), lines[-1])


def test_a_value_from_the_environment_names_its_variable() -> None:
    """Whoever looks for the mistake in the file would not find it."""
    lines = problems({"JOULEWAY_INNER__MAX_WAIT_S": "x"}, inner={"max_wait_s": "x"})
    assert lines[0].endswith("(from the environment variable JOULEWAY_INNER__MAX_WAIT_S)")


def test_a_section_that_is_none_says_so() -> None:
    """In our words, without a class's name."""
    assert ["inner: must be a mapping of keys to values; leave it out where it is empty"] == problems(inner=None)


def test_an_error_carries_its_lines() -> None:
    """Each with the place in front."""
    error = ConfigError("here.yaml", ["a: wrong", "b: wrong"])
    assert ("here.yaml", ("a: wrong", "b: wrong")) == (error.where, error.problems)
    assert "here.yaml: a: wrong\nhere.yaml: b: wrong" == str(error)
