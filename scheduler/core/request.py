"""What is asked: one request as the core sees it, without its bytes.

Called by everybody above the core; made by the relay. It must never know a prompt, a clock or a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

PPM = 1_000_000
"""Prices are per million tokens; PUE and margins are in millionths."""
JOULES_PER_KWH = 3_600_000
MJ_PER_KWH = 1_000 * JOULES_PER_KWH


class Band(IntEnum):
    """Strict priority bands; lower is earlier, as in vLLM, and the same number goes into the engine's own queue."""

    PRIORITY = 0
    DEFAULT = 1
    FLEX = 2

    @staticmethod
    def of_service_tier(tier: str | None) -> Band:
        """The band of an OpenAI ``service_tier``; ``auto`` and nothing are the default. Raises: ValueError."""
        if tier in (None, "auto", "default"):
            return Band.DEFAULT
        try:
            return {"priority": Band.PRIORITY, "flex": Band.FLEX}[str(tier)]
        except KeyError:
            raise ValueError(f"service_tier {tier!r} is none of auto, default, flex, priority") from None


class DataClass(IntEnum):
    """How sensitive data is; higher needs more. A zone may hold data up to its own class."""

    GENERAL = 0
    IMPORTANT = 1
    CORE = 2


class SpecialTokens(NamedTuple):
    """Tokens of a charge that may have a price of their own; each was counted among its input or output already."""

    reasoning_tokens: int = 0
    """Of the output."""
    image_tokens: int = 0
    """Of the input, and not cached: a cached token has the cached price, whatever it stands for."""
    audio_tokens: int = 0
    """The same of sound."""

    @staticmethod
    def of(uncached_tokens: int, *, reasoning: int, image: int, audio: int) -> SpecialTokens | None:
        """As an engine counts them, where it is not told which of the input was cached: no more than was not."""
        if not (reasoning or image or audio):
            return None
        image = min(image, uncached_tokens)
        return SpecialTokens(reasoning, image, min(audio, uncached_tokens - image))


class CostPlus(NamedTuple):
    """A price made of what a request took: energy and GPU-time at their cost, and a margin on both."""

    energy_nano_per_kwh: int = 0
    """10⁻⁹ currency units for a kWh at the hall's door."""
    pue_ppm: int = PPM
    """kWh at the door for a kWh at the meter, in millionths."""
    gpu_nano_per_s: int = 0
    """10⁻⁹ currency units for the use of one GPU for a second."""
    margin_ppm: int = 0
    """On top of both, in millionths."""

    def cost_nano(self, *, energy_mj: int, gpu_us: int) -> int:
        """Money in 10⁻⁹ units, rounded up once: (energy · price · PUE + GPU-time · price) · (1 + margin)."""
        # Over one denominator: mJ are kWh / (3.6 · 10⁹), µs are s / 10⁶, PUE and margin are millionths.
        energy = energy_mj * self.energy_nano_per_kwh * self.pue_ppm
        gpu = gpu_us * self.gpu_nano_per_s * MJ_PER_KWH
        return -(-(energy + gpu) * (PPM + self.margin_ppm) // (MJ_PER_KWH * PPM * PPM))


class Rates(NamedTuple):
    """Prices pinned at admission, in 10⁻⁹ currency units per million tokens of each class.

    What a request pays is the sum of two amounts, each rounded up once: its tokens (``cost_nano``), known when it ends,
    and, where its price has such a part, what it took (``cost_plus_nano``). The latter is charged by the estimate of
    the end and corrected once, by one difference, when its energy is measured. It is held by the bound that budgets
    of energy hold by, and never more than that is charged to a request with a hold: **what it took beyond its hold is
    the operator's**, as joules beyond a budget's bound are.
    """

    input_nano: int = 0
    cached_nano: int = 0
    output_nano: int = 0
    currency: str = "USD"
    reasoning_nano: int | None = None
    """None = as other output."""
    image_nano: int | None = None
    """None = as other input."""
    audio_nano: int | None = None
    """None = as other input."""
    plus: CostPlus | None = None
    """None: its tokens are all that a request pays for."""
    version: str = ""
    """Of the price book that they are from, ``2026-11-01/3f9a2c1b``; empty where there was no price."""

    def cost_nano(
        self, *, input_tokens: int, cached_tokens: int, output_tokens: int, special: SpecialTokens | None = None
    ) -> int:
        """Money in 10⁻⁹ units for tokens, rounded up once. ``input_tokens`` contain the cached ones, which cost their
        own rate; ``special`` says how many of input and output have a price of their own.
        """
        uncached_tokens = input_tokens - cached_tokens
        parts = uncached_tokens * self.input_nano + cached_tokens * self.cached_nano + output_tokens * self.output_nano
        if special is not None:
            parts += self._difference(special)
        return -(-parts // PPM)

    def cost_plus_nano(self, *, energy_mj: int, gpu_us: int, most_nano: int | None = None) -> int:
        """Money in 10⁻⁹ units for what a request took, rounded up once; at most ``most_nano`` (None = no hold)."""
        if self.plus is None:
            return 0
        cost_nano = self.plus.cost_nano(energy_mj=energy_mj, gpu_us=gpu_us)
        return cost_nano if most_nano is None else min(cost_nano, most_nano)

    def most_nano(self, *, input_tokens: int, output_tokens: int, energy_mj: int = 0, gpu_us: int = 0) -> int:
        """The most that so many tokens and so much energy and GPU-time can cost, of whatever classes they are."""
        input_nano, output_nano = self.input_nano, self.output_nano
        for nano in (self.cached_nano, self.image_nano, self.audio_nano):
            if nano is not None and nano > input_nano:
                input_nano = nano
        if self.reasoning_nano is not None and self.reasoning_nano > output_nano:
            output_nano = self.reasoning_nano
        tokens_nano = -(-(input_tokens * input_nano + output_tokens * output_nano) // PPM)
        if self.plus is None:
            return tokens_nano
        return tokens_nano + self.plus.cost_nano(energy_mj=energy_mj, gpu_us=gpu_us)

    def _difference(self, special: SpecialTokens) -> int:
        """What special tokens cost beyond others of their side."""
        parts = 0
        for tokens, nano, side_nano in (
            (special.reasoning_tokens, self.reasoning_nano, self.output_nano),
            (special.image_tokens, self.image_nano, self.input_nano),
            (special.audio_tokens, self.audio_nano, self.input_nano),
        ):
            if nano is not None:
                parts += tokens * (nano - side_nano)
        return parts


class Slo(NamedTuple):
    """What a request is promised, and what a second beyond it is worth."""

    ttft_s: float = 1.0
    ttft_ratio: float = 3.0
    """The first token is on time within max(``ttft_s``, ``ttft_ratio`` × its unloaded time to first token)."""
    tpot_s: float = 0.05
    """Mean time of an output token after the first."""
    value_nano_per_s: float = 1e9
    """Money that a second of lateness of this request costs (10⁻⁹ units)."""


FREE = Rates()
DEFAULT_SLO = Slo()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request after authentication. Times are seconds of the caller's one monotonic clock."""

    request_id: str
    """``req-`` and 26 lowercase base32 characters; made here, never taken from a client."""
    tenant: str
    project: str = ""
    key_id: str = ""
    model: str
    band: int = Band.DEFAULT
    prompt_tokens_bound: int
    """No prompt of this body can have more tokens; the first step's count replaces it."""
    max_output_tokens: int
    """Of one sequence: the client's limit or the model's default; 0 where nothing is generated (embeddings)."""
    num_sequences: int = 1
    """Sequences the engine will run: choices × prompts."""
    arrival_s: float
    arrival_unix_s: float = 0.0
    """Wall time of its admission: decides the budget windows that it belongs to."""
    deadline_s: float | None = None
    """Point in time after which nobody waits for the answer."""
    is_deferrable: bool = False
    """Its client stated that deadline: of batch class, it may wait for a cheaper hour before it."""
    body_bytes: int = 0
    """What the request occupies while it waits."""
    task: str = ""
    """Many calls that share one total; empty = none."""
    data_class: DataClass = DataClass.GENERAL
    """Of its key, tightened by the request: only zones that may hold this class may run it."""
    zones: frozenset[str] | None = None
    """Where it may run; None = wherever its data class may."""
    rates: Rates = FREE
    slo: Slo = DEFAULT_SLO
    prefix_blocks: tuple[int, ...] = ()
    """Chained hashes of equal parts of its prompt, salted by tenant: an equal hash is an equal prefix up to there. The
    parts together are the whole prompt, so that k of n known blocks mean k/n of the prompt's tokens."""
    is_counting: bool = False
    """Asks an engine only how many tokens a prompt has: no hold, no charge, no turn in the fair order."""

    def __post_init__(self) -> None:
        assert self.prompt_tokens_bound >= 0, self.prompt_tokens_bound
        assert self.max_output_tokens >= 0, self.max_output_tokens
        assert self.num_sequences >= 1, self.num_sequences
        assert self.body_bytes >= 0, self.body_bytes


def is_late(request: Request, now_s: float) -> bool:
    """Whether its deadline has passed."""
    return request.deadline_s is not None and request.deadline_s <= now_s
