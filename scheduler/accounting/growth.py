"""Whether a ledger only grew: what was signed once is still the beginning of what is signed now (RFC 9162, 2.1.4).

Made by the API, checked by `jouleway ledger grew` for whoever kept a receipt. It must never know a row.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from scheduler.accounting.checkpoints import Checkpoint, PublicKey, base64_of, bytes_of
from scheduler.accounting.merkle import consistency_proof, is_consistent

MAX_GROWTH_BYTES = 64 << 10
MAX_SIZE = 1 << 48


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """The newest checkpoint, and the way to it from the tree of ``from_size`` rows."""

    checkpoint: str
    from_size: int = msgspec.field(name="from")
    proof: list[str]
    """Base64, as RFC 9162 orders it; empty where there is nothing to prove: from 0, or from more than there is."""


class Source(Protocol):
    """What is needed of a ledger."""

    def hashes(self, level: int, start: int, count: int) -> list[bytes]: ...

    def head(self) -> dict[str, Any]: ...


def make_growth(source: Source, from_size: int) -> Growth:
    """Of everything durable."""
    head = source.head()
    is_part = 0 < from_size <= head["size"]
    proof = consistency_proof(from_size, head["size"], source.hashes) if is_part else []
    return Growth(checkpoint=head["note"], from_size=from_size, proof=[base64_of(each) for each in proof])


def check_growth(growth: Growth, old: Checkpoint, *, key: PublicKey) -> Checkpoint:
    """The newer checkpoint. Raises: ValueError, which says what does not hold: then the two are the proof of it."""
    new = key.verify(growth.checkpoint)
    if growth.from_size != old.size:
        raise ValueError(f"the proof is one from {growth.from_size} rows, not from {old.size}")
    if new.size < old.size:
        raise ValueError(f"it had {old.size} rows and has {new.size} now: it is older, or was rolled back")
    try:
        proof = [bytes_of(each) for each in growth.proof]
    except ValueError:
        raise ValueError("the proof cannot be read") from None
    if old.size and not is_consistent(old.size, old.root, new.size, new.root, proof):
        raise ValueError(
            f"the {new.size} rows of now do not begin with the {old.size} that were signed: this is a fork, or the "
            "proof is a wrong one"
        )
    return new
