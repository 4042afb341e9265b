"""Which measurement statement this software follows, and which version it is of.

Called wherever a row or a receipt must name them. ``docs/measurement.md`` is the statement.
"""

from __future__ import annotations

from importlib import metadata

STATEMENT = "jouleway-measurement/1.0"


def software_version() -> str:
    """Of the software."""
    try:
        return metadata.version("jouleway")
    except metadata.PackageNotFoundError:
        return "unknown"
