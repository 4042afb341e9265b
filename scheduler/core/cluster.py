"""The core's picture of the workers: what they said of themselves, and the credit that is owned on each.

Called by ``scheduler.core.scheduler``; its table is read by ``scheduler.core.placement`` and its neighbours. It must
never know a queue, a link or a clock.

Credit is owned, not scraped: it is claimed at dispatch, trued up by progress, released at the end, in whole tokens, so
that it returns to exactly 0. What a worker reports of its load beyond what is owned there is *foreign*; it counts
once two reports in a row agree on it, because a report is always older than the claim it is compared with.

The table has one column a worker and one row a quantity: a decision over all workers is a few vector operations. What
is summed over running requests (their slack) is kept per worker and summarised in four rows, anew whenever something
there has changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.curves import Slowest, beyond_idle, sound_of
from scheduler.core.estimates import PromptRate
from scheduler.core.request import Band
from scheduler.core.slack import NO_SUMMARY, UNDERWAY, Pace, Promise, Promises
from scheduler.core.table import (
    CURVE_ROWS,
    ENERGY_ROWS,
    NUM_ROWS,
    OWNED_ROWS,
    SLACK_ROWS,
    Floats,
    Ints,
    Row,
    write,
)
from scheduler.core.worker_view import DEFAULT_MAX_RUNNING as DEFAULT_MAX_RUNNING
from scheduler.core.worker_view import WorkerView as WorkerView
from workers.types import WorkerState

NO_PROMISE = Promise(rank=UNDERWAY)
"""Nothing is known of what was promised: its prompt goes before everybody's, and no delay is priced."""


_SEQUENCES, _KV, _FIRST, _SECOND = (
    row - OWNED_ROWS.start for row in (Row.SEQUENCES, Row.KV, Row.FIRST_PREFILL, Row.SECOND_PREFILL)
)
"""Where a worker's sums stand in its list."""


class Claim(NamedTuple):
    """Credit of one attempt, in tokens. A tuple, because one is made per attempt and report."""

    sequences: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
    kv_tokens: int


NO_CLAIM = Claim(0, 0, 0, 0, 0)


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One worker's column, its last words, and what runs there in the order it was sent."""

    worker_id: str
    column: int
    life: int
    """Differs for a worker that was lost and came back."""
    view: WorkerView
    claims: dict[str, Claim] = field(default_factory=dict)
    """By attempt."""
    promises: Promises = field(default_factory=Promises)
    owned: array[int] = field(default_factory=lambda: array("q", [0] * (OWNED_ROWS.stop - OWNED_ROWS.start)))
    """Sums over the claims, in the order of the table's rows; written there when somebody reads it."""
    owned_view: Ints = field(init=False)
    """The same memory, as loops read it."""
    prompts: PromptRate = field(default_factory=PromptRate)
    """That were sent there to be computed."""
    last_foreign: tuple[int, int] = (0, 0)
    idle_since_s: float | None = None
    """Since when it reports that nothing runs or waits there."""

    def __post_init__(self) -> None:
        self.owned_view = np.frombuffer(self.owned, dtype=np.int64)


def _add_ahead(owned: array[int], rank: int, tokens: int) -> None:
    """Prompt tokens also count before every band that they are computed before."""
    if rank <= Band.DEFAULT:
        owned[_SECOND] += tokens
        if rank <= Band.PRIORITY:
            owned[_FIRST] += tokens


class Cluster:
    """All workers that are known. Columns are reused; no choice may depend on which column a worker has."""

    def __init__(self) -> None:
        self._table: Floats = np.zeros((NUM_ROWS, 16), dtype=np.float64)
        self.workers: dict[str, Worker] = {}
        self._by_column: dict[int, Worker] = {}
        self._free: list[int] = list(range(15, -1, -1))
        self.zones: list[str] = []
        """Every zone that a worker was ever in; the table holds indices into it."""
        self._columns: dict[str, NDArray[np.intp]] = {}
        self._serving: dict[str, NDArray[np.bool_]] = {}
        self._ids: tuple[tuple[str, str, str], ...] | None = None
        self.slowest = Slowest()
        self.memo: dict[Hashable, NDArray[Any]] = {}
        """What placement works out from who is ready, where and for which model; empty after each change of that."""
        self._unwritten: dict[int, Worker] = {}
        """Workers of which the table does not have the sums yet, by column."""
        self._unsummarised: dict[int, Worker] = {}
        """Likewise their slack."""
        self._num_lives = 0

    # -- what workers say

    def update(self, view: WorkerView, now_s: float) -> Worker:
        """A report: a new worker is taken in, a known one refreshed."""
        worker = self.workers.get(view.worker_id)
        if worker is None:
            worker = self._take_in(view)
        elif (worker.view.models, worker.view.zone) != (view.models, view.zone):
            self._forget_order()
        if worker.view.curve_word != view.curve_word:
            self._ids = None
        worker.view = view
        table, column = self._table, worker.column
        curves = sound_of(view.curves)
        self._set_ready(column, view.state is WorkerState.READY)
        table[Row.HEARD_S, column] = now_s
        table[Row.MAX_ATTEMPTS, column] = view.max_running
        table[Row.MAX_SEQUENCES, column] = view.max_sequences
        table[Row.KV_ROOM, column] = view.kv_tokens
        table[CURVE_ROWS, column] = curves.time_s
        table[ENERGY_ROWS, column] = beyond_idle(curves, view.num_gpus)
        self.slowest = Slowest(*map(max, self.slowest, curves.time_s[:2]))
        table[Row.NUM_GPUS, column] = view.num_gpus
        table[Row.ZONE, column] = self._zone(view.zone)
        self._correct(worker, now_s)
        self._unwritten[column] = self._unsummarised[column] = worker
        return worker

    def _correct(self, worker: Worker, now_s: float) -> None:
        """Load beyond what is owned, once two reports agree on it."""
        table, column, view = self._table, worker.column, worker.view
        owned = worker.owned
        reported = view.num_running + view.num_waiting
        foreign = (max(reported - owned[_SEQUENCES], 0), max(view.kv_used_tokens - owned[_KV], 0))
        table[Row.FOREIGN_SEQUENCES, column] = min(foreign[0], worker.last_foreign[0])
        table[Row.FOREIGN_KV, column] = min(foreign[1], worker.last_foreign[1])
        worker.last_foreign = foreign
        if reported:
            worker.idle_since_s = None
        elif worker.idle_since_s is None:
            worker.idle_since_s = now_s

    def _take_in(self, view: WorkerView) -> Worker:
        if not self._free:
            size = self._table.shape[1]
            self._table = np.concatenate((self._table, np.zeros_like(self._table)), axis=1)
            self._free = list(range(2 * size - 1, size - 1, -1))
        self._num_lives += 1
        worker = Worker(worker_id=view.worker_id, column=self._free.pop(), life=self._num_lives, view=view)
        self.workers[view.worker_id] = worker
        self._by_column[worker.column] = worker
        self._table[SLACK_ROWS, worker.column] = NO_SUMMARY
        self._table[Row.STRETCH, worker.column] = 1.0
        for order, worker_id in enumerate(sorted(self.workers)):
            self._table[Row.ORDER, self.workers[worker_id].column] = order
        self._forget_order()
        return worker

    def _zone(self, zone: str) -> int:
        if zone not in self.zones:
            self.zones.append(zone)
        return self.zones.index(zone)

    def _forget_order(self) -> None:
        """What is kept by model or column is looked up anew."""
        self._columns.clear()
        self._serving.clear()
        self._ids = None
        self.memo.clear()

    def remove(self, worker_id: str) -> None:
        """The worker is gone; the caller has released what ran there."""
        worker = self.workers.pop(worker_id)
        assert not worker.claims, f"{len(worker.claims)} attempts are still owned on {worker_id}"
        del self._by_column[worker.column]
        self._table[:, worker.column] = 0.0
        self._free.append(worker.column)
        self._unwritten.pop(worker.column, None)
        self._unsummarised.pop(worker.column, None)
        self._forget_order()

    def hold(self, worker: Worker) -> None:
        """It said that it is full: no placement there until its next report."""
        self._set_ready(worker.column, False)

    def _set_ready(self, column: int, is_ready: bool) -> None:
        if self._table[Row.READY, column] != is_ready:
            self._table[Row.READY, column] = is_ready
            self.memo.clear()

    def hold_silent(self, now_s: float, silent_s: float) -> None:
        """No placement on workers that were not heard for so long, until their next report."""
        silent = self._table[Row.HEARD_S] < now_s - silent_s
        for column in np.flatnonzero(silent & (self._table[Row.READY] > 0)).tolist():
            self._set_ready(column, False)

    def unheard(self, now_s: float, lost_s: float) -> list[str]:
        """Ids of workers that were not heard for so long, in order."""
        late = np.flatnonzero(self._table[Row.HEARD_S] < now_s - lost_s)
        return sorted(self._by_column[column].worker_id for column in late.tolist() if column in self._by_column)

    # -- credit

    def claim(self, worker: Worker, attempt_id: str, claim: Claim, promise: Promise = NO_PROMISE) -> None:
        """Credit is owned from here on. Nobody's slack is looked at anew: the next word of the worker will do."""
        assert attempt_id not in worker.claims, f"{attempt_id} owns credit already"
        worker.owned[0] += 1
        worker.claims[attempt_id] = NO_CLAIM
        worker.promises.put(attempt_id, promise)
        self._own(worker, attempt_id, claim, promise)

    def change(self, worker: Worker, attempt_id: str, claim: Claim, promise: Promise = NO_PROMISE) -> None:
        """The attempt owns something else now."""
        self._own(worker, attempt_id, claim, promise)
        self._unsummarised[worker.column] = worker

    def _own(self, worker: Worker, attempt_id: str, claim: Claim, promise: Promise) -> None:
        """Called per attempt and report, so it is kept cheap."""
        before, owned, promises = worker.claims[attempt_id], worker.owned, worker.promises
        worker.claims[attempt_id] = claim
        sequences, prefill_tokens, decode_tokens, context_tokens, kv_tokens = claim
        owned[1] += sequences - before[0]
        owned[2] += prefill_tokens - before[1]
        owned[3] += decode_tokens - before[2]
        owned[4] += context_tokens - before[3]
        owned[5] += kv_tokens - before[4]
        if before[1]:
            _add_ahead(owned, promises.rank(attempt_id), -before[1])
        if prefill_tokens:
            _add_ahead(owned, promise.rank, prefill_tokens)
        promises.put(attempt_id, promise)
        self._unwritten[worker.column] = worker

    def put_out(self, worker: Worker, attempt_id: str, num_tokens: int, *, num_sequences: int) -> None:
        """So many of the expected output tokens are there now: a ``change`` of nothing else, and far cheaper."""
        claim, owned = worker.claims[attempt_id], worker.owned
        worker.claims[attempt_id] = Claim(claim[0], claim[1], claim[2] - num_tokens, claim[3] + num_tokens, claim[4])
        owned[3] -= num_tokens
        owned[4] += num_tokens
        worker.promises.put_out(attempt_id, num_tokens / num_sequences)
        self._unwritten[worker.column] = self._unsummarised[worker.column] = worker

    def release(self, worker: Worker, attempt_id: str) -> None:
        """The attempt owns nothing any more."""
        self.change(worker, attempt_id, NO_CLAIM)
        worker.owned[0] -= 1
        del worker.claims[attempt_id]
        worker.promises.drop(attempt_id)

    @property
    def table(self) -> Floats:
        """One column a worker, one row a quantity. The slack in it is as of the last ``refresh``."""
        if self._unwritten:
            table = self._table
            for column, worker in self._unwritten.items():
                write(table, column, worker.owned_view)
            self._unwritten.clear()
        return self._table

    def refresh(self, now_s: float) -> None:
        """Summarises the slack of every worker where something changed.

        Placement calls it; so may whoever reports progress, so that no decision pays for many workers at once.
        """
        if self._unsummarised:
            table = self.table
            for column, worker in self._unsummarised.items():
                table[Row.STRETCH, column] = worker.prompts.stretch(table.item(Row.T_PREFILL_S, column), now_s)
                worker.promises.summarise(table, column, now_s)
            self._unsummarised.clear()

    def pace(self, column: int, backlog_row: int = Row.PREFILL) -> Pace:
        """How the worker there computes as things stand; the backlog is what the row counts."""
        item = self.table.item
        step_s = item(Row.STEP_S, column) * item(Row.STRETCH, column)
        return Pace(step_s, item(Row.T_PREFILL_S, column), item(backlog_row, column))

    # -- what placement reads

    def columns_of(self, model: str) -> NDArray[np.intp]:
        """Columns of the workers that serve the model, ordered by worker id, so that ties fall the same way always."""
        columns = self._columns.get(model)
        if columns is None:
            serving = sorted(name for name, worker in self.workers.items() if model in worker.view.models)
            columns = np.array([self.workers[name].column for name in serving], dtype=np.intp)
            self._columns[model] = columns
        return columns

    def serving(self, model: str) -> NDArray[np.bool_]:
        """Over all columns: whether a worker is there that serves the model."""
        serving = self._serving.get(model)
        if serving is None:
            serving = np.zeros(self._table.shape[1], dtype=np.bool_)
            serving[self.columns_of(model)] = True
            self._serving[model] = serving
        return serving

    def ids(self) -> tuple[tuple[str, str, str], ...]:
        """(worker id, zone, whose curve) of every column, empty ones included; the same object until one changes."""
        if self._ids is None:
            names = [("", "", "")] * self._table.shape[1]
            for worker in self.workers.values():
                names[worker.column] = (worker.worker_id, worker.view.zone, worker.view.curve_word)
            self._ids = tuple(names)
        return self._ids

    def worker_at(self, column: int) -> Worker:
        return self._by_column[column]

    def is_ready(self, worker: Worker) -> bool:
        """Whether it takes work now."""
        return bool(self._table[Row.READY, worker.column])

    def has_ready(self, model: str, *, other_than: Worker | None = None) -> bool:
        """Whether some (other) worker of the model takes work now."""
        num_ready = int(self._table[Row.READY, self.columns_of(model)].sum())
        if other_than is not None and model in other_than.view.models:
            num_ready -= self.is_ready(other_than)
        return num_ready > 0

    def credit(self, worker_id: str) -> Claim:
        """All credit owned on a worker."""
        return Claim(*self.workers[worker_id].owned[1:6])
