"""Ledger, engine counters and meter of each worker held against each other; every difference has a source, or is named.

Called by `jouleway reconcile`. Pure: rows in, figures out. It must never explain a difference away: what has no source
is unexplained, and that must be 0.

Three identities, per worker, over the windows and charges of a period::

    counter    last reading − first reading = metered − what it fell by at resets + where it stood when first read
                   + by how much a new process of the worker found it elsewhere than the one before left it
    energy     metered = idle + overhead + unattributed (by cause) + requests (by payer) + change of in flight
    tokens     scheduled by the engine = billed input − cached + billed output − last tokens + repeated prompts
                   − prompts not computed + recomputed + rejected drafts + overrun
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from scheduler.accounting.rows import OPERATOR, Charge, Daily, Energy, Row, Window

RESET, FOUND = "counter_reset", "meter_found"
"""Causes of windows that do not begin where the one before ended."""


@dataclass(slots=True, kw_only=True)
class WorkerFigures:
    """One worker over the period. Energy in mJ."""

    worker_id: str
    num_windows: int = 0
    num_restarts: int = 0
    incarnation: str = ""
    """The process that spoke last."""
    first_counter_mj: int | None = None
    last_counter_mj: int = 0
    reset_mj: int = 0
    """By which the counter fell when it began anew; part of last − first."""
    found_mj: int = 0
    """Where it stood when a meter that was down from the start was first read; part of last − first."""
    restarted_mj: int = 0
    """By which new processes found another reading than the one before them left (a modelled counter begins at 0:
    negative); part of last − first. What was used in between, if anything, was metered by nobody.
    """
    metered_mj: int = 0
    idle_mj: int = 0
    overhead_mj: int = 0
    unattributed_mj: int = 0
    requests_mj: int = 0
    """Of tenants."""
    operator_mj: int = 0
    """Of work in vain."""
    in_flight_mj: int = 0
    """Put in flight in the period, and not yet posted in it (posted in it, and put in flight before: negative)."""
    is_from_start: bool = False
    """All rows of the ledger were seen from the first on: nothing was put in flight before."""
    causes: Counter[str] = field(default_factory=Counter)
    num_charges: int = 0
    num_inexact: int = 0
    """Charges of which the engine's side is not known: they are in no token figure below."""
    scheduled_tokens: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    last_tokens: int = 0
    repeated_prompt_tokens: int = 0
    uncomputed_prompt_tokens: int = 0
    recomputed_tokens: int = 0
    rejected_tokens: int = 0
    overrun_tokens: int = 0
    in_vain_tokens: int = 0
    """Scheduled for attempts that the operator pays."""
    unmetered_tokens: int = 0
    """Scheduled by the engine, and in no step that the meter's side heard of."""

    @property
    def unexplained_counter_mj(self) -> int:
        """Counted and never metered, or metered and never counted: 0."""
        if self.first_counter_mj is None:
            return 0
        jumps_mj = self.found_mj + self.restarted_mj - self.reset_mj
        return self.last_counter_mj - self.first_counter_mj - jumps_mj - self.metered_mj

    @property
    def unexplained_mj(self) -> int:
        """Metered and in no account, or in an account and never metered: 0."""
        accounts = self.idle_mj + self.overhead_mj + self.unattributed_mj + self.requests_mj + self.operator_mj
        # From the first row on, nothing can be posted that was not put in flight: below 0 it explains nothing.
        in_flight_mj = max(self.in_flight_mj, 0) if self.is_from_start else self.in_flight_mj
        return self.metered_mj - accounts - in_flight_mj

    @property
    def unexplained_tokens(self) -> int:
        """Scheduled and neither billed nor named: 0."""
        billed = self.input_tokens - self.cached_tokens + self.output_tokens - self.last_tokens
        prompts = self.repeated_prompt_tokens - self.uncomputed_prompt_tokens
        never_billed = self.recomputed_tokens + self.rejected_tokens + self.overrun_tokens
        return self.scheduled_tokens - billed - prompts - never_billed

    @property
    def is_explained(self) -> bool:
        return not (self.unexplained_counter_mj or self.unexplained_mj or self.unexplained_tokens)


def reconcile(rows: Iterable[Row], *, from_us: int = 0, to_us: int | None = None) -> list[WorkerFigures]:
    """By worker id. A period is one of rows' times, ``from_us`` included, ``to_us`` not; others are passed over.

    ``rows``: all of these kinds that have their texts, and those that say that others are compacted.
    """
    workers: dict[str, WorkerFigures] = {}
    is_from_start = not from_us
    for row in rows:
        if isinstance(row, Daily):
            is_from_start = False
            continue
        if row.at_us < from_us or (to_us is not None and row.at_us >= to_us):
            continue
        match row:
            case Window():
                _window(_of(workers, row.worker_id), row)
            case Energy():
                _energy(_of(workers, row.worker_id), row)
            case Charge():
                _charge(_of(workers, row.worker_id), row)
    for figures in workers.values():
        figures.is_from_start = is_from_start
    return [figures for _, figures in sorted(workers.items())]


def _of(workers: dict[str, WorkerFigures], worker_id: str) -> WorkerFigures:
    if worker_id not in workers:
        workers[worker_id] = WorkerFigures(worker_id=worker_id)
    return workers[worker_id]


def _window(figures: WorkerFigures, row: Window) -> None:
    window = row.window
    begin_mj = window.counter_mj - window.meter_mj
    if figures.first_counter_mj is None:
        figures.first_counter_mj = figures.last_counter_mj = begin_mj
        figures.incarnation = row.incarnation
    is_restart = row.incarnation != figures.incarnation
    figures.incarnation = row.incarnation
    figures.num_restarts += is_restart
    causes = {cause for cause, _ in window.causes}
    if RESET in causes:
        figures.reset_mj += figures.last_counter_mj - begin_mj
    elif FOUND in causes:
        figures.found_mj += begin_mj - figures.last_counter_mj
    elif is_restart:
        figures.restarted_mj += begin_mj - figures.last_counter_mj
    figures.last_counter_mj = window.counter_mj
    figures.num_windows += 1
    figures.metered_mj += window.meter_mj
    figures.idle_mj += window.idle_mj
    figures.overhead_mj += window.overhead_mj
    figures.unattributed_mj += window.unattributed_mj
    figures.in_flight_mj += window.in_flight_mj
    for cause, energy_mj in window.causes:
        figures.causes[cause] += energy_mj
    prefix = f"requests/{row.worker_id}/"
    for account, unit, amount in row.legs:
        if unit == "mJ" and account.startswith(prefix):  # of attempts that were posted already
            _paid(figures, account.removeprefix(prefix), amount)


def _energy(figures: WorkerFigures, row: Energy) -> None:
    _paid(figures, row.account, row.energy_mj)
    figures.unmetered_tokens += row.token_difference


def _paid(figures: WorkerFigures, account: str, energy_mj: int) -> None:
    figures.in_flight_mj -= energy_mj
    if account == OPERATOR:
        figures.operator_mj += energy_mj
    else:
        figures.requests_mj += energy_mj


def _charge(figures: WorkerFigures, row: Charge) -> None:
    figures.num_charges += 1
    if row.scheduled_tokens is None or not row.is_exact:
        figures.num_inexact += 1
        return
    figures.scheduled_tokens += row.scheduled_tokens
    figures.input_tokens += row.input_tokens
    figures.cached_tokens += row.cached_tokens
    figures.output_tokens += row.output_tokens
    figures.last_tokens += row.num_generating
    beyond = row.computed_prompt_tokens - (row.input_tokens - row.cached_tokens)
    figures.repeated_prompt_tokens += max(beyond, 0)
    figures.uncomputed_prompt_tokens += max(-beyond, 0)
    figures.recomputed_tokens += row.recomputed_tokens
    figures.rejected_tokens += row.rejected_tokens
    figures.overrun_tokens += row.overrun_tokens
    if row.account == OPERATOR:
        figures.in_vain_tokens += row.scheduled_tokens
