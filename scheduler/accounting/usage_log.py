"""Usage and outcomes of a running control plane: what the ledger has flushed, and what came since, as one answer.

Made by ``scheduler.service``; implements ``UsageSource`` and ``OutcomeLog``. It must never know a caller.
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.accounting import ledger_usage
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.outcomes import Facts, Outcome, Tally
from scheduler.accounting.rows import OPERATOR, Charge, Judged, decode, subject_of
from scheduler.accounting.settlement import Settlement
from scheduler.accounting.usage import Key, UsageRow, key_of, summed
from scheduler.accounting.usage_book import GROUPS, SUMS, usage_key

MAX_TRIES = 20
"""A flush that comes in between makes an answer begin anew; they are seconds apart."""
NAMES = ("bucket_us", *GROUPS, *SUMS)


class LedgerUsage:
    """A ``UsageSource``: from any thread, several at once."""

    def __init__(self, reader: Reader, settlement: Settlement) -> None:
        self._reader = reader
        self._settlement = settlement

    def usage(
        self,
        *,
        from_us: int,
        to_us: int,
        width_us: int | None,
        by: tuple[str, ...],
        where: Mapping[str, frozenset[str]],
        limit: int,
        after: Key | None,
    ) -> list[UsageRow]:
        """Raises: LedgerError."""
        for _ in range(MAX_TRIES):
            seq, num_taken = self._reader.state_seq(), self._settlement.books.usage.num_taken
            fresh = [
                row
                for row in self._unflushed(seq)
                if from_us <= row.bucket_us < to_us and all(getattr(row, name) in where[name] for name in where)
            ]
            flushed = ledger_usage.find_usage(
                self._reader,
                from_us=from_us,
                to_us=to_us,
                width_us=width_us,
                by=by,
                where=where,
                limit=limit,
                after=after,
            )
            is_same = self._reader.state_seq() == seq
            if is_same and self._settlement.books.usage.num_taken == num_taken:
                break
        rows = summed(fresh, width_us=width_us, by=by)
        rows = [row for row in rows if after is None or key_of(row, by) > after]
        # Both sides are grouped already: equal keys are added, and nothing else changes.
        merged: dict[Key, UsageRow] = {key_of(row, by): row for row in flushed}
        for row in rows:
            key = key_of(row, by)
            known = merged.get(key)
            merged[key] = row if known is None else _added(known, row)
        return [merged[key] for key in sorted(merged)][:limit]

    def _unflushed(self, seq: int) -> list[UsageRow]:
        """What was taken for a flush that is not known to be durable, and what came since."""
        taken = [row for at, rows in list(self._settlement.journal.usage) if at > seq for row in rows]
        return [_row(values) for values in (*taken, *self._settlement.books.usage.rows())]

    def last_of_task(self, tenant: str, task: str) -> UsageRow | None:
        """The newest minute of a task."""
        found = ledger_usage.last_minute_of_task(self._reader, tenant, task)
        rows = [row for row in self._unflushed(0) if (row.tenant, row.task) == (tenant, task)]
        if found is not None:
            rows.append(_row((found["minute_us"], *(found[name] for name in (*GROUPS, *SUMS)))))
        return max(rows, key=lambda row: row.bucket_us, default=None)


class LedgerOutcomes:
    """An ``OutcomeLog``: outcomes are rows."""

    def __init__(self, ledger: Ledger, settlement: Settlement, usage: LedgerUsage) -> None:
        self._reader = ledger
        self._settlement = settlement
        self._usage = usage
        self._waiting: dict[str, tuple[int, Outcome]] = {}
        """Appended and not in the database (what is in a spool is durable and not found there), by id, with its row."""

    def find(self, request_id: str) -> Facts | None:
        """Raises: LedgerError."""
        charges = [
            row
            for _, kind, _, body, _ in self._reader.of_request(request_id)
            if kind == "charge" and body is not None and isinstance(row := decode(body), Charge)
        ]
        # The beginning of an id finds rows too, and an attempt's id its own row.
        paid = [charge for charge in charges if charge.account != OPERATOR and charge.request_id == request_id]
        if not paid:
            return None
        minute_us, tenant, project, key_id, model, task, tier, currency = usage_key(paid[-1])
        return Facts(
            tenant=tenant,
            project=project,
            key_id=key_id,
            model=model,
            task=task,
            tier=tier,
            currency=currency,
            bucket_us=minute_us,
        )

    def find_task(self, tenant: str, task: str) -> Facts | None:
        """Raises: LedgerError."""
        last = self._usage.last_of_task(tenant, task)
        if last is None:
            return None
        where = {"tenant": frozenset({tenant}), "task": frozenset({task})}
        totals = self._usage.usage(from_us=0, to_us=1 << 62, width_us=None, by=(), where=where, limit=100, after=None)
        return Facts(
            tenant=tenant,
            project=last.project,
            key_id=last.key_id,
            model=last.model,
            task=task,
            tier=last.tier,
            currency=last.currency,
            bucket_us=last.bucket_us,
            requests=sum(row.requests for row in totals),
        )

    def latest(self, tenant: str, *, request_id: str | None, task: str | None) -> Outcome | None:
        """Raises: LedgerError."""
        of_subject = [
            outcome
            for _, outcome in self._waiting.values()
            if (outcome.facts.tenant, outcome.verdict.request_id, outcome.verdict.task) == (tenant, request_id, task)
        ]
        if of_subject:
            return max(of_subject, key=lambda outcome: outcome.number)
        outcome_id = ledger_usage.latest_outcome_id(self._reader, subject_of(tenant, request_id, task))
        return None if outcome_id is None else self.with_id(outcome_id)

    def with_id(self, outcome_id: str) -> Outcome | None:
        """Raises: LedgerError."""
        if (waiting := self._waiting.get(outcome_id)) is not None:
            return waiting[1]
        found = self._reader.find("outcome", outcome_id)
        if found is None or found[3] is None:
            return None
        row = decode(found[3])
        return row.outcome if isinstance(row, Judged) else None

    def append(self, outcome: Outcome, change: Tally) -> None:
        """On the event loop."""
        seq = self._settlement.note(Judged(outcome=outcome, change=change))
        self._waiting[outcome.outcome_id] = seq, outcome

    async def commit(self) -> None:
        """Raises: LedgerError."""
        await self._settlement.commit()
        self._waiting = {name: each for name, each in self._waiting.items() if each[0] >= self._reader.size}


def _row(values: tuple[object, ...]) -> UsageRow:
    return UsageRow(**dict(zip(NAMES, values, strict=True)))  # type: ignore[arg-type]


def _added(one: UsageRow, other: UsageRow) -> UsageRow:
    changed = {name: getattr(one, name) + getattr(other, name) for name in SUMS}
    return UsageRow(**{name: getattr(one, name) for name in NAMES if name not in SUMS}, **changed)
