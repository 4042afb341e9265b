"""Books as bytes, and back: what a state in the ledger holds, so that recovery need not begin at the first row.

Called by ``scheduler.accounting.recovery``. Pure. Equal books give equal bytes, so that a state can be compared with
what a replay of all rows leads to.
"""

from __future__ import annotations

import msgspec

from scheduler.accounting.accounts import Account, Accounts, Book, Kind, TokenTotals, WindowTotals
from scheduler.accounting.books import Books, OpenAttempt
from scheduler.accounting.rows import Hold
from scheduler.accounting.usage_book import Key

MAX_SAVED_CLOSED = 8_192
"""Settled attempts that are remembered over a restart: more than workers can hold unacknowledged in a moment."""

Balances = list[tuple[str, str, str, int, int]]


class BookState(msgspec.Struct, kw_only=True):
    """Everything but the details of past requests, which the rows still have, and usage, which is flushed."""

    serving: Balances
    calibration: Balances
    tokens: dict[str, TokenTotals]
    windows: dict[str, WindowTotals]
    generated: dict[str, int]
    token_difference: int
    inexact_sequences: int
    posting_difference_mj: int
    metered_token_difference: int
    open: dict[str, OpenAttempt]
    closed: list[tuple[str, str, Key | None]]
    holds: dict[str, Hold]
    last_numbers: dict[str, tuple[str, int]]
    balances: list[tuple[str, str, int]]


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(BookState)


def dump(books: Books) -> bytes:
    """Books as they are now."""
    accounts = books.accounts
    closed = list(books.closed.items())[-MAX_SAVED_CLOSED:]
    state = BookState(
        serving=_balances(accounts.serving),
        calibration=_balances(accounts.calibration),
        tokens=accounts.tokens,
        windows=accounts.windows,
        generated=dict(accounts.generated),
        token_difference=accounts.token_difference,
        inexact_sequences=accounts.inexact_sequences,
        posting_difference_mj=accounts.posting_difference_mj,
        metered_token_difference=accounts.metered_token_difference,
        open=books.open,
        closed=[(attempt_id, account, key) for attempt_id, (account, key) in closed],
        holds=books.holds,
        last_numbers=books.last_numbers,
        balances=sorted((account, unit, amount) for (account, unit), amount in books.balances.items() if amount),
    )
    return _encoder.encode(state)


def load(data: bytes) -> Books:
    """Raises: ValueError where the bytes are no state of this version (then all rows are replayed)."""
    try:
        state = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    accounts = Accounts()
    for book, balances in ((accounts.serving, state.serving), (accounts.calibration, state.calibration)):
        for kind, worker_id, tenant, energy_mj, gpu_us in balances:
            book.put(Account(Kind(kind), worker_id, tenant), energy_mj=energy_mj, gpu_us=gpu_us)
    accounts.tokens, accounts.windows = state.tokens, state.windows
    accounts.generated.update(state.generated)
    accounts.token_difference = state.token_difference
    accounts.inexact_sequences = state.inexact_sequences
    accounts.posting_difference_mj = state.posting_difference_mj
    accounts.metered_token_difference = state.metered_token_difference
    books = Books(accounts)
    books.open, books.holds = state.open, state.holds
    books.closed.update((attempt_id, (account, key)) for attempt_id, account, key in state.closed)
    books.last_numbers = state.last_numbers
    books.balances = {(account, unit): amount for account, unit, amount in state.balances}
    return books


def _balances(book: Book) -> Balances:
    return sorted(
        (account.kind.value, account.worker_id, account.tenant, energy_mj, gpu_us)
        for account, energy_mj, gpu_us in book.accounts()
    )
