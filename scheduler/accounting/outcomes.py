"""What came of a request or a task: whether its result was accepted, and what an accepted result cost.

Called by ``scheduler.api.outcomes`` and by whatever shows value; the ledger implements ``OutcomeLog``. Pure. It must
never know a caller or an answer's text: an outcome is a verdict, a score and a short word.

Nothing is overwritten: an outcome that differs from the one before it is a correction, a row of its own, and the latest
row counts. It counts where the first one did, so that a correction moves a result from accepted to rejected in one
place, and no sum over time has a hole.

Of n results a are accepted. The share a/n is told with Wilson's interval (E. B. Wilson, JASA 22, 1927), which is honest
for small n and at the ends. What an accepted result cost is what the judged requests cost, by the mean of all requests
of the group, over a; requests that nobody judged count neither as good nor as bad.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import NamedTuple, Protocol

import msgspec

from scheduler.accounting.usage import UsageRow

MAX_OUTCOMES = 100
"""Of one request or task: the first one and its corrections."""
SCORE_PPM = 1_000_000
"""A score of 1, in parts per million."""
Z_95 = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Where an outcome counts: the minute and the groups of a usage row; of a task those of its latest request."""

    tenant: str
    project: str = ""
    key_id: str = ""
    model: str = ""
    task: str = ""
    tier: str = ""
    currency: str = ""
    bucket_us: int = 0
    requests: int = 1
    """That the outcome covers: of a task, all that it has had."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was posted, checked. Exactly one of ``request_id`` and ``task`` is given."""

    request_id: str | None = None
    task: str | None = None
    accepted: bool
    score_ppm: int | None = None
    """0 to ``SCORE_PPM``."""
    label: str = ""

    def __post_init__(self) -> None:
        assert (self.request_id is None) != (self.task is None), "one of both"
        assert self.score_ppm is None or 0 <= self.score_ppm <= SCORE_PPM, self.score_ppm


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict as it is kept."""

    outcome_id: str
    verdict: Verdict
    facts: Facts
    at_us: int
    """When it was posted, unix microseconds."""
    replaces: str | None = None
    """The id of the outcome that it corrects."""
    number: int = 1
    """1 = the first of its request or task."""


class Tally(NamedTuple):
    """What an outcome adds to the usage row of its facts; a correction may take away."""

    accepted: int
    rejected: int
    judged: int


class OutcomeLog(Protocol):
    """Whoever keeps outcomes. The questions may be asked from any thread; ``append`` comes from the event loop."""

    def find(self, request_id: str) -> Facts | None:
        """Of a request, whosever it is; None where it was never seen."""

    def find_task(self, tenant: str, task: str) -> Facts | None:
        """None where the tenant has no such task."""

    def latest(self, tenant: str, *, request_id: str | None, task: str | None) -> Outcome | None:
        """The one that counts for this request or task."""

    def with_id(self, outcome_id: str) -> Outcome | None: ...

    def append(self, outcome: Outcome, change: Tally) -> None:
        """One more row; ``change`` belongs to the usage row of ``outcome.facts``."""

    async def commit(self) -> None:
        """Returns once everything that was appended is durable."""


class IdReused(Exception):
    """The id belongs to another verdict: one id, one verdict."""


class TooMany(Exception):
    """This request or task was judged ``MAX_OUTCOMES`` times."""


def id_of(tenant: str, given_id: str) -> str:
    """The id under which an outcome is kept; equal ids of two tenants are two."""
    return _digest("given", tenant, given_id)


def decide(
    verdict: Verdict, facts: Facts, *, given_id: str | None, same_id: Outcome | None, latest: Outcome | None, at_us: int
) -> tuple[Outcome, Tally | None]:
    """The outcome that answers a post, and what changes by it; None: it was known, nothing is written.

    With an id a repeat is known whenever it arrives; without one only a repeat of the latest is. Raises: IdReused,
    TooMany.
    """
    if same_id is not None:
        if same_id.verdict != verdict:
            raise IdReused
        return same_id, None
    if latest is None:
        outcome_id = _new_id(facts.tenant, verdict, given_id, after=None)
        outcome = Outcome(outcome_id=outcome_id, verdict=verdict, facts=facts, at_us=at_us)
        return outcome, tally_of(outcome)
    if given_id is None and latest.verdict == verdict:
        return latest, None
    if latest.number >= MAX_OUTCOMES:
        raise TooMany
    outcome = Outcome(
        outcome_id=_new_id(facts.tenant, verdict, given_id, after=latest.outcome_id),
        verdict=verdict,
        facts=msgspec.structs.replace(latest.facts, requests=facts.requests),
        at_us=at_us,
        replaces=latest.outcome_id,
        number=latest.number + 1,
    )
    new, old = tally_of(outcome), tally_of(latest)
    return outcome, Tally(*(one - other for one, other in zip(new, old, strict=True)))


def tally_of(outcome: Outcome) -> Tally:
    """What it is as the only one of its request or task."""
    return Tally(int(outcome.verdict.accepted), int(not outcome.verdict.accepted), outcome.facts.requests)


def _new_id(tenant: str, verdict: Verdict, given_id: str | None, *, after: str | None) -> str:
    """Not random: the same post in the same place has the same id after a crash too."""
    if given_id is not None:
        return id_of(tenant, given_id)
    return _digest("made", tenant, msgspec.json.encode(verdict).decode(), after or "")


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part.encode()
        digest.update(b"%d:" % len(text) + text)
    return f"out-{digest.hexdigest()}"


# -- value


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """What an accepted result of a group cost. None: it cannot be told. Intervals are 95 %."""

    results: int
    """Outcomes that count."""
    accepted: int
    covered_ratio: float | None = None
    """Of the requests, those that were judged."""
    accepted_ratio: float | None = None
    accepted_ratio_low: float | None = None
    accepted_ratio_high: float | None = None
    cost_nano: int | None = None
    """Per accepted result."""
    cost_nano_low: int | None = None
    cost_nano_high: int | None = None
    """None also where it has no bound: too few were accepted to tell."""
    energy_mj: int | None = None
    """Per accepted result."""
    energy_mj_low: int | None = None
    energy_mj_high: int | None = None


def value_of(row: UsageRow) -> Value:
    """Of one group, in one currency."""
    results = row.accepted + row.rejected
    if results == 0:
        return Value(results=0, accepted=0, covered_ratio=0.0 if row.requests else None)
    low, high = wilson(row.accepted, results)
    covered = Fraction(min(row.judged or results, row.requests), row.requests) if row.requests else None
    cost, energy = (
        _per_accepted(total, covered, row.accepted, results, low, high) for total in (row.cost_nano, row.energy_mj)
    )
    return Value(
        results=results,
        accepted=row.accepted,
        covered_ratio=None if covered is None else float(covered),
        accepted_ratio=row.accepted / results,
        accepted_ratio_low=low,
        accepted_ratio_high=high,
        cost_nano=cost[0],
        cost_nano_low=cost[1],
        cost_nano_high=cost[2],
        energy_mj=energy[0],
        energy_mj_low=energy[1],
        energy_mj_high=energy[2],
    )


def _per_accepted(
    total: int, covered: Fraction | None, accepted: int, results: int, low: float, high: float
) -> tuple[int | None, int | None, int | None]:
    """Amount per accepted result, and the bounds that the share's interval gives it."""
    if covered is None:
        return None, None, None
    per_result = total * covered / results
    return (
        rounded(per_result * results / accepted) if accepted else None,
        rounded(per_result / Fraction(high)),
        rounded(per_result / Fraction(low)) if low else None,
    )


def rounded(amount: Fraction) -> int:
    """To the nearest whole, halves up."""
    return math.floor(amount + Fraction(1, 2))


def wilson(accepted: int, results: int, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of ``accepted`` of ``results`` (above 0)."""
    assert 0 <= accepted <= results, (accepted, results)
    assert results > 0, results
    share = accepted / results
    spread = z * z / results
    middle = share + spread / 2
    reach = z * math.sqrt((share * (1 - share) + spread / 4) / results)
    low = 0.0 if accepted == 0 else (middle - reach) / (1 + spread)
    high = 1.0 if accepted == results else (middle + reach) / (1 + spread)
    return low, high
