"""Plans a benchmark's requests: when each is due, how long it is, and which prompt prefix it shares.

Called by ``scheduler.bench.command``. It must never know HTTP, a clock or a tokenizer: a plan is a value, and the same
seed gives the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from scheduler.trace_files import TraceError, TraceRow

BLOCK_TOKENS = 512
"""Prompt tokens that one ``hash_ids`` entry of a Mooncake trace stands for."""
MAX_BUCKET_S = 3.0
"""Widest span over which rows with one timestamp are spread (the Mooncake trace is bucketed to about 3 s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Token counts drawn uniformly from ``mean · (1 ± spread)``, at least 1."""

    input_tokens: int
    output_tokens: int
    spread_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise ValueError("input and output tokens must be at least 1")
        if not 0 <= self.spread_ratio <= 1:
            raise ValueError(f"the spread of lengths lies between 0 and 1, not {self.spread_ratio}")

    def draw(self, generator: random.Random) -> tuple[int, int]:
        """One pair (input tokens, output tokens)."""
        return self._around(self.input_tokens, generator), self._around(self.output_tokens, generator)

    def _around(self, mean_tokens: int, generator: random.Random) -> int:
        if self.spread_ratio == 0:
            return mean_tokens
        return max(1, round(mean_tokens * (1 + self.spread_ratio * generator.uniform(-1, 1))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request of a plan. ``due_s`` counts from the start of the run; None = as soon as a slot is free."""

    index: int
    due_s: float | None
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """Ids of the prompt's 512-token blocks; equal ids are equal text. Empty: the prompt is unique."""


def poisson(*, rate_rps: float, duration_s: float, lengths: Lengths, seed: int, cv: float = 1.0) -> list[Planned]:
    """Arrivals whose gaps have mean ``1 / rate_rps``; ``cv`` 1 is Poisson, larger is burstier (gamma gaps).

    Raises: ValueError when rate, duration or cv is not positive.
    """
    if not (rate_rps > 0 and duration_s > 0 and cv > 0):
        raise ValueError(f"rate ({rate_rps}), duration ({duration_s}) and cv ({cv}) must be positive")
    gaps = random.Random(f"{seed} arrivals")
    draws = random.Random(f"{seed} lengths")
    shape = 1 / cv**2
    plan: list[Planned] = []
    due_s = gaps.gammavariate(shape, 1 / (rate_rps * shape))
    while due_s < duration_s:
        input_tokens, output_tokens = lengths.draw(draws)
        plan.append(Planned(index=len(plan), due_s=due_s, input_tokens=input_tokens, output_tokens=output_tokens))
        due_s += gaps.gammavariate(shape, 1 / (rate_rps * shape))
    return plan


def closed(*, lengths: Lengths, seed: int) -> Iterator[Planned]:
    """Endless requests without due times; the client takes the next one whenever a slot is free."""
    draws = random.Random(f"{seed} lengths")
    index = 0
    while True:
        input_tokens, output_tokens = lengths.draw(draws)
        yield Planned(index=index, due_s=None, input_tokens=input_tokens, output_tokens=output_tokens)
        index += 1


def replay(
    rows: Sequence[TraceRow],
    *,
    duration_s: float,
    seed: int,
    speed: float = 1.0,
    skip_s: float = 0.0,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> tuple[list[Planned], int]:
    """The requests of a trace that fall due within ``duration_s``, and how many lengths were cut to the limits.

    ``speed`` 2 halves every gap; ``skip_s`` starts that far into the trace (in trace time). Rows that share one
    timestamp are spread over the time to the next one, at most 3 s of trace time.

    Raises: ValueError when speed or duration is not positive; TraceError when nothing falls into the span.
    """
    if not (speed > 0 and duration_s > 0 and skip_s >= 0):
        raise ValueError(f"speed ({speed}) and duration ({duration_s}) must be positive, skip ({skip_s}) not negative")
    plan: list[Planned] = []
    num_cut = 0
    for arrival_s, row in _spread(rows, random.Random(f"{seed} spread")):
        due_s = (arrival_s - skip_s) / speed
        if due_s < 0:
            continue
        if due_s >= duration_s:
            break
        input_tokens = min(row.input_tokens, max_input_tokens or row.input_tokens)
        output_tokens = min(row.output_tokens, max_output_tokens or row.output_tokens)
        num_cut += (input_tokens, output_tokens) != (row.input_tokens, row.output_tokens)
        blocks = row.blocks[: -(-input_tokens // BLOCK_TOKENS)]
        plan.append(
            Planned(index=len(plan), due_s=due_s, input_tokens=input_tokens, output_tokens=output_tokens, blocks=blocks)
        )
    if not plan:
        raise TraceError(
            f"no request of the trace falls due between {skip_s:g} s and {skip_s + duration_s * speed:g} s"
        )
    return plan, num_cut


def _spread(rows: Sequence[TraceRow], generator: random.Random) -> Iterator[tuple[float, TraceRow]]:
    """Rows with their arrival, those of one timestamp drawn uniformly over the time to the next, in order."""
    buckets = [(arrival_s, list(group)) for arrival_s, group in groupby(rows, key=lambda row: row.arrival_s)]
    widths = [min(later[0] - earlier[0], MAX_BUCKET_S) for earlier, later in pairwise(buckets)] + [MAX_BUCKET_S]
    for (arrival_s, group), width_s in zip(buckets, widths, strict=True):
        if len(group) == 1:
            yield arrival_s, group[0]
            continue
        offsets = sorted(generator.uniform(0, width_s) for _ in group)
        yield from ((arrival_s + offset_s, row) for offset_s, row in zip(offsets, group, strict=True))
