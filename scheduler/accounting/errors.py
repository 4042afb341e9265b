"""What can go wrong with a ledger, in words for an operator: what it was, and what to do."""

from __future__ import annotations


class LedgerError(Exception):
    """The ledger cannot be used; the text says why and names the remedy."""


class LedgerMissing(LedgerError):
    """There is no such file."""


class LedgerInUse(LedgerError):
    """Another control plane writes it."""


class LedgerLost(LedgerError):
    """Another control plane has taken it over: nothing of ours may be written any more."""


class LedgerRefused(LedgerError):
    """The database has answered, and does not take these rows: another try, or another place, does not help."""


class LedgerBroken(LedgerError):
    """What is stored is not what was written."""


class Fault(Exception):
    """The first thing that is wrong, and in which row."""

    def __init__(self, words: str, seq: int | None = None) -> None:
        super().__init__(words if seq is None else f"row {seq}: {words}")
        self.seq = seq
