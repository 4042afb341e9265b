"""A control plane begins where the last one ended: books, budgets and the fair order are rebuilt from the ledger.

Called by ``scheduler.service`` before the first admission. What a hold was open for is gone with the process that held
it: it is voided; what its attempts executed comes with the outboxes of workers that lived on, and is the operator's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from scheduler.accounting import book_state
from scheduler.accounting.books import Books
from scheduler.accounting.charging import request_of, tokens_of
from scheduler.accounting.errors import LedgerBroken, LedgerError
from scheduler.accounting.journal import Journal, Store
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.rows import OPERATOR, Charge, Energy, Genesis, Opened, decode
from scheduler.accounting.settlement import Settlement
from scheduler.core.budget_accounts import Amounts
from scheduler.core.budgets import UsedSlots
from scheduler.core.request import Request
from scheduler.core.scheduler import Scheduler

logger = logging.getLogger("jouleway.ledger")

LOST = "control_plane_lost"
"""Why a hold was voided: the process that would have charged it is gone."""
FAIR_ROWS = 20_000
"""The last rows, from which the fair order is rebuilt: whoever was silent for longer is lifted anyway."""


class Saved(msgspec.Struct, array_like=True):
    """A state in the ledger."""

    books: bytes
    budgets: list[UsedSlots]


class Recovered(NamedTuple):
    """What was found."""

    num_rows: int
    num_replayed: int
    """Rows behind the state; all of them where there was none."""
    num_voided: int
    took_s: float


def recover(
    ledger: Ledger,
    core: Scheduler,
    *,
    statement: str,
    version: str,
    store: Store | None = None,
    now_s: float = 0.0,
    unix_clock: Callable[[], float] = time.time,
    use_state: bool = True,
    is_away: Callable[[], bool] = lambda: False,
) -> tuple[Settlement, Recovered]:
    """A settlement that writes to the ledger, its books and the core's budgets as they were. Raises: LedgerError.

    ``store``: what rows are handed to in the ledger's place. ``is_away``: whether the ledger is known not to answer,
    so that nobody waits for it.
    """
    began_s, size = time.perf_counter(), ledger.size
    start_seq, books = _load_state(ledger, core) if use_state else (0, Books())
    last_at_us = _replay_rows(ledger, _Replay(books, core, now_s), start_seq=start_seq, size=size)
    journal = Journal(store or ledger, next_seq=size, state_seq=start_seq, last_at_us=last_at_us, unix_clock=unix_clock)
    settlement = Settlement(journal=journal, books=books)

    def is_booked(kind: str, row_id: str) -> bool:
        if is_away():
            raise LedgerError(f"{ledger.url} is away")
        return ledger.find(kind, row_id) is not None

    settlement.is_booked = is_booked
    journal.take_state = lambda: (_save(settlement.books, core), settlement.books.usage.take())
    if not size:
        head = ledger.head()
        settlement.note(
            Genesis(
                ledger_id=head["ledger_id"],
                origin=head["origin"],
                public_key=head["public_key"],
                statement=statement,
            )
        )
    settlement.note(Opened(epoch=ledger.epoch, version=version, statement=statement))
    settlement.orphans = dict(books.holds)
    for request_id in settlement.orphans:
        settlement.release(request_id, LOST)
    for attempt_id, attempt in books.open.items():
        charge = attempt.charge
        if charge is not None and charge.account != OPERATOR:
            core.holds.owe(
                attempt_id,
                request_of(charge, arrival_s=now_s),
                charge.zone,
                most_nano=max((charge.most_plus_nano or 0) - charge.plus_nano, 0),
                difference_nano=charge.difference_nano,
            )
    recovered = Recovered(size, size - start_seq, len(settlement.orphans), time.perf_counter() - began_s)
    logger.info("ledger: %d rows, %d replayed, %d holds voided, in %.2f s", *recovered)
    return settlement, recovered


def _replay_rows(ledger: Ledger, replay: _Replay, *, start_seq: int, size: int) -> int:
    """Those behind the state into books and budgets, the last ones into the fair order; when the last was written."""
    last_at_us, flushed_seq, books = 0, ledger.state_seq(), replay.books
    for seq, _, _, body, _ in ledger.stored(min(start_seq, max(size - FAIR_ROWS, 0)), size):
        if start_seq < seq == flushed_seq:
            books.usage.take()  # stands in the table since that state, which could not be read
        if body is None:
            if seq >= start_seq:
                raise LedgerBroken(
                    f"row {seq} is compacted and no state covers it; remedy: serve by the version that wrote the "
                    "newest state, or restore a backup"
                )
            continue
        try:
            row = decode(body)
        except msgspec.DecodeError:
            raise LedgerBroken(
                f"{ledger.url}: row {seq} cannot be read; remedy: jouleway ledger verify, restore a backup"
            ) from None
        last_at_us = row.at_us
        if isinstance(row, Charge):
            replay.fair(row)
        if seq >= start_seq:
            replay.book(row)
    if start_seq < size == flushed_seq:
        books.usage.take()
    return last_at_us


def _load_state(ledger: Ledger, core: Scheduler) -> tuple[int, Books]:
    found = ledger.state()
    if found is None:
        return 0, Books()
    seq, data = found
    try:
        saved = msgspec.msgpack.decode(data, type=Saved)
        books = book_state.load(saved.books)
    except (msgspec.DecodeError, ValueError) as error:
        logger.warning("ledger: its state is of another version (%s): all rows are replayed", type(error).__name__)
        return 0, Books()
    core.holds.budgets.put_back(saved.budgets)
    return seq, books


def _save(books: Books, core: Scheduler) -> bytes:
    return msgspec.msgpack.encode(Saved(book_state.dump(books), core.holds.budgets.used()))


class _Replay:
    """Rows of an earlier life, applied in their order."""

    def __init__(self, books: Books, core: Scheduler, now_s: float) -> None:
        self.books = books
        self._core = core
        self._now_s = now_s

    def book(self, row: object) -> None:
        """Into the books, and what was used into the budgets that it was used of."""
        budgets = self._core.holds.budgets
        match row:
            case Charge() if row.account != OPERATOR:
                tokens = tokens_of(row)
                amounts = Amounts(tokens.input_tokens, tokens.cached_tokens, tokens.output_tokens, row.cost_nano)
                budgets.restore(self._request(row), amounts, num_requests=1)
            case Energy() if row.account != OPERATOR:
                attempt = self.books.open.get(row.attempt_id)
                if attempt is not None and attempt.charge is not None:
                    budgets.restore(self._request(attempt.charge), _carried(row))
        self.books.apply(row)  # type: ignore[arg-type]

    def fair(self, charge: Charge) -> None:
        """What a tenant was served counts in the fair order."""
        if charge.attempt_number < 1 or charge.account == OPERATOR:
            return
        fairness, tokens = self._core.fairness, tokens_of(charge)
        fairness.start(
            charge.attempt_id,
            self._request(charge),
            prompt_tokens=tokens.input_tokens,
            cached_tokens=tokens.cached_tokens,
            output_tokens=tokens.output_tokens,
        )
        fairness.close(
            charge.attempt_id,
            input_tokens=tokens.input_tokens,
            cached_tokens=tokens.cached_tokens,
            output_tokens=tokens.output_tokens,
        )

    def _request(self, charge: Charge) -> Request:
        return request_of(charge, arrival_s=self._now_s)


def _carried(row: Energy) -> Amounts:
    if row.budget_mj is None:
        energy_mj, gpu_us, carbon_ug = row.energy_mj, row.gpu_us, row.carbon_ug
    else:
        energy_mj, gpu_us, carbon_ug = row.budget_mj, row.budget_gpu_us or 0, row.budget_ug or 0
    return Amounts(money_nano=row.cost_nano, energy_mj=energy_mj, gpu_us=gpu_us, carbon_ug=carbon_ug)
