"""A log of outcomes in memory: requests and tasks of tenants, outcomes by subject and by id, and a disk that can wait.

Used by tests of ``scheduler.api`` (``from tests.outcome_log import MemoryOutcomes``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from scheduler.accounting.outcomes import Facts, Outcome, Tally


class MemoryOutcomes:
    """An ``OutcomeLog``. ``durable`` counts what a commit has covered."""

    def __init__(self, requests: Mapping[str, Facts], tasks: Mapping[tuple[str, str], Facts] | None = None) -> None:
        self.requests = dict(requests)
        self.tasks = dict(tasks or {})
        self.rows: list[Outcome] = []
        self.sums: dict[tuple[str, str], Tally] = {}
        """By tenant and model."""
        self.durable = 0
        self.num_looked_up = 0
        self.may_commit = asyncio.Event()
        self.may_commit.set()

    def find(self, request_id: str) -> Facts | None:
        self.num_looked_up += 1
        return self.requests.get(request_id)

    def find_task(self, tenant: str, task: str) -> Facts | None:
        self.num_looked_up += 1
        return self.tasks.get((tenant, task))

    def latest(self, tenant: str, *, request_id: str | None, task: str | None) -> Outcome | None:
        for outcome in reversed(self.rows):
            verdict = outcome.verdict
            if (outcome.facts.tenant, verdict.request_id, verdict.task) == (tenant, request_id, task):
                return outcome
        return None

    def with_id(self, outcome_id: str) -> Outcome | None:
        return next((outcome for outcome in self.rows if outcome.outcome_id == outcome_id), None)

    def append(self, outcome: Outcome, change: Tally) -> None:
        assert self.with_id(outcome.outcome_id) is None, "an id is used once"
        self.rows.append(outcome)
        key = (outcome.facts.tenant, outcome.facts.model)
        known = self.sums.get(key, Tally(0, 0, 0))
        self.sums[key] = Tally(*(one + other for one, other in zip(known, change, strict=True)))

    async def commit(self) -> None:
        num_rows = len(self.rows)
        await self.may_commit.wait()
        self.durable = max(self.durable, num_rows)
