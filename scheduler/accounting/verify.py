"""Whether a ledger is what was signed, and adds up: every row, its place in the tree, its legs, its price.

Called by `jouleway ledger verify` and the tests. Reads a copy, needs nobody's help, keeps a bounded number of rows in
memory. What it cannot tell without a key that the reader trusts, it says: who has the ledger's own key can sign
anything anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from scheduler.accounting.accounts import Accounts
from scheduler.accounting.checkpoints import Checkpoint, PublicKey
from scheduler.accounting.compacted import CompactedRows
from scheduler.accounting.errors import Fault, LedgerError
from scheduler.accounting.ledger_reader import FIRST_SEQ, Reader, Stored
from scheduler.accounting.merkle import LEAF_PREFIX, Tree
from scheduler.accounting.postings import differences, energy_legs, hold_legs, void_legs, window_legs
from scheduler.accounting.row_checks import (
    MEASURED_BEFORE,
    NO_HOLD,
    fault_of_charge,
    fault_of_energy,
    legs_of_charge,
    legs_of_energy,
)
from scheduler.accounting.rows import (
    BY_OPERATOR,
    DECODERS,
    OPERATOR,
    Charge,
    Correction,
    Daily,
    Energy,
    Genesis,
    Hold,
    Leg,
    Opened,
    Row,
    Void,
    Window,
)

__all__ = ["Fault", "Verified", "verify"]

CHECKED_NODES = 256
"""Of the tree, compared at a time."""


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
        if self._end.size != self._head["size"]:
            raise Fault(f"its newest checkpoint is of {self._end.size} rows, its head says {self._head['size']!r}")
        outside = [self._checked(note, "a checkpoint kept elsewhere") for note in notes]
        self._outside = sorted(outside, key=lambda each: each.size)
        self._tree = Tree()
        self._nodes: list[tuple[int, int, bytes]] = []
        """Complete ones that were not compared yet."""
        self._holds: dict[str, Hold] = {}
        self._unmeasured: dict[str, tuple[str, Charge | None]] = {}
        """By attempt that was charged: who pays, and the charge where its price waits for what is measured."""
        self._never_charged: set[str] = set()
        """Attempts that were measured before anybody was charged for them: of earlier control planes, given up."""
        self._in_flight: dict[str, tuple[int, int, str]] = {}
        """By attempt: mJ and GPU-µs that windows gave it, and the worker whose windows they were."""
        self._opened_seq = 0
        """Of the newest start: what was held before it was voided, and is charged to nobody."""
        self._compacted = CompactedRows(reader)
        self._last_at_us = 0
        legs_of: dict[Any, Callable[[Any], list[Leg]]] = {
            Genesis: self._genesis,
            Opened: self._open,
            Hold: self._hold,
            Void: self._void,
            Charge: self._charge,
            Energy: self._energy,
            Window: self._window,
            Correction: self._balanced,
            Daily: self._daily,
        }
        self._kinds: dict[str, tuple[Callable[[str], Row], Callable[[Any], list[Leg]]]] = {
            kind: (decoder.decode, legs_of.get(decoder.type, _nothing)) for kind, decoder in DECODERS.items()
        }
        self.found = Verified(origin=self._end.origin, is_authenticated=key is not None)

    def run(self) -> Verified:
        """Raises: Fault, LedgerError."""
        self._expected = self._checkpoints()
        self._next = next(self._expected, None)
        # Also what lies before row 0: nobody signed it, and a search by name would find it.
        for rows in self._reader.batches(FIRST_SEQ):
            self._grow(self._leaves(rows))
            self._on_progress(self._tree.size, self._end.size)
        self._compare_nodes()
        if self._tree.size > self._end.size:
            raise Fault("is behind the newest checkpoint: it was added without a signature", self._end.size)
        if self._tree.size < self._end.size:
            raise Fault(
                f"is missing: the ledger ends after {self._tree.size} of {self._end.size} rows", self._tree.size
            )
        self._compare(self._end)
        if self._next is not None:
            raise Fault(
                f"a checkpoint has {self._next.size} rows, this ledger {self._end.size}: it is older, or was rolled "
                "back"
            )
        self._finish()
        return self.found

    # -- rows

    def _leaves(self, rows: list[Stored]) -> list[bytes]:
        """Of the next rows, each of which was looked at. One loop without calls that could be spared: 10⁷ rows."""
        leaves, kinds, expected, last_at_us = [], self._kinds, self._tree.size, self._last_at_us
        if not expected and rows and rows[0][0] == 0 and rows[0][1] != "genesis":
            raise Fault("is not the beginning of a ledger", 0)
        for seq, kind, row_id, body, leaf in rows:
            if seq != expected:
                raise Fault(f"is missing or out of order: the next one is numbered {seq!r}", expected)
            expected += 1
            leaves.append(leaf)
            if type(body) is not str or type(leaf) is not bytes:
                self._blank(seq, body, leaf)
                continue
            if sha256(LEAF_PREFIX + body.encode()).digest() != leaf:
                raise Fault("was changed: its text does not have its leaf's hash", seq)
            if kind not in kinds:
                raise Fault(f"is of no kind that is known here: {kind!r}", seq)
            if not body.startswith(f'{{"kind":"{kind}"'):  # else the column, which nobody signed, would say what it is
                raise Fault(f"does not begin with its kind, {kind}", seq)
            decode, legs_of = kinds[kind]
            try:
                row = decode(body)
            except msgspec.DecodeError as error:
                raise Fault(f"cannot be read as a row of kind {kind}: {error}", seq) from None
            if row.seq != seq or row.row_id != row_id:
                raise Fault(f"says that it is row {row.seq}, {kind} {row.row_id}", seq)
            if row.at_us < last_at_us:
                raise Fault("is older than the one before", seq)
            last_at_us = row.at_us
            if row.legs != legs_of(row):
                raise Fault("moves something else than it says", seq)
        self._last_at_us = last_at_us
        self.found.num_rows += len(leaves)
        return leaves

    def _blank(self, seq: int, body: object, leaf: object) -> None:
        if body is not None or type(leaf) is not bytes:
            raise Fault("is damaged", seq)
        self.found.num_compacted += 1
        self._compacted.add(seq)

    # What a row has to move by its facts; legs that are made of facts balance by themselves.

    def _balanced(self, row: Row) -> list[Leg]:
        if wrong := differences(row.legs):
            raise Fault(f"does not balance: {wrong}", row.seq)
        return row.legs

    def _genesis(self, row: Genesis) -> list[Leg]:
        if row.seq or row.public_key != str(self._key):
            raise Fault("is not the beginning of a ledger of this key", row.seq)
        return []

    def _open(self, row: Opened) -> list[Leg]:
        self._opened_seq = row.seq
        return []

    def _daily(self, row: Daily) -> list[Leg]:
        self._compacted.add_sums(row)
        return self._balanced(row)

    def _hold(self, row: Hold) -> list[Leg]:
        self._holds[row.request_id] = row
        return hold_legs(row)

    def _void(self, row: Void) -> list[Leg]:
        hold = self._holds.pop(row.request_id, None) or self._compacted.hold_of(row)
        if hold is None:
            raise Fault(f"gives back a hold that is not open: {row.request_id}", row.seq)
        return void_legs(hold)

    def _charge(self, row: Charge) -> list[Leg]:
        if row.attempt_id in self._never_charged:
            raise Fault(MEASURED_BEFORE, row.seq)
        self._unmeasured[row.attempt_id] = row.account, None if row.rates.plus is None else row
        hold = None if row.payer is BY_OPERATOR else self._holds.pop(row.request_id, None)
        if hold is not None and hold.seq < self._opened_seq:
            raise Fault(NO_HOLD, row.seq)
        if words := fault_of_charge(row, hold):
            raise Fault(words, row.seq)
        if hold is None and row.payer is not BY_OPERATOR:
            hold = self._compacted.hold_of(row, from_seq=self._opened_seq)
            if hold is None:
                raise Fault(NO_HOLD, row.seq)
        return legs_of_charge(row, hold)

    def _energy(self, row: Energy) -> list[Leg]:
        charged = self._unmeasured.pop(row.attempt_id, None)
        if charged is None:
            self._never_charged.add(row.attempt_id)
        account, charge = charged or (OPERATOR, None)
        energy_mj, gpu_us, worker_id = self._in_flight.pop(row.attempt_id, (0, 0, row.worker_id))
        words = fault_of_energy(row, account, charge)
        if words and (charge is not None or self._compacted.seq_of("charge", row.attempt_id) is None):
            raise Fault(words, row.seq)
        if row.worker_id != worker_id:
            raise Fault(f"is taken from {row.worker_id}, and windows of {worker_id} gave it", row.seq)
        is_given = row.energy_mj == energy_mj and row.gpu_us == gpu_us
        if not is_given and not self._compacted.may_give(row, energy_mj, gpu_us):
            raise Fault(
                f"books {row.energy_mj} mJ and {row.gpu_us} GPU-us, and windows gave it {energy_mj} and {gpu_us}",
                row.seq,
            )
        return legs_of_energy(row)

    def _window(self, row: Window) -> list[Leg]:
        """Energy of attempts that were settled already follows to whoever paid them."""
        in_flight, worker_id = self._in_flight, row.worker_id
        try:
            Accounts.check_window(worker_id, row.window)
        except ValueError as error:
            raise Fault(str(error), row.seq) from None
        legs = window_legs(worker_id, row.window, is_calibration=Accounts.is_calibration(row.window))
        late = self._balanced(row)[len(legs) :]
        for share in row.window.shares:
            if late and (moved := self._late(row, share, late)):
                legs, late = legs + moved, late[len(moved) :]
                continue
            attempt_id, energy_mj, gpu_us = share
            given = in_flight.get(attempt_id)
            if given is not None:
                if given[2] != worker_id:
                    raise Fault(f"measures {attempt_id}, which ran on {given[2]}", row.seq)
                in_flight[attempt_id] = given[0] + energy_mj, given[1] + gpu_us, worker_id
            elif energy_mj or gpu_us:
                in_flight[attempt_id] = energy_mj, gpu_us, worker_id
        if late:
            raise Fault("moves something else than energy of the attempts it measured", row.seq)
        return legs

    def _late(self, row: Window, share: tuple[str, int, int], late: list[Leg]) -> list[Leg]:
        """What moves on of a share, where its attempt was settled before: exactly the share, to whoever paid it."""
        attempt_id, energy_mj, gpu_us = share
        if attempt_id in self._in_flight or attempt_id in self._unmeasured:
            return []
        found = self._reader.find("energy", attempt_id)
        if found is None or not 0 <= found[0] < row.seq:
            return []
        # Of a posting without a text nobody can say whom it went to.
        posting = None if found[3] is None else DECODERS["energy"].decode(found[3])
        if posting is not None and posting.attempt_id != attempt_id:  # an index may say what its file's owner likes
            return []
        target = late[1][0] if len(late) > 1 else ""
        account = target.removeprefix(f"requests/{row.worker_id}/") if posting is None else posting.account
        legs = energy_legs(row.worker_id, account, energy_mj=energy_mj, gpu_us=gpu_us)
        return legs if late[: len(legs)] == legs else []

    # -- the tree

    def _grow(self, leaves: list[bytes]) -> None:
        """The tree takes them in; wherever it has the size of a checkpoint it must have its root."""
        tree, start = self._tree, self._tree.size
        while self._next is not None and self._next.size <= start + len(leaves):
            self._nodes += tree.extend(leaves[tree.size - start : self._next.size - start])
            self._compare(self._next)
            self._next = next(self._expected, None)
        self._nodes += tree.extend(leaves[tree.size - start :])
        if len(self._nodes) >= CHECKED_NODES:
            self._compare_nodes()

    def _compare_nodes(self) -> None:
        """With those that are stored, which proofs are made of."""
        for level in {level for level, _, _ in self._nodes}:
            places = [(place, node) for of_level, place, node in self._nodes if of_level == level]
            if self._reader.hashes(level, places[0][0], len(places)) != [node for _, node in places]:
                raise Fault(
                    f"stored nodes of level {level} from {places[0][0]} on are not those of the rows below them"
                )
        self._nodes.clear()

    def _checkpoints(self) -> Iterator[Checkpoint]:
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

    # -- the end

    def _finish(self) -> None:
        duplicate = self._reader.duplicate()
        if duplicate is not None:
            raise Fault(f"{duplicate[0]} {duplicate[1]} was booked twice")
        self._compacted.check()
        self.found.num_open_holds = len(self._holds)


def _nothing(row: Row) -> list[Leg]:
    """It says something and moves nothing."""
    return []


def _public_key(text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except (ValueError, AttributeError) as error:
        raise Fault(f"its public key: {error}") from None
