"""A receipt: every row of one request, each with the proof that it is in the signed tree; checked without the ledger.

Made by the API and `jouleway receipt`, checked by whoever holds one. It must never hold a text: of input and output it
has salted digests, which only who has the text can confirm.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import msgspec

from scheduler.accounting.checkpoints import PublicKey, base64_of, bytes_of
from scheduler.accounting.merkle import inclusion_proof, leaf_hash, root_of_inclusion
from scheduler.accounting.rows import OPERATOR, Charge, Energy, Hold, Row, decode

FORMAT = "jouleway-receipt/1"
MAX_RECEIPT_BYTES = 1 << 20


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """One row: its text as it was sealed, and the way from its leaf to the checkpoint's root."""

    seq: int
    body: str
    proof: list[str]
    """Base64, the lowest sibling first (RFC 9162, 2.1.3)."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """``summary`` is for people: it is told by the rows and compared with them."""

    format: str
    statement: str
    public_key: str
    request_id: str
    is_final: bool
    """False: some energy is not measured yet; ask again in a few seconds."""
    summary: dict[str, Any]
    rows: list[Proven]
    checkpoint: str


class Source(Protocol):
    """What is needed of a ledger."""

    def hashes(self, level: int, start: int, count: int) -> list[bytes]: ...

    def head(self) -> dict[str, Any]: ...

    def of_request(self, request_id: str) -> list[tuple[int, str, str, str | None, bytes]]: ...


class OfAnotherTenant(Exception):
    """The request is not this tenant's: nobody but the audit log may tell it from one that never was."""


def make_receipt(source: Source, request_id: str, *, statement: str, tenant: str | None = None) -> Receipt | None:
    """Of everything durable; None where nothing is known of the request. Raises: OfAnotherTenant."""
    stored = [each for each in source.of_request(request_id) if each[3] is not None]
    rows = [decode(each[3] or "") for each in stored]
    owner = next((row.tenant for row in rows if isinstance(row, Hold | Charge)), None)
    if owner is None:
        return None
    if tenant not in (None, owner):
        raise OfAnotherTenant
    head = source.head()
    size = head["size"]
    proven = [
        Proven(seq=seq, body=body or "", proof=[base64_of(each) for each in inclusion_proof(seq, size, source.hashes)])
        for seq, _, _, body, _ in stored
        if seq < size
    ]
    rows = rows[: len(proven)]
    return Receipt(
        format=FORMAT,
        statement=statement,
        public_key=head["public_key"],
        request_id=request_id,
        is_final=_is_final(rows),
        summary=summary_of(rows),
        rows=proven,
        checkpoint=head["note"],
    )


def check_receipt(receipt: Receipt, *, key: PublicKey | None = None) -> None:
    """Raises: ValueError, which names what is wrong. ``key`` None: the receipt's own, which proves nothing of who."""
    if receipt.format != FORMAT:
        raise ValueError(f"this is no receipt of the form {FORMAT}")
    if key is not None and str(key) != receipt.public_key:
        raise ValueError(f"it is of the ledger of {receipt.public_key}, not of the key that was given")
    checkpoint = PublicKey.parse(receipt.public_key).verify(receipt.checkpoint)
    rows: list[Row] = []
    for proven in receipt.rows:
        try:
            row = decode(proven.body)
            proof = [bytes_of(each) for each in proven.proof]
        except (msgspec.DecodeError, ValueError):
            raise ValueError(f"row {proven.seq} cannot be read") from None
        root = root_of_inclusion(leaf_hash(proven.body.encode()), proven.seq, checkpoint.size, proof)
        if root != checkpoint.root:
            raise ValueError(f"row {proven.seq} is not in the tree that was signed")
        if row.seq != proven.seq or not _is_of(row, receipt.request_id):
            raise ValueError(f"row {proven.seq} is not of this request")
        if rows and row.seq <= rows[-1].seq:
            raise ValueError(f"row {proven.seq} is not behind the one before: it would count twice")
        rows.append(row)
    if not any(isinstance(row, Hold | Charge) for row in rows):
        raise ValueError("it has neither a hold nor a charge")
    if receipt.is_final and not _is_final(rows):
        raise ValueError("it says that it is final, and energy of an attempt is missing")
    if msgspec.to_builtins(receipt.summary) != msgspec.to_builtins(summary_of(rows)):
        raise ValueError("its summary is not what its rows say")


def matches(receipt: Receipt, text: bytes) -> list[str]:
    """Where this text stands by the salted digests: ``output 0 of req-…-1``; empty = it is not of this request."""
    found = []
    for proven in receipt.rows:
        row = decode(proven.body)
        if not isinstance(row, Charge) or not row.salt:
            continue
        digest = hashlib.sha256(bytes.fromhex(row.salt) + text).hexdigest()
        found += [f"output {n} of {row.attempt_id}" for n, each in enumerate(row.output_digests) if each == digest]
        found += [f"input of {row.attempt_id}"] if digest == row.input_digest else []
    return found


def summary_of(rows: list[Row]) -> dict[str, Any]:
    """What the request was, used and costs; amounts are integers of the ledger's units."""
    holds = [row for row in rows if isinstance(row, Hold)]
    charges = [row for row in rows if isinstance(row, Charge)]
    energy = {row.attempt_id: row for row in rows if isinstance(row, Energy)}
    first: Hold | Charge | None = holds[0] if holds else charges[0] if charges else None
    told: dict[str, Any] = {}
    if first is not None:
        told = {
            "tenant": first.tenant,
            "project": first.project,
            "key_id": first.key_id,
            "task": first.task,
            "model": first.model,
            "tier": first.tier,
            "data_class": first.data_class,
            "currency": first.rates.currency,
            "price": first.rates.version,
        }
    told["attempts"] = [_attempt(charge, energy.get(charge.attempt_id)) for charge in charges]
    paid = [charge for charge in charges if charge.account != OPERATOR]
    told["cost_nano"] = sum(charge.cost_nano for charge in paid) + sum(
        energy[charge.attempt_id].cost_nano for charge in paid if charge.attempt_id in energy
    )
    return told


def _attempt(charge: Charge, energy: Energy | None) -> dict[str, Any]:
    names = (
        "attempt_id", "worker_id", "zone", "payer", "outcome", "cause", "input_tokens", "cached_tokens",
        "output_tokens", "reasoning_tokens", "image_tokens", "audio_tokens", "input_bytes", "output_bytes",
        "recomputed_tokens", "rejected_tokens", "overrun_tokens", "cost_nano", "tokenizer", "salt", "input_digest",
        "output_digests",
    )  # fmt: skip
    told = {name: getattr(charge, name) for name in names}
    if energy is None:
        return {**told, "energy_mj": charge.provisional_mj, "gpu_us": charge.provisional_gpu_us, "is_measured": False}
    return {
        **told,
        "energy_mj": energy.energy_mj,
        "gpu_us": energy.gpu_us,
        "carbon_ug": energy.carbon_ug,
        "grade": energy.grade.value,
        "policy": energy.policy,
        "is_complete": energy.complete,
        "is_measured": True,
    }


def _is_final(rows: list[Row]) -> bool:
    """Something was charged, and every charge has its energy."""
    charged = {row.attempt_id for row in rows if isinstance(row, Charge)}
    return bool(charged) and charged <= {row.attempt_id for row in rows if isinstance(row, Energy)}


def _is_of(row: Row, request_id: str) -> bool:
    return row.row_id == request_id or row.row_id.rpartition("-")[0] == request_id
