"""What answers took, as they say it themselves: tokens, joules, GPU-seconds and money, summed in integers.

Called by the run of `jouleway submit` and by whoever reads its output files. It must never know where they came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """OpenAI's two spellings and Anthropic's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Cached | None = None
    cache_read_input_tokens: int | None = None


class _Metering(msgspec.Struct):
    """The ``jouleway`` object of an answer."""

    energy_joules: float | None = None
    gpu_seconds: float | None = None
    grade: str | None = None
    cost_nano: int | None = None
    currency: str | None = None


class Answer(msgspec.Struct):
    """What is read of an answer's body."""

    usage: _Usage | None = None
    jouleway: _Metering | None = None


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums over answers. Energy is provisional: predicted when each answer ended, measured a window later."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    energy_mj: int = 0
    gpu_us: int = 0
    cost_nano: int | None = None
    """None: no answer named a price."""
    currency: str = ""
    num_metered: int = 0
    """Answers that named joules."""
    num_unmetered: int = 0
    grades: set[str] = field(default_factory=set)

    def add(self, answer: Answer | None) -> None:
        """One answer; what it does not say counts as nothing, and is counted as not said."""
        usage = answer.usage if answer is not None else None
        if usage is not None:
            details = usage.prompt_tokens_details or usage.input_tokens_details
            cached = details.cached_tokens if details is not None else usage.cache_read_input_tokens
            self.input_tokens += usage.prompt_tokens or usage.input_tokens or 0
            self.cached_tokens += cached or 0
            self.output_tokens += usage.completion_tokens or usage.output_tokens or 0
        metering = answer.jouleway if answer is not None else None
        if metering is None or metering.energy_joules is None:
            self.num_unmetered += 1
            return
        self.num_metered += 1
        self.energy_mj += round(metering.energy_joules * 1000)
        self.gpu_us += round((metering.gpu_seconds or 0.0) * 1_000_000)
        if metering.grade:
            self.grades.add(metering.grade)
        if metering.cost_nano is not None:
            self.cost_nano = (self.cost_nano or 0) + metering.cost_nano
            self.currency = metering.currency or self.currency

    @property
    def grade(self) -> str | None:
        """The worst; None where nothing is metered."""
        return max(self.grades, default=None)

    def money(self) -> str:
        """``0.001234 EUR``, or a dash where no answer named a price."""
        if self.cost_nano is None:
            return "–"
        return f"{self.cost_nano / 1e9:,.6f} {self.currency}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "energy_joules": self.energy_mj / 1000 if self.num_metered else None,
            "gpu_seconds": self.gpu_us / 1_000_000 if self.num_metered else None,
            "energy_grade": self.grade,
            "energy_is_provisional": True,
            "cost_nano": self.cost_nano,
            "currency": self.currency or None,
            "answers_without_joules": self.num_unmetered,
        }
