"""Judges a run by its records: does every millijoule add up, and is the attribution itself believable?

Called by the demo, by tests and by benchmarks. It must never know a meter, an engine or a clock.

Conservation alone cannot fail when steps are lost: what is left is scaled up to the meter. Four further looks can: the
same counter as somebody else read it (a meter that is wrong by a factor), predicted over measured energy (a level that
moved), a request's tokens in its energy against the tokens its engine scheduled (steps lost on the way), and requests
that computed but paid nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workers.types import EnergyPosting, Phase, UsageRecord, WindowRecord

MAX_UNATTRIBUTED_RATIO = 0.02
"""Of the meter, both signs counted as positive."""

MIN_REQUESTS_RATIO = 0.90
"""Of busy energy (meter − idle)."""

SIMULATED_BOUNDS = (0.95, 1.05)
LIVE_BOUNDS = (0.90, 1.10)
"""Predicted over measured busy energy."""

SPAN_WINDOWS = 20
"""The bounds hold for every so many windows in a row, too: a learner that adapts would hide a moved level."""

UNMEASURED_CAUSES = frozenset(
    {"meter_lost", "meter_found", "meter_back", "counter_reset", "counter_stalled", "worker_lost"}
)
"""Windows of which the energy was not measured beside the steps: they say nothing about the prediction."""

MAX_NAMED = 5
"""Attempts named in one problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A run's accounts in mJ, its ratios (None where there is nothing to divide by), and what is wrong with it."""

    meter_mj: int
    idle_mj: int
    overhead_mj: int
    unattributed_mj: int
    requests_mj: int
    difference_mj: int
    """Σ over windows and attempts of what does not add up, all signs positive; 0 in a correct program, always."""
    difference_gpu_us: int
    """The same for GPU-time."""
    observed_difference_mj: int | None
    """Σ meter − what an observer saw the counter count; None where nobody watched."""
    unattributed_ratio: float | None
    requests_ratio: float | None
    predicted_over_measured: float | None
    worst_span: float | None
    """The predicted over measured of SPAN_WINDOWS windows in a row that is farthest from 1."""
    num_windows: int
    problems: tuple[str, ...]
    """Each in words with its numbers; empty in a clean run."""

    @property
    def is_clean(self) -> bool:
        """True when every bound holds."""
        return not self.problems


def check_balance(
    windows: Iterable[WindowRecord],
    postings: Iterable[EnergyPosting] = (),
    usages: Iterable[UsageRecord] = (),
    *,
    is_live: bool = False,
    observed_mj: int | None = None,
) -> Balance:
    """The accounts of a settled run of one worker. Windows of an engine that calibrates, is parked or
    starts must add up but are not judged further.

    ``postings`` and ``usages`` of all attempts that ended, when the in-flight account is empty again; without them
    only windows are judged. ``is_live``: the wider bounds of real hardware. ``observed_mj``: what somebody else saw the
    same counter count from the first window's start to the last one's end.
    """
    windows, postings, usages = list(windows), list(postings), list(usages)
    problems: list[str] = []
    difference_mj, difference_gpu_us = _differences(windows)
    if usages or postings:
        left_mj, left_gpu_us = _left_in_flight(windows, postings)
        difference_mj += left_mj
        difference_gpu_us += left_gpu_us
        problems += _attempt_problems(postings, usages)
    observed_difference_mj = None if observed_mj is None else sum(w.meter_mj for w in windows) - observed_mj
    served = [window for window in windows if not window.calibrating and window.phase is Phase.SERVING]
    meter_mj, idle_mj = sum(w.meter_mj for w in served), sum(w.idle_mj for w in served)
    requests_mj = sum(w.in_flight_mj for w in served)
    unattributed_ratio = _ratio(sum(abs(w.unattributed_mj) for w in served), meter_mj)
    requests_ratio = _ratio(requests_mj, meter_mj - idle_mj)
    bounds = LIVE_BOUNDS if is_live else SIMULATED_BOUNDS
    overall = _level(served)
    spans = [_level(served[start : start + SPAN_WINDOWS]) for start in range(max(len(served) - SPAN_WINDOWS + 1, 0))]
    worst_span = max((span for span in spans if span is not None), key=lambda span: abs(span - 1), default=None)
    if difference_mj or difference_gpu_us:
        problems.insert(0, f"difference is {difference_mj} mJ, {difference_gpu_us} GPU-us, must be 0")
    if observed_difference_mj:
        problems.insert(0, f"windows hold {observed_difference_mj:+d} mJ of what an observer of the counter saw")
    if unattributed_ratio is None:
        problems.append("the meter counted nothing: no window to judge")
    elif unattributed_ratio > MAX_UNATTRIBUTED_RATIO:
        problems.append(f"unattributed is {unattributed_ratio:.1%} of the meter, bound {MAX_UNATTRIBUTED_RATIO:.0%}")
    if requests_ratio is not None and requests_ratio < MIN_REQUESTS_RATIO:
        problems.append(f"requests are {requests_ratio:.1%} of busy energy, bound {MIN_REQUESTS_RATIO:.0%}")
    for name, level in (("predicted / measured", overall), (f"worst {SPAN_WINDOWS} windows in a row", worst_span)):
        if level is not None and not bounds[0] <= level <= bounds[1]:
            problems.append(f"{name} is {level:.3f}, bounds {bounds[0]:.2f}-{bounds[1]:.2f}")
    return Balance(
        meter_mj=meter_mj,
        idle_mj=idle_mj,
        overhead_mj=sum(w.overhead_mj for w in served),
        unattributed_mj=sum(w.unattributed_mj for w in served),
        requests_mj=requests_mj,
        difference_mj=difference_mj,
        difference_gpu_us=difference_gpu_us,
        observed_difference_mj=observed_difference_mj,
        unattributed_ratio=unattributed_ratio,
        requests_ratio=requests_ratio,
        predicted_over_measured=overall,
        worst_span=worst_span,
        num_windows=len(served),
        problems=tuple(problems),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole > 0 else None


def _level(windows: Sequence[WindowRecord]) -> float | None:
    """Predicted over measured busy energy of windows with steps."""
    pairs = [(w.predicted_mj, busy_mj) for w in windows if w.num_steps and (busy_mj := measured_busy_mj(w)) is not None]
    return _ratio(sum(predicted_mj for predicted_mj, _ in pairs), sum(busy_mj for _, busy_mj in pairs))


def measured_busy_mj(window: WindowRecord) -> int | None:
    """Energy of a window's own steps as measured; None where it was not measured beside them."""
    causes = dict(window.causes)
    if window.phase is not Phase.SERVING or not UNMEASURED_CAUSES.isdisjoint(causes):
        return None
    return window.meter_mj - window.idle_mj - causes.get("outbox_overflow", 0)


def _differences(windows: Sequence[WindowRecord]) -> tuple[int, int]:
    """(mj, GPU-µs) that do not add up inside windows."""
    energy_mj = gpu_us = 0
    for window in windows:
        accounts_mj = window.idle_mj + window.overhead_mj + window.unattributed_mj + window.in_flight_mj
        energy_mj += abs(window.meter_mj - accounts_mj)
        energy_mj += abs(window.in_flight_mj - sum(share_mj for _, share_mj, _ in window.shares))
        gpu_us += abs(window.busy_gpu_us - window.overhead_gpu_us - sum(share_us for _, _, share_us in window.shares))
    return energy_mj, gpu_us


def _left_in_flight(windows: Sequence[WindowRecord], postings: Sequence[EnergyPosting]) -> tuple[int, int]:
    """What went into the in-flight account per attempt, less what came out, all signs positive."""
    in_flight: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for window in windows:
        for attempt_id, energy_mj, gpu_us in window.shares:
            in_flight[attempt_id][0] += energy_mj
            in_flight[attempt_id][1] += gpu_us
    for posting in postings:
        in_flight[posting.attempt_id][0] -= posting.energy_mj
        in_flight[posting.attempt_id][1] -= posting.gpu_us
    left = in_flight.values()
    return sum(abs(energy_mj) for energy_mj, _ in left), sum(abs(gpu_us) for _, gpu_us in left)


def metered_token_difference(*, computed: int, scheduled: int, overrun: int) -> int:
    """Tokens by which an attempt's energy misses what its engine scheduled; 0 when all is well.

    What ran beyond the stop may have been computed when the attempt was already closed: it is overhead then.
    """
    return max(scheduled - overrun - computed, 0) + max(computed - scheduled, 0)


def _attempt_problems(postings: Sequence[EnergyPosting], usages: Sequence[UsageRecord]) -> list[str]:
    by_attempt = {posting.attempt_id: posting for posting in postings}
    unposted, unpaid, short = [], [], []
    for usage in usages:
        scheduled = sum(sequence.scheduled_tokens for sequence in usage.sequences)
        overrun = sum(sequence.overrun_tokens for sequence in usage.sequences)
        posting = by_attempt.get(usage.attempt_id)
        if posting is None:
            unposted.append(usage.attempt_id)
        elif scheduled - overrun > 0 and posting.gpu_us <= 0:
            unpaid.append(usage.attempt_id)
        elif (
            posting.computed_tokens is not None
            and posting.complete
            and all(sequence.exact for sequence in usage.sequences)
            and metered_token_difference(computed=posting.computed_tokens, scheduled=scheduled, overrun=overrun)
        ):
            short.append(f"{usage.attempt_id} ({posting.computed_tokens} of {scheduled})")
    problems = []
    if len(by_attempt) < len(postings):
        problems.append(f"{len(postings) - len(by_attempt)} attempts were posted more than once")
    for words, names in (
        ("attempts without an energy posting", unposted),
        ("attempts that computed tokens and paid no GPU-time", unpaid),
        ("attempts whose energy does not cover the tokens scheduled", short),
    ):
        if names:
            named = ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
            problems.append(f"{len(names)} {words}: {named}")
    return problems
