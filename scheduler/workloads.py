"""Made-up traces from published statistics: chat, code completion, agents. They run without any file.

Called by the commands and benchmarks. It must never know a fleet. The same seed gives the same rows; no row is
anybody's request, and what the sources do not say (how prompt and answer go together, hours of the day) is not in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scheduler.trace_files import TraceRow

SECONDS = 2_700.0
"""Of a workload: it need not be repeated to be long enough."""
BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal by its median and mean, cut at the longest."""

    median: float
    mean: float
    most: int

    def drawn(self, size: int, chance: np.random.Generator) -> list[int]:
        spread = math.sqrt(2.0 * math.log(self.mean / self.median))
        tokens = chance.lognormal(math.log(self.median), spread, size)
        return [int(each) for each in np.clip(np.rint(tokens), 1, self.most)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleRequests:
    """Requests that know nothing of each other. Gaps are Gamma."""

    rate_per_s: float
    cv: float
    """Of the gaps; 1 is Poisson."""
    prompt: Lengths
    answer: Lengths
    source: str

    def rows(self, seed: int) -> list[TraceRow]:
        chance, shape = np.random.default_rng(seed), 1.0 / self.cv**2
        size = int(self.rate_per_s * SECONDS)
        gaps = chance.gamma(shape, 1.0 / (self.rate_per_s * shape), size)
        # Bursty gaps add up to anything: the span is what the rate says.
        times_s = np.cumsum(gaps) * (SECONDS / gaps.sum())
        prompts, answers = self.prompt.drawn(size, chance), self.answer.drawn(size, chance)
        return [
            TraceRow(arrival_s=float(at_s - times_s[0]), input_tokens=prompt, output_tokens=answer)
            for at_s, prompt, answer in zip(times_s, prompts, answers, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Loops of many turns, each prompt the one before, its answer, and what a tool said. Sessions begin by Poisson."""

    sessions_per_s: float
    median_turns: float
    first_tokens: int
    """Of a session's first prompt."""
    tokens_per_turn: int
    """By which a prompt grows, on average; its answer among them."""
    input_per_output: float
    tool_s: float
    """Mean time from an answer to the next turn, exponential."""
    decode_s: float
    """Of an answer's token: a turn cannot begin before the last one ended."""
    most_tokens: int
    source: str

    def rows(self, seed: int) -> list[TraceRow]:
        chance = np.random.default_rng(seed)
        found: list[TraceRow] = []
        next_block = 1
        begins_s = np.cumsum(chance.exponential(1.0 / self.sessions_per_s, int(2 * self.sessions_per_s * SECONDS) + 8))
        goes_on = 0.5 ** (1.0 / self.median_turns)
        for begin_s in begins_s[begins_s < SECONDS].tolist():
            at_s, tokens, blocks = begin_s, self.first_tokens, list[int]()
            for _ in range(int(chance.geometric(1.0 - goes_on))):
                if at_s >= SECONDS or tokens > self.most_tokens:
                    break
                while len(blocks) * BLOCK_TOKENS < tokens:
                    blocks.append(next_block)
                    next_block += 1
                answer = int(np.clip(chance.exponential(tokens / self.input_per_output), 1, 4_096))
                found.append(TraceRow(arrival_s=at_s, input_tokens=tokens, output_tokens=answer, blocks=tuple(blocks)))
                at_s += answer * self.decode_s + chance.exponential(self.tool_s)
                tokens += max(int(chance.exponential(self.tokens_per_turn)), answer)
                if tokens % BLOCK_TOKENS:
                    blocks = blocks[
                        : found[-1].input_tokens // BLOCK_TOKENS
                    ]  # the last one was not full: it is another
        found.sort(key=lambda row: row.arrival_s)
        first_s = found[0].arrival_s
        return [
            TraceRow(arrival_s=row.arrival_s - first_s, input_tokens=row.input_tokens, output_tokens=row.output_tokens,
                     blocks=row.blocks)
            for row in found
        ]  # fmt: skip


WORKLOADS: dict[str, SingleRequests | Sessions] = {
    "chat": SingleRequests(
        rate_per_s=5.88,
        cv=1.07,
        prompt=Lengths(median=1_015, mean=1_182, most=14_050),
        answer=Lengths(median=115, mean=201, most=1_000),
        source="Azure LLM inference trace 2023, conversation (Patel et al., Splitwise, ISCA 2024): rate, CV of gaps,"
        " medians and means",
    ),
    "code": SingleRequests(
        rate_per_s=3.00,
        cv=12.6,
        prompt=Lengths(median=1_463, mean=2_036, most=7_437),
        answer=Lengths(median=13, mean=28, most=1_899),
        source="Azure LLM inference trace 2023, code (Patel et al., Splitwise, ISCA 2024): rate, CV of gaps, medians"
        " and means",
    ),
    "agents": Sessions(
        sessions_per_s=0.05,
        median_turns=33,
        first_tokens=12_000,
        tokens_per_turn=2_300,
        input_per_output=131.0,
        tool_s=10.0,
        decode_s=0.02,
        most_tokens=120_000,
        source="Codex on SWE-bench Pro as vLLM's blog counted it (6 May 2026): median of 33 turns, about 80,000 tokens"
        " of context by turn 30, 131 input tokens per output token, 94 % of prompts cached; assumed: how sessions"
        " begin, 12,000 tokens at first, 10 s a tool",
    ),
}
