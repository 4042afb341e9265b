"""`jouleway ledger verify`: what a ledger says is checked, offline and without trust.

Called by ``scheduler.cli``. It must never change a ledger.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerInUse, LedgerMissing
from scheduler.accounting.ledger_copy import copy_ledger
from scheduler.accounting.ledger_reader import Reader, shown_url, sqlite_url
from scheduler.accounting.merkle import leaf_hash
from scheduler.accounting.receipts import Receipt, check_receipt
from scheduler.accounting.rows import Row, decode
from scheduler.accounting.verify import Fault, Verified, verify
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import print_json, print_lines
from scheduler.commands.receipt import NOT_AUTHENTICATED, read_file, read_public_key, read_receipt

MAX_CHECKPOINT_BYTES = 64 << 20


def open_reader(source: str) -> Reader:
    """A ledger by its file or URL. Raises: LedgerError."""
    return Reader(source if "://" in source else sqlite_url(Path(source).absolute()))


@contextmanager
def reading(source: str) -> Iterator[Reader]:
    """For a command that adds a ledger up. Raises: CommandError, 3 where there is none, 7 where it is damaged."""
    try:
        reader = open_reader(source)
        try:
            yield reader
        finally:
            reader.close()
    except LedgerMissing as error:
        raise CommandError(str(error), code=ExitCode.NOT_FOUND) from None
    except LedgerBroken as error:
        raise CommandError(str(error), code=ExitCode.VERIFICATION, remedy="jouleway ledger verify") from None
    except LedgerError as error:
        raise CommandError(str(error)) from None


def rows_of(reader: Reader, kinds: frozenset[str]) -> Iterator[Row]:
    """Its rows of some kinds, as far as they still have their texts. Raises: LedgerBroken."""
    for seq, kind, _, body, _ in reader.stored():
        if kind in kinds and body is not None:
            try:
                row = decode(body)
            except (msgspec.DecodeError, TypeError):
                raise LedgerBroken(f"{reader.url}: row {seq} cannot be read") from None
            yield row


def run_copy(source: str, target: str, *, as_json: bool) -> ExitCode:
    """Copied, then verified."""
    from_url, to_url = (each if "://" in each else sqlite_url(Path(each).absolute()) for each in (source, target))
    try:
        with _Progress(is_silent=as_json) as on_progress:
            size = copy_ledger(from_url, to_url, on_progress=on_progress)
        reader = Reader(to_url)
        try:
            verify(reader)
        finally:
            reader.close()
    except LedgerMissing as error:
        raise CommandError(str(error), code=ExitCode.NOT_FOUND) from None
    except LedgerInUse as error:
        raise CommandError(str(error), code=ExitCode.UNAVAILABLE) from None
    except Fault as error:
        raise CommandError(f"{target}: {error}", code=ExitCode.VERIFICATION) from None
    except LedgerError as error:
        raise CommandError(str(error)) from None
    if as_json:
        print_json({"ok": True, "rows": size})
    else:
        print_lines([f"{size} rows are copied and verified; put {source} away: two open copies would be a fork"])
    return ExitCode.OK


def run_verify(
    source: str, *, key: str | None, checkpoints: list[Path], receipts: list[Path], as_json: bool
) -> ExitCode:
    """Exit code 7 at the first thing that is wrong."""
    public_key = read_public_key(key)
    notes = [note for path in checkpoints for note in read_notes(path)]
    named = [(path, read_receipt(path)) for path in receipts]
    began_s = time.perf_counter()
    try:
        reader = open_reader(source)
        try:
            for path, receipt in named:
                _check_receipt(path, receipt, reader, public_key)
            # What its checkpoint says of the tree binds the whole ledger, not these rows alone.
            notes += [receipt.checkpoint for _, receipt in named]
            with _Progress(is_silent=as_json) as on_progress:
                found = verify(reader, key=public_key, checkpoints=notes, on_progress=on_progress)
            for path, receipt in named:
                _compare_rows(path, receipt, reader)
        finally:
            reader.close()
    except (Fault, LedgerError) as error:
        if as_json:
            seq = error.seq if isinstance(error, Fault) else None
            print_json({"ok": False, "fault": str(error), "row": seq})
        name = shown_url(source) if "://" in source else source
        raise CommandError(f"{name}: {error}", code=ExitCode.VERIFICATION) from None
    _print_verified(found, took_s=time.perf_counter() - began_s, num_receipts=len(receipts), as_json=as_json)
    return ExitCode.OK


def read_notes(path: Path) -> list[str]:
    """Checkpoints of a file, three line ends between them."""
    text = read_file(path, MAX_CHECKPOINT_BYTES).decode("utf-8", "replace")
    return [f"{note.strip(chr(10))}\n" for note in text.split("\n\n\n") if note.strip()]


def _check_receipt(path: Path, receipt: Receipt, reader: Reader, key: PublicKey | None) -> None:
    if receipt.public_key != reader.head()["public_key"]:
        raise Fault(f"{path} is a receipt of another ledger")
    try:
        check_receipt(receipt, key=key)
    except ValueError as error:
        raise Fault(f"{path}: {error}") from None


def _compare_rows(path: Path, receipt: Receipt, reader: Reader) -> None:
    """By their leaves, which stay when texts are compacted."""
    for proven in receipt.rows:
        if reader.hashes(0, proven.seq, 1) != [leaf_hash(proven.body.encode())]:
            raise Fault(f"{path}: this row is another one in the ledger", proven.seq)


def _print_verified(found: Verified, *, took_s: float, num_receipts: int, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "ok": True,
                "origin": found.origin,
                "rows": found.num_rows,
                "is_authenticated": found.is_authenticated,
                "checkpoints": found.num_checkpoints,
                "compacted_rows": found.num_compacted,
                "open_holds": found.num_open_holds,
                "receipts": num_receipts,
                "took_s": round(took_s, 3),
            }
        )
        return
    per_s = found.num_rows / took_s if took_s else 0.0
    print_lines(
        [
            f"{found.origin}: {found.num_rows} rows are those that were signed; every one balances "
            f"({found.num_checkpoints} checkpoints, {found.num_compacted} rows compacted, {found.num_open_holds} holds "
            f"open, {took_s:.1f} s, {per_s:,.0f} rows/s)"
        ]
    )
    if num_receipts:
        print_lines([f"{num_receipts} receipts are of this ledger"])
    if not found.is_authenticated:
        print_lines([NOT_AUTHENTICATED])


class _Progress:
    """A bar on standard error where somebody watches."""

    def __init__(self, *, is_silent: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("rows"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=is_silent or not console.is_terminal,
        )
        self._task = self._bar.add_task("rows", total=None)

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda done, size: self._bar.update(self._task, completed=done, total=size)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
