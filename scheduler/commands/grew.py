"""`jouleway ledger grew`: does the running ledger still begin with what receipts of mine were signed on.

Called by ``scheduler.cli``. It must never believe what it was sent: everything is checked before it is shown.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.growth import Growth, check_growth
from scheduler.accounting.receipts import check_receipt
from scheduler.commands.control_plane import Listener, own_listener, read_words, send
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import print_json, print_lines
from scheduler.commands.receipt import NOT_AUTHENTICATED, read_public_key, read_receipt

CHECKPOINT_PATH = "/v1/jouleway/checkpoint"


def run(receipts: list[Path], *, key: str | None, url: str | None, config: Path | None, as_json: bool) -> ExitCode:
    """Exit code 7 at the first receipt on which the ledger does not build."""
    public_key, listener, sizes = read_public_key(key), own_listener(config, url), []
    for path in receipts:
        receipt = read_receipt(path)
        growth: Growth | None = None
        try:
            check_receipt(receipt, key=public_key)
            signed_by = PublicKey.parse(receipt.public_key)
            old = signed_by.verify(receipt.checkpoint)
            growth = _fetch(listener, old.size)
            new = check_growth(growth, old, key=signed_by)
        except ValueError as error:
            raise CommandError(f"{path}: {error}", code=ExitCode.VERIFICATION, remedy=_remedy(path, growth)) from None
        sizes.append((path, old.size, new.size))
    if as_json:
        told = [{"receipt": str(path), "rows_then": then, "rows_now": now} for path, then, now in sizes]
        print_json({"ok": True, "grew": told, "is_authenticated": public_key is not None})
    else:
        print_lines([f"{path}: the {now} rows of now begin with the {then} of then" for path, then, now in sizes])
        if public_key is None:
            print_lines([NOT_AUTHENTICATED])
    return ExitCode.OK


def _remedy(path: Path, growth: Growth | None) -> str:
    """What was sent is the evidence, and nobody sends it twice."""
    if growth is None:
        return "keep the receipt"
    kept = path.with_name(f"{path.stem}.grew-{time.time_ns()}.json")
    try:
        kept.write_bytes(msgspec.json.encode(growth))
    except OSError as error:
        return f"keep the receipt, and what was sent: {growth.checkpoint!r} ({kept}: {error.strerror})"
    return f"keep the receipt, and {kept}: what was sent"


def _fetch(listener: Listener, from_size: int) -> Growth:
    path = f"{CHECKPOINT_PATH}?from={from_size}"
    reply = asyncio.run(send(listener, path))
    read_words(listener, path, reply)
    try:
        return msgspec.json.decode(reply.body, type=Growth)
    except msgspec.DecodeError as error:
        raise CommandError(f"{listener.url} gave no checkpoint: {error}", code=ExitCode.VERIFICATION) from None
