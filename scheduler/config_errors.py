"""Says what is wrong in a configuration: file, path of the key, what was expected, and the nearest right word.

Called by ``scheduler.config``. It must never repeat a value: a value in the wrong place can be a secret.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ValidationError

MAX_PROBLEMS = 10

UNITS = {
    "_per_s": "currency units a second",
    "_s": "seconds",
    "_bytes": "bytes",
    "_watts": "watts",
    "_tokens": "tokens",
    "_ratio": "a ratio from 0 to 1",
    "_joules": "joules",
    "_cpu_second": "watts of one busy core",
}


class ConfigError(Exception):
    """The configuration cannot be used. ``problems`` are one line each and name the key by its path."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        super().__init__("\n".join(f"{where}: {problem}" for problem in problems))
        self.where = where
        self.problems = tuple(problems)


def problems_of(error: ValidationError, root: type[BaseModel], environment: Mapping[str, str]) -> list[str]:
    """One line for each wrong key, at most ``MAX_PROBLEMS``."""
    by_location: dict[tuple[str | int, ...], list[tuple[str, str]]] = {}
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        by_location.setdefault(_without_tags(problem["loc"]), []).append((problem["type"], problem["msg"]))
    lines = []
    for location, kinds in by_location.items():
        if kinds[0][0] == "too_short" and any(
            other[: len(location)] == location for other in by_location if other != location
        ):
            continue  # a list whose entries are wrong counts as empty: the entries are named already
        words = (
            _words(*kinds[0], location, root) if len(kinds) == 1 else "must be a word, a number, true, false or a list"
        )
        path = path_of(location)
        variable = "JOULEWAY_" + "__".join(str(part).upper() for part in location)
        source = f" (from the environment variable {variable})" if variable in environment else ""
        lines.append(f"{path}{': ' if path else ''}{words}{source}")
    if len(lines) > MAX_PROBLEMS:
        lines[MAX_PROBLEMS:] = [f"and {len(lines) - MAX_PROBLEMS} more"]
    return lines


def path_of(location: Sequence[str | int]) -> str:
    """``("workers", 0, "engine")`` -> ``workers[0].engine``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _without_tags(location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Pydantic names the branches of a union in the location; those are no keys of the file."""
    tags = {"str", "int", "float", "bool", "none", "list[str]", "constrained-str"}
    return tuple(part for part in location if part not in tags)


def _words(kind: str, message: str, location: Sequence[str | int], root: type[BaseModel]) -> str:
    name = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        known = _keys_at(location[:-1], root)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        if not near:
            near = [key for key in known if _stem(key) == _stem(name)][:1]
        return f"unknown key{f'; did you mean {near[0]}?' if near else ''}" + (
            "" if near or not known else f"; known here: {', '.join(sorted(known))}"
        )
    if kind == "missing":
        return "is missing"
    if kind in ("model_type", "dict_type"):
        return "must be a mapping of keys to values; leave it out where it is empty"
    unit = next((words for ending, words in UNITS.items() if name.endswith(ending)), "")
    if unit and ("parsing" in kind or "_type" in kind):
        return f"is a plain number of {unit}, without a unit: the name says it"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _stem(name: str) -> str:
    return name.partition("_")[0]


def _keys_at(location: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """The keys that may stand at this place; empty where anything may."""
    model: type[BaseModel] | None = root
    for part in location:
        if model is None:
            return []
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            # A key of a mapping such as ``models``: the section below it was found already.
            continue
        model = _section_in(field.annotation)
    return [] if model is None else list(model.model_fields)


def _section_in(annotation: object) -> type[BaseModel] | None:
    """The section class inside ``tuple[X, ...]``, ``dict[str, X]``, ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation) is not None:
        for part in typing.get_args(annotation):
            if (found := _section_in(part)) is not None:
                return found
    return None
