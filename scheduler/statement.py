"""Which measurement statement this software follows, its tables, and which version the software is of.

Called wherever a row or a receipt must name them. ``docs/measurement.md`` is the statement; its tables are in the
package too, for programs. It must never know an amount.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata, resources
from typing import TypedDict, cast

STATEMENT = "jouleway-measurement/1.0"


class Statement(TypedDict):
    """The machine-readable twin of the document."""

    statement: str
    """Its version."""
    document: str
    """Where the document lies in the repository."""
    tables: dict[str, list[dict[str, str]]]
    """By name; a row's cells by their column's head, word for word as in the document."""


@cache
def statement() -> Statement:
    """Read at the first call, then kept; to be read only."""
    text = resources.files("scheduler.accounting").joinpath("statement.json").read_text(encoding="utf-8")
    return cast(Statement, json.loads(text))


def software_version() -> str:
    """Of the software."""
    try:
        return metadata.version("jouleway")
    except metadata.PackageNotFoundError:
        return "unknown"
