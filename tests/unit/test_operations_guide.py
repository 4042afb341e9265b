"""The operations guide says what the code says: every metric with its kind, labels and words, every route."""

import re
from pathlib import Path

from scheduler.api.admin import PREFIX, REQUESTS_PREFIX
from scheduler.api.app import METHODS
from scheduler.api.directory_changes import ROOT
from scheduler.metric_table import METRIC_HELP
from tests.directory_office import Office

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


def test_every_admin_route_is_listed_with_its_roles() -> None:
    """In one line of the table, by what follows the common prefix; of several the method may stand once."""
    table = [line for line in GUIDE.splitlines() if line.startswith("| `") and line.count("|") == 4]
    for route in Office().admin.routes:
        path = route.path.removeprefix(ROOT)
        if path == route.path:
            continue
        lines = [line for line in table if route.method in line and re.search(rf"{re.escape(path)}[?`]", line)]
        assert lines, (route.method, path)
        assert any(set(re.findall(r"\w+", line.split("|")[2])) == {str(role) for role in route.roles} for line in lines)
