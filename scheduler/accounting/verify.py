"""Whether a ledger is what was signed, and adds up: every row, its place in the tree, its legs, its price.

Called by `jouleway ledger verify` and the tests. Reads a copy, needs nobody's help, keeps a bounded number of rows in
memory. What it cannot tell without a key that the reader trusts, it says: who has the ledger's own key can sign
anything anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from scheduler.accounting.checkpoints import Checkpoint, PublicKey
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger_reader import Reader, Stored
from scheduler.accounting.merkle import Tree, leaf_hash
from scheduler.accounting.postings import charge_legs, differences, energy_legs, hold_legs, void_legs
from scheduler.accounting.rows import OPERATOR, Charge, Daily, Energy, Genesis, Hold, Row, Void, decode
from scheduler.core.request import Rates


class Fault(Exception):
    """The first thing that is wrong, and in which row."""

    def __init__(self, words: str, seq: int | None = None) -> None:
        super().__init__(words if seq is None else f"row {seq}: {words}")
        self.seq = seq


@dataclass(slots=True, kw_only=True)
class Verified:
    """What was found to be sound."""

    origin: str
    num_rows: int = 0
    is_authenticated: bool = False
    """Against a key that was given, not only the one in the ledger."""
    num_checkpoints: int = 0
    num_compacted: int = 0
    num_open_holds: int = 0
    balances: dict[tuple[str, str], int] = field(default_factory=dict)


def verify(
    reader: Reader,
    *,
    key: PublicKey | None = None,
    checkpoints: Iterable[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, size: None,
) -> Verified:
    """Everything that can be told. ``checkpoints``: notes kept elsewhere. Raises: Fault."""
    try:
        return _Verification(reader, key, list(checkpoints), on_progress).run()
    except LedgerError as error:
        raise Fault(f"unreadable: {error}") from None


class _Verification:
    """One run over all rows."""

    def __init__(
        self, reader: Reader, key: PublicKey | None, notes: list[str], on_progress: Callable[[int, int], None]
    ) -> None:
        self._reader = reader
        self._on_progress = on_progress
        self._head = reader.head()
        self._key = key or _public_key(self._head["public_key"])
        if str(self._key) != self._head["public_key"]:
            raise Fault(f"it is signed by {self._head['public_key']}, not by the key that was given")
        self._end = self._checked(self._head["note"], "its newest checkpoint")
        outside = [self._checked(note, "a checkpoint kept elsewhere") for note in notes]
        self._outside = sorted(outside, key=lambda each: each.size)
        self._tree = Tree()
        self._holds: dict[str, Hold] = {}
        self._blanks: list[list[int]] = []
        """Ranges of rows without their text."""
        self._compacted: list[Daily] = []
        self._last_at_us = 0
        self.found = Verified(origin=self._end.origin, is_authenticated=key is not None)

    def run(self) -> Verified:
        """Raises: Fault, LedgerError."""
        kept = self._expected()
        expected = next(kept, None)
        nodes: list[tuple[int, int, bytes]] = []
        for stored in self._reader.stored():
            nodes += self._row(stored)
            while expected is not None and expected.size == self._tree.size:
                self._compare(expected)
                expected = next(kept, None)
            if self._tree.size % 2_000 == 0:
                self._nodes(nodes)
                nodes.clear()
                self._on_progress(self._tree.size, self._end.size)
        self._nodes(nodes)
        if self._tree.size > self._end.size:
            raise Fault("is behind the newest checkpoint: it was added without a signature", self._end.size)
        if self._tree.size < self._end.size:
            raise Fault(
                f"is missing: the ledger ends after {self._tree.size} of {self._end.size} rows", self._tree.size
            )
        self._compare(self._end)
        if self._outside and self._outside[-1].size > self._end.size:
            raise Fault(
                f"a checkpoint kept elsewhere has {self._outside[-1].size} rows, this ledger {self._end.size}: it is "
                "older, or was rolled back"
            )
        self._finish()
        return self.found

    # -- rows

    def _row(self, stored: Stored) -> list[tuple[int, int, bytes]]:
        seq, kind, row_id, body, leaf = stored
        if seq != self._tree.size:
            raise Fault(f"is missing or out of order: the next one is numbered {seq!r}", self._tree.size)
        if not isinstance(leaf, bytes) or not isinstance(body, str | None):
            raise Fault("is damaged", seq)
        if body is None:
            self._blank(seq)
        else:
            if leaf_hash(body.encode()) != leaf:
                raise Fault("was changed: its text does not have its leaf's hash", seq)
            self._read(seq, kind, row_id, body)
        self.found.num_rows += 1
        return self._tree.append(leaf)

    def _blank(self, seq: int) -> None:
        self.found.num_compacted += 1
        if self._blanks and self._blanks[-1][1] == seq:
            self._blanks[-1][1] = seq + 1
        else:
            self._blanks.append([seq, seq + 1])

    def _read(self, seq: int, kind: str, row_id: str, body: str) -> None:
        try:
            row: Row = decode(body)
        except msgspec.DecodeError as error:
            raise Fault(f"cannot be read: {error}", seq) from None
        if (row.seq, row.kind, row.row_id) != (seq, kind, row_id):
            raise Fault(f"says that it is row {row.seq}, {row.kind} {row.row_id}", seq)
        if row.at_us < self._last_at_us:
            raise Fault("is older than the one before", seq)
        self._last_at_us = row.at_us
        if wrong := differences(row.legs):
            raise Fault(f"does not balance: {wrong}", seq)
        if seq == 0 and not (isinstance(row, Genesis) and row.public_key == str(self._key)):
            raise Fault("is not the beginning of a ledger of this key", seq)
        self._says(row)
        if not isinstance(row, Daily):
            balances = self.found.balances
            for account, unit, amount in row.legs:
                balances[account, unit] = balances.get((account, unit), 0) + amount

    def _says(self, row: Row) -> None:
        """What a row moves is what its facts come to."""
        match row:
            case Hold():
                self._expect(row, hold_legs(row))
                self._holds[row.request_id] = row
            case Void():
                hold = self._holds.pop(row.request_id, None)
                if hold is None:
                    raise Fault(f"gives back a hold that is not open: {row.request_id}", row.seq)
                self._expect(row, void_legs(hold))
            case Charge() if row.account == OPERATOR:
                self._expect(row, charge_legs(row, None))
                if row.cost_nano:
                    raise Fault("lets the operator pay money to itself", row.seq)
            case Charge():
                hold = self._holds.pop(row.request_id, None)
                self._expect(row, charge_legs(row, hold))
                if hold is not None and hold.rates and not _is_price(row, hold):
                    raise Fault("costs something else than its rates say", row.seq)
            case Energy():
                legs = energy_legs(
                    row.worker_id,
                    row.account,
                    energy_mj=row.energy_mj,
                    gpu_us=row.gpu_us,
                    carbon_ug=row.carbon_ug,
                    cost_nano=row.cost_nano,
                    currency=row.currency,
                )
                self._expect(row, legs)
            case Daily():
                self._compacted.append(row)

    def _expect(self, row: Row, legs: list[tuple[str, str, int]]) -> None:
        if [tuple(leg) for leg in row.legs] != legs:
            raise Fault("moves something else than it says", row.seq)

    # -- the tree

    def _expected(self) -> Iterator[Checkpoint]:
        """Checkpoints of the ledger and from elsewhere, in the order of their sizes."""
        outside = iter(self._outside)
        waiting = next(outside, None)
        for size, note in self._reader.checkpoints():
            checkpoint = self._checked(note, f"the checkpoint of {size} rows")
            if checkpoint.size != size:
                raise Fault(f"the checkpoint of {size} rows is one of {checkpoint.size}")
            while waiting is not None and waiting.size <= size:
                yield waiting
                waiting = next(outside, None)
            yield checkpoint
        while waiting is not None:
            yield waiting
            waiting = next(outside, None)

    def _compare(self, checkpoint: Checkpoint) -> None:
        self.found.num_checkpoints += 1
        if self._tree.root() != checkpoint.root:
            raise Fault(
                f"the first {checkpoint.size} rows are not those that were signed: one was changed, swapped, added or "
                "removed, or this is a fork"
            )

    def _checked(self, note: str, what: str) -> Checkpoint:
        try:
            checkpoint = self._key.verify(note)
        except (ValueError, AttributeError, TypeError) as error:
            raise Fault(f"{what}: {error}") from None
        return checkpoint

    def _nodes(self, nodes: list[tuple[int, int, bytes]]) -> None:
        for level, place, node in nodes:
            if self._reader.hashes(level, place, 1) != [node]:
                raise Fault(f"the stored node {place} of level {level} is not that of the rows below it")

    # -- the end

    def _finish(self) -> None:
        duplicate = self._reader.duplicate()
        if duplicate is not None:
            raise Fault(f"{duplicate[0]} {duplicate[1]} was booked twice")
        for start, end in self._blanks:
            if not any(each.from_seq <= start and end <= each.to_seq for each in self._compacted):
                raise Fault("has lost its text, and no compaction says so", start)
        self.found.num_open_holds = len(self._holds)


def _is_price(charge: Charge, hold: Hold) -> bool:
    known = {name: rate for name, rate in hold.rates.items() if name in Rates._fields}
    if known != hold.rates:
        return True  # of a price book with more classes than are known here
    rates = Rates(**known)  # type: ignore[arg-type]
    cost_nano = rates.cost_nano(
        input_tokens=charge.input_tokens, cached_tokens=charge.cached_tokens, output_tokens=charge.output_tokens
    )
    return cost_nano == charge.cost_nano


def _public_key(text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except (ValueError, AttributeError) as error:
        raise Fault(f"its public key: {error}") from None
