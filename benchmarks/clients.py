"""Runs the clients' tests against real vLLM, and records which client of which version did what.

Called by hand; ``tests/engine/test_clients.py`` is what runs, unchanged. It must never count a test as passed that did
not run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record

TESTS = "tests/engine/test_clients.py"
WHAT = """unmodified clients against `jouleway serve` with two real models on vLLM's CPU build (SmolLM2-135M-Instruct, \
all-MiniLM-L6-v2): openai-python (chat, responses, embeddings, tools, schema), langchain-openai, anthropic, vLLM's \
serving benchmark; afterwards tokens and joules add up"""
CLIENTS = ("openai", "langchain-openai", "langchain-core", "anthropic", "ray")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 only where every test ran and passed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print instead of recording")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", TESTS, "-n", "0", "-q", "--timeout", "900", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False)
        outcomes = outcomes_of(report)
    counts = Counter(outcomes.values())
    is_passed = bool(outcomes) and counts.keys() == {"passed"}
    values = {"pass": is_passed, "tests": len(outcomes), "counts": dict(counts), "outcomes": outcomes}
    versions = {name: metadata.version(name) for name in CLIENTS}
    if given.dry_run:
        print(values)
    else:
        record("clients", values, what=WHAT, versions=versions, command="python benchmarks/clients.py")
    return 0 if is_passed else 1


def outcomes_of(report: Path) -> dict[str, str]:
    """Test -> passed, failed, error or skipped; empty where pytest did not come so far."""
    if not report.exists():
        return {}
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[str(case.get("name"))] = {"failure": "failed"}.get(kind := next(iter(kinds), "passed"), kind)
    return found


if __name__ == "__main__":
    sys.exit(main())
