"""A receipt: every row of one request, each with the proof that it is in the signed tree; checked without the ledger.

Made by the API and `jouleway receipt`, checked by whoever holds one. It must never hold a text: of input and output it
has salted digests, which only who has the text can confirm.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import msgspec

from scheduler.accounting.checkpoints import PublicKey, base64_of, bytes_of
from scheduler.accounting.merkle import inclusion_proof, leaf_hash, root_of_inclusion
from scheduler.accounting.postings import CACHED, INPUT, OUTPUT, differences, hold_legs, void_legs
from scheduler.accounting.row_checks import (
    MEASURED_BEFORE,
    NO_HOLD,
    fault_of_charge,
    fault_of_energy,
    legs_of_charge,
    legs_of_energy,
)
from scheduler.accounting.rows import OPERATOR, Charge, Correction, Energy, Hold, Row, Void, decode, request_id_of
from workers.digests import ASKED_FIELDS, canonical_json, digest_of

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
    """Of everything durable; None where nothing is known of the request, or only a part any more (compacted): it could
    not be checked. Raises: OfAnotherTenant.
    """
    stored = source.of_request(request_id)
    if any(body is None for _, _, _, body, _ in stored):
        return None
    rows = [decode(body or "") for _, _, _, body, _ in stored]
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
    _check_amounts(rows)
    if receipt.is_final and not _is_final(rows):
        raise ValueError("it says that it is final, and energy of an attempt is missing")
    if msgspec.to_builtins(receipt.summary) != msgspec.to_builtins(summary_of(rows)):
        raise ValueError("its summary is not what its rows say")


def _check_amounts(rows: list[Row]) -> None:
    """Each row is what the rows before it make of it, as ``verify`` has it of the whole ledger. Raises: ValueError."""
    hold: Hold | None = None
    charges: dict[str, Charge] = {}
    names: set[tuple[str, str]] = set()
    for row in rows:
        words, legs = "", row.legs
        if (row.kind, row.row_id) in names:
            raise ValueError(f"row {row.seq}: is there twice: {row.kind} {row.row_id}")
        names.add((row.kind, row.row_id))
        match row:
            case Hold():
                hold, legs = row, hold_legs(row)
            case Void() if hold is not None:
                legs = void_legs(hold)
                hold = None
            case Void():
                words = "gives back a hold that is not there"
            case Charge():
                charges[row.attempt_id] = row
                words = MEASURED_BEFORE if ("energy", row.attempt_id) in names else fault_of_charge(row, hold)
                legs = legs_of_charge(row, hold)
                if row.account != OPERATOR:
                    words, hold = words or ("" if hold else NO_HOLD), None
            case Energy():
                charge = charges.get(row.attempt_id)
                words = fault_of_energy(row, OPERATOR if charge is None else charge.account, charge)
                legs = legs_of_energy(row)
            case Correction():  # whatever puts it right
                words = "does not balance" if differences(row.legs) else _fault_of_units(row, rows)
        if words or row.legs != legs:
            raise ValueError(f"row {row.seq}: {words or 'moves something else than it says'}")


def _fault_of_units(correction: Correction, rows: list[Row]) -> str:
    """The sum of a receipt is in the currency of its price: nothing may be billed beside it."""
    units = {INPUT, CACHED, OUTPUT, *(row.rates.currency for row in rows if isinstance(row, Hold | Charge))}
    is_beside = any(account.startswith("used/") and unit not in units for account, unit, _ in correction.legs)
    return "puts right another currency than its request was charged in" if is_beside else ""


def matches(receipt: Receipt, text: bytes) -> list[str]:
    """Where this text stands by the salted digests: ``output 0 of req-…-1``; empty = it is not of this request."""
    found = []
    for proven in receipt.rows:
        row = decode(proven.body)
        if not isinstance(row, Charge) or not row.salt:
            continue
        salt = bytes.fromhex(row.salt)
        digest = digest_of(salt, text)
        found += [f"output {n} of {row.attempt_id}" for n, each in enumerate(row.output_digests) if each == digest]
        if row.input_digest in (digest, *(digest_of(salt, each) for each in _asked_forms(text))):
            found.append(f"input of {row.attempt_id}")
    return found


def _asked_forms(text: bytes) -> list[bytes]:
    """RFC 8785's form of what may have been asked with it: of the text as a prompt, of JSON as it is in a body, of a
    whole body.
    """
    forms = []
    with contextlib.suppress(ValueError, RecursionError, OverflowError):  # not UTF-8, no JSON, no number of JSON
        forms.append(canonical_json(text.decode()))
        asked = msgspec.json.decode(text)
        forms.append(canonical_json(asked))
        if isinstance(asked, dict):
            what = next((asked[name] for name in ASKED_FIELDS if asked.get(name) is not None), None)
            forms.append(canonical_json(what))
    return forms


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
    corrections = [row for row in rows if isinstance(row, Correction)]
    if first is not None and corrections:
        used, currency = f"used/{first.tenant}", first.rates.currency
        told["corrections"] = [_correction(row, used, currency) for row in corrections]
        told["cost_nano"] += sum(each["cost_nano"] for each in told["corrections"])
    return told


def _correction(row: Correction, used: str, currency: str) -> dict[str, Any]:
    cost_nano = sum(amount for account, unit, amount in row.legs if account == used and unit == currency)
    return {"correction_id": row.correction_id, "of_seq": row.of_seq, "reason": row.reason, "cost_nano": cost_nano}


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
    """A request may be named as another's attempt is: what an id is of, its kind says."""
    match row:
        case Hold() | Void():
            return row.request_id == request_id
        case Charge() | Energy():
            return request_id_of(row.attempt_id) == request_id
        case Correction():
            return request_id in (row.correction_id, request_id_of(row.correction_id))
    return False
