"""Arrivals for a simulated fleet: the rows of a trace at any rate, without touching its clock.

Called by benchmarks and planning, which read the file. It must never know a worker or a router.

Time is never compressed: bursts and wake times would lose their meaning. Instead each row becomes a Poisson number of
arrivals, jittered by up to 5 s, with lengths drawn from the rows around it; a slice that is too short is repeated.

Rows that name the blocks of their prompts keep their own lengths, since those are bound to the blocks. Their copies
share no block: the k-th copy of every row belongs to the k-th copy of the world, in which equal blocks are equal as in
the trace. So prefixes are shared as often as traced, and no copy of a prompt is a free hit for another. Each world's
clients are one tenant; rows without blocks draw their tenant. Both are made up, as no public trace names tenants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scheduler.core.request import Band

MODEL = "simulated"
"""Of arrivals and engines that name none."""

JITTER_S = 5.0
NEIGHBOURS = 100
"""Lengths are drawn from so many rows on either side."""

BYTES_PER_TOKEN = (3.5, 5.0)
"""A prompt's bound is its bytes; how many a token has is drawn evenly from this range."""


class TraceRow(Protocol):
    """What a trace says of one request; rows are in order of arrival, the first near 0."""

    @property
    def arrival_s(self) -> float: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request, as its client and the engine know it; the core knows only the bound."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prompt_tokens_bound: int
    tenant: str = "tenant-0"
    band: int = Band.DEFAULT
    window_s: float | None = None
    """Its client waits so long for the answer, and says so; None = it says nothing."""
    model: str = MODEL
    blocks: tuple[int, ...] = ()
    """Of the whole prompt; the last one may not be full."""
    full_blocks: tuple[int, ...] = ()


def span_s(rows: Sequence[TraceRow]) -> float:
    """From the first row to the end of the last one's gap: the mean rate is ``len(rows)`` over it."""
    last_s = rows[-1].arrival_s - rows[0].arrival_s
    return last_s * len(rows) / (len(rows) - 1) if len(rows) > 1 and last_s > 0 else 1.0


def first(rows: Sequence[TraceRow], seconds: float) -> Sequence[TraceRow]:
    """The rows of the first so many seconds."""
    return [row for row in rows if row.arrival_s < rows[0].arrival_s + seconds]


def scaled(
    rows: Sequence[TraceRow],
    *,
    rate_per_s: float,
    seed: int,
    min_s: float = 0.0,
    num_tenants: int = 8,
    block_tokens: int = 512,
    model: str = MODEL,
) -> list[Arrival]:
    """Arrivals at a mean rate, in order; the rows are repeated whole until ``min_s`` are covered.

    ``block_tokens`` is what one block of the trace stands for.
    """
    chance = np.random.default_rng(seed)
    length_s = span_s(rows)
    num_rounds = max(int(np.ceil(min_s / length_s - 1e-9)), 1)
    arrivals: list[Arrival] = []
    num_worlds = 0
    for round_number in range(num_rounds):
        copies = chance.poisson(rate_per_s * length_s / len(rows), size=len(rows))
        for index, num_copies in enumerate(copies.tolist()):
            for copy in range(num_copies):
                offset_s = round_number * length_s - rows[0].arrival_s
                world = num_worlds + copy
                arrivals.append(_arrival(rows, index, chance, offset_s, world, num_tenants, block_tokens, model))
        num_worlds += int(copies.max(initial=0))  # a repetition shares no block with what came before
    return sorted(arrivals, key=lambda arrival: arrival.arrival_s)


def _arrival(
    rows: Sequence[TraceRow],
    index: int,
    chance: np.random.Generator,
    offset_s: float,
    world: int,
    num_tenants: int,
    block_tokens: int,
    model: str,
) -> Arrival:
    row = rows[index]
    arrival_s = row.arrival_s + offset_s + chance.uniform(0.0, JITTER_S)
    lengths, tenant = row, world % num_tenants
    blocks: tuple[int, ...] = ()
    if row.blocks:
        blocks = tuple([block + (world << 32) for block in row.blocks])
    else:
        neighbour = chance.integers(max(index - NEIGHBOURS, 0), min(index + NEIGHBOURS + 1, len(rows)))
        lengths, tenant = rows[int(neighbour)], int(chance.integers(num_tenants))
    prompt_tokens = max(lengths.input_tokens, 1)
    return Arrival(
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=max(lengths.output_tokens, 1),
        prompt_tokens_bound=int(np.ceil(prompt_tokens * chance.uniform(*BYTES_PER_TOKEN))),
        tenant=f"tenant-{tenant}",
        model=model,
        blocks=blocks,
        full_blocks=blocks[: prompt_tokens // block_tokens],
    )
