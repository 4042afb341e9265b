"""Counts the distributions that an install of this project needs, from the metadata of what is installed.

Called by the test that keeps the core install small, and by hand for benchmarks/results/install_packages.json.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def _name_of(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def needed(extras: tuple[str, ...]) -> set[str]:
    """Names of every distribution that the core and the extras need here, this project not counted.

    Raises: metadata.PackageNotFoundError where one of them is not installed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    waiting = [Requirement(text) for text in texts]
    asked: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = _name_of(requirement)
        for extra in {"", *requirement.extras}:
            if (name, extra) in asked:
                continue
            asked.add((name, extra))
            for text in metadata.requires(name) or ():
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    waiting.append(further)
    return {name for name, _ in asked}


if __name__ == "__main__":
    sys.stdout.write(f"without_ray={len(needed(()))} with_ray={len(needed(('ray',)))}\n")
