"""ServeGen's clients as a trace: each one's arrivals and lengths drawn from its published windows.

Called by the commands and benchmarks, for files as ``{"clients": [{"arrivals": [...], "lengths": [...]}]}`` (from
alibaba/ServeGen). It must never know a fleet.

Each client is a renewal process: in a window of ten minutes its gaps are Gamma or Weibull with the window's shape, and
their mean follows the window's rate. All rates are scaled by one factor, so that shapes, and who asks when, stay. A
prompt's and an answer's length are drawn each from its table of quantiles for the hour: the tables do not say how they
go together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.trace_files import TraceError, TraceRow

Floats = NDArray[np.float64]
SLICE_BEGIN_S = 36_000.0
"""Ten in the morning of the file's day."""
SLICE_S = 2_700.0
MAX_GAPS = 10_000
"""Drawn at once."""


def read_servegen(
    path: Path, *, rate_per_s: float, seed: int, begin_s: float = SLICE_BEGIN_S, seconds: float = SLICE_S
) -> list[TraceRow]:
    """Rows of so many seconds of the file's day, at a mean rate over them, by time from 0.

    Raises: TraceError when the file is missing or no such file, or nobody asks anything then.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        clients, window_s = document["clients"], float(document["arrival_window_s"])
        offered_per_s = sum(_mean_rate(client, window_s, begin_s, seconds) for client in clients)
        if offered_per_s <= 0:
            raise TraceError(f"{path}: nobody asks anything from {begin_s:g} s on for {seconds:g} s; begin elsewhere")
        chance = np.random.default_rng(seed)
        rows = [
            row
            for client in clients
            for row in _rows(client, window_s, rate_per_s / offered_per_s, begin_s, begin_s + seconds, chance)
        ]
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: no ServeGen file ({type(error).__name__}: {error})") from error
    if not rows:
        raise TraceError(f"{path}: at {rate_per_s:g} requests/s nobody asked anything; raise the rate")
    return sorted(rows, key=lambda row: row.arrival_s)


def _mean_rate(client: Mapping[str, Any], window_s: float, begin_s: float, seconds: float) -> float:
    overlaps = [
        max(min(start_s + window_s, begin_s + seconds) - max(start_s, begin_s), 0.0) * rate_per_s
        for start_s, rate_per_s, *_ in client["arrivals"]
    ]
    return float(sum(overlaps) / seconds)


def _rows(
    client: Mapping[str, Any], window_s: float, factor: float, begin_s: float, end_s: float, chance: np.random.Generator
) -> list[TraceRow]:
    rows: list[TraceRow] = []
    for start_s, rate_per_s, _, pattern, shape, _ in client["arrivals"]:
        from_s, to_s = max(start_s, begin_s), min(start_s + window_s, end_s)
        if from_s >= to_s or rate_per_s <= 0:
            continue
        times_s = _times(from_s, to_s, rate_per_s * factor, str(pattern), float(shape), chance)
        lengths = _lengths_at(client["lengths"], start_s)
        inputs, outputs = (
            _drawn(lengths[name], len(times_s), chance) for name in ("input_tokens_q", "output_tokens_q")
        )
        rows += [
            TraceRow(arrival_s=float(at_s) - begin_s, input_tokens=int(tokens), output_tokens=int(answer))
            for at_s, tokens, answer in zip(times_s, inputs, outputs, strict=True)
        ]
    return rows


def _times(
    from_s: float, to_s: float, rate_per_s: float, pattern: str, shape: float, chance: np.random.Generator
) -> Floats:
    """Arrivals of a window. It begins at a random point of its process, long before its first arrival: else the first
    gap of many would be one of the short ones of a burst."""
    mean_s = 1.0 / rate_per_s
    found: list[Floats] = []
    at_s = from_s - chance.uniform(0.0, to_s - from_s)
    while at_s < to_s:
        size = min(int((to_s - at_s) * rate_per_s) + 16, MAX_GAPS)
        if pattern == "Gamma":
            gaps = chance.gamma(shape, mean_s / shape, size)
        elif pattern == "Weibull":
            gaps = chance.weibull(shape, size) * mean_s / math.gamma(1.0 + 1.0 / shape)
        else:
            raise ValueError(f"arrival pattern {pattern!r} is neither Gamma nor Weibull")
        times_s = at_s + np.cumsum(gaps)
        found.append(times_s)
        at_s = float(times_s[-1])
    all_s = np.concatenate(found)
    return all_s[(all_s >= from_s) & (all_s < to_s)]


def _lengths_at(lengths: Sequence[Mapping[str, Any]], at_s: float) -> Mapping[str, Any]:
    """The last table that begins by then, or the first."""
    return max(
        (each for each in lengths if each["window_start_s"] <= at_s),
        key=lambda each: float(each["window_start_s"]),
        default=lengths[0],
    )


def _drawn(quantiles: Sequence[float], size: int, chance: np.random.Generator) -> NDArray[np.int64]:
    levels = np.linspace(0.0, 1.0, len(quantiles))
    drawn = np.interp(chance.uniform(size=size), levels, np.asarray(quantiles, dtype=np.float64))
    tokens: NDArray[np.int64] = np.maximum(np.rint(drawn), 1).astype(np.int64)
    return tokens
