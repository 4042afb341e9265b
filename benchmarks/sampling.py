"""Samples where a running Python process spends its CPU, by py-spy, and sums it per function.

Called by the comparisons in this folder. It must never slow what is measured while a figure is taken: profiles are
runs of their own.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from pathlib import Path


class SamplerMissing(Exception):
    """py-spy is missing or may not look into the process."""


def sample(pid: int, *, py_spy: Path, duration_s: int, rate_hz: int = 200, native: bool = False) -> dict[str, object]:
    """Shares of samples per function of every thread that was on the CPU.

    ``own`` is time in the function itself, ``with_callees`` includes what it called (a recursive function counts once
    per sample). Raises: SamplerMissing.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stacks.txt"
        command = [str(py_spy), "record", "--pid", str(pid), "--duration", str(duration_s), "--rate", str(rate_hz)]
        command += ["--format", "raw", "--output", str(out), *(["--native"] if native else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + 60, check=False)
        except OSError as error:
            raise SamplerMissing(str(error)) from error
        if done.returncode != 0 or not out.exists():
            raise SamplerMissing(done.stderr.strip()[-500:])
        return summary(out.read_text(encoding="utf-8"))


def summary(stacks: str, *, top: int = 30) -> dict[str, object]:
    """The shares in py-spy's raw format: one stack a line, frames from the root by ``;``, then a count."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack or not count.isdigit():
            continue
        frames = [_short(frame) for frame in stack.split(";")]
        total += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)

    def shares(counter: Counter[str]) -> dict[str, float]:
        return {frame: round(count / total, 4) for frame, count in counter.most_common(top)}

    return {
        "samples": total,
        "own_ratio": shares(own) if total else {},
        "with_callees_ratio": shares(whole) if total else {},
    }


def _short(frame: str) -> str:
    """``function (file)`` without the line and with at most the last two parts of the path."""
    name, _, place = frame.rpartition(" (")
    if not name:
        return frame
    path = place.rstrip(")").rpartition(":")[0] or place.rstrip(")")
    return f"{name} ({'/'.join(path.split('/')[-2:])})"
