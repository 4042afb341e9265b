"""What verify can tell of rows without a text: which there are, that compactions say so, and what they left to others.

Used by ``scheduler.accounting.verify``. What a row follows may be compacted. Its name stays, which nobody signed; so
what rows take of what cannot be seen must also be what the sums of the compactions left there. Memory grows with
tenants and workers.
"""

from __future__ import annotations

from bisect import bisect_right

from scheduler.accounting.errors import Fault
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.postings import GPU_MICROSECONDS, INPUT, MILLIJOULES, OUTPUT
from scheduler.accounting.row_checks import hold_in
from scheduler.accounting.rows import Charge, Daily, Energy, Hold, Void, request_id_of


class CompactedRows:
    """Filled in as verify goes by; asks the ledger only where something is missing."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._blanks: list[list[int]] = []
        """Ranges of rows without their text."""
        self._said: list[Daily] = []
        self._taken: dict[tuple[str, str], int] = {}
        """By account and unit: what rows took of what compacted rows put there."""

    def add(self, seq: int) -> None:
        """This row has no text."""
        if self._blanks and self._blanks[-1][1] == seq:
            self._blanks[-1][1] = seq + 1
        else:
            self._blanks.append([seq, seq + 1])

    def add_sums(self, row: Daily) -> None:
        """A compaction said that texts may go. Raises: Fault."""
        if not 0 <= row.from_seq < row.to_seq <= row.seq:
            raise Fault(f"sums up rows {row.from_seq} to {row.to_seq - 1}, which are not all before it", row.seq)
        self._said.append(row)

    def seq_of(self, kind: str, row_id: str) -> int | None:
        """Of the row of this name, where it has no text any more."""
        found = self._reader.find(kind, row_id) if self._blanks else None
        return None if found is None or found[3] is not None else found[0]

    def hold_of(self, row: Charge | Void, *, from_seq: int = 0) -> Hold | None:
        """The hold that a row takes from, where that may be compacted, and is not one of before ``from_seq``."""
        seq = self.seq_of("hold", row.request_id)
        hold = None if seq is None or seq < from_seq else hold_in(row)
        if hold is not None:
            account = f"held/{row.tenant}"
            self._take(account, INPUT, hold.input_tokens)
            self._take(account, OUTPUT, hold.output_tokens)
            self._take(account, hold.rates.currency, hold.cost_nano)
        return hold

    def may_give(self, row: Energy, energy_mj: int, gpu_us: int) -> bool:
        """Whether windows that are compacted may have given a posting what is beyond these: of an attempt whose windows
        are all behind a hold that can be seen there is none.
        """
        more_mj, more_us = row.energy_mj - energy_mj, row.gpu_us - gpu_us
        found = self._reader.find("hold", request_id_of(row.attempt_id)) if self._blanks else None
        if not self._blanks or more_mj < 0 or more_us < 0 or (found is not None and found[3] is not None):
            return False
        self._take(f"in_flight/{row.worker_id}", MILLIJOULES, more_mj)
        self._take(f"in_flight/{row.worker_id}", GPU_MICROSECONDS, more_us)
        return True

    def check(self) -> None:
        """Every row without a text is in a compaction, a compaction took all of its rows or none, and nobody took more
        than these left. Raises: Fault.
        """
        said = sorted(self._said, key=lambda each: each.from_seq)
        starts = [each.from_seq for each in said]
        gone = dict.fromkeys(starts, 0)
        for start, end in self._blanks:
            seq = start
            while seq < end:
                place = bisect_right(starts, seq) - 1
                if place < 0 or seq >= said[place].to_seq:
                    raise Fault("has lost its text, and no compaction says so", seq)
                until = min(end, said[place].to_seq)
                gone[starts[place]] += until - seq
                seq = until
        left = dict.fromkeys(self._taken, 0)
        for each in said:
            if gone[each.from_seq] not in (0, each.num_rows):
                raise Fault(f"says that {each.num_rows} texts went, and {gone[each.from_seq]} did", each.seq)
            for account, unit, amount in each.legs if gone[each.from_seq] else ():
                if (account, unit) in left:
                    left[account, unit] += amount
        for (account, unit), amount in self._taken.items():
            if amount > left[account, unit]:
                raise Fault(
                    f"rows take {amount} {unit} from {account}, where compacted rows left {left[account, unit]}"
                )

    def _take(self, account: str, unit: str, amount: int) -> None:
        self._taken[account, unit] = self._taken.get((account, unit), 0) + amount
