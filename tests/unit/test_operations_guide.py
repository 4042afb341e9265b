"""The operations guide says what the code says: every metric with its kind, labels and words, every route."""

import re
from pathlib import Path

from scheduler.api.admin import PREFIX, REQUESTS_PREFIX
from scheduler.api.app import METHODS
from scheduler.metric_table import METRIC_HELP

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_metric_table_is_the_codes_own() -> None:
    """Row by row, in order."""
    rows = re.findall(r"^\| `(jouleway_\w+)` \| (\w+) \| ([^|]+) \| (.+) \|$", GUIDE, re.MULTILINE)
    expected = [(name, info.kind, ", ".join(info.labels) or "–", info.help) for name, info in METRIC_HELP.items()]
    assert expected == rows


def test_every_route_is_listed() -> None:
    """Of both listeners."""
    routes = [*METHODS, *(PREFIX + name for name in ("workers", "balance", "snapshot")), REQUESTS_PREFIX]
    assert [] == [route for route in routes if route.removeprefix(PREFIX).strip("/") not in GUIDE]
