"""The operations guide says what the code says: every metric with its kind, labels and words, every route, the
ledger's log lines and refusals."""

import ast
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


LEDGER_FILES = ("bookkeeper.py", "committer.py", "dispatcher.py", "ledger_files.py", "service.py")
LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}


def ledger_lines() -> set[tuple[str, str]]:
    """(format, level) of every log line about the ledger, figures and causes as an ellipsis."""
    root = Path(__file__).resolve().parents[2] / "scheduler"
    found = set()
    for path in (*(root / "accounting").glob("*.py"), *(root / name for name in LEDGER_FILES)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr=level), args=[ast.Constant(value=str(words)), *_]):
                    if level in LEVELS and re.search(r"ledger|commit|checkpoint|window was", words):
                        found.add((re.sub(r"%(\.\d)?[sdgf]", "…", words), LEVELS[level]))
    return found


def test_every_log_line_of_the_ledger_is_explained() -> None:
    """With its level; beside them the two that one line of the dispatcher makes."""
    section = GUIDE.split("### What its log lines mean", 1)[1].split("\n## ", 1)[0]
    rows = set(re.findall(r"^\| `([^`]+)` \| (\w+) \|", section, re.MULTILINE))
    assert rows == ledger_lines() | {("ledger: …", "error"), ("ledger: writable again", "info")}


def test_every_refusal_to_start_is_in_the_words_of_the_code() -> None:
    """So that the words of a terminal are found in the guide."""
    section = GUIDE.split("### What `serve` says", 1)[1].split("\n### ", 1)[0]
    words = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    scheduler = Path(__file__).resolve().parents[2] / "scheduler"
    paths = sorted([*scheduler.glob("*.py"), *scheduler.glob("accounting/*.py")])
    source = "".join(path.read_text(encoding="utf-8") for path in paths)
    assert len(words) >= 5
    assert [] == [each for each in words if each not in source]
