"""`jouleway receipt` and `jouleway trace`: get the proof of one request, check it, find a text in it.

Called by ``scheduler.cli``. It must never believe what it was sent: everything is checked before it is shown.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.receipts import MAX_RECEIPT_BYTES, Receipt, check_receipt, matches
from scheduler.commands.control_plane import Listener, own_listener, read, send
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import print_json, print_lines, print_table

RECEIPTS_PATH = "/v1/jouleway/receipts/"
MAX_TEXT_BYTES = 256 << 20
NOT_AUTHENTICATED = (
    "NOT AUTHENTICATED: without --key this shows that the ledger agrees with itself, not who signed it; who has its "
    "signing key could have written it anew"
)


def run(
    request_id: str | None,
    *,
    check: Path | None,
    output: Path | None,
    key: str | None,
    url: str | None,
    config: Path | None,
    as_json: bool,
) -> ExitCode:
    """From a control plane or a file; checked, then shown."""
    if (request_id is None) == (check is None):
        raise CommandError("give a request id or --check FILE", code=ExitCode.USAGE)
    public_key = read_public_key(key)
    receipt = read_receipt(check) if check is not None else _fetch(request_id or "", own_listener(config, url))
    try:
        check_receipt(receipt, key=public_key)
        if request_id not in (None, receipt.request_id):
            raise ValueError(f"the receipt is of {receipt.request_id}")
    except ValueError as error:
        raise CommandError(f"{check or request_id}: {error}", code=ExitCode.VERIFICATION) from None
    if output is not None:
        try:
            output.write_bytes(msgspec.json.format(msgspec.json.encode(receipt)) + b"\n")
        except OSError as error:
            raise CommandError(f"{output} cannot be written: {error.strerror}") from None
    if as_json:
        print_json({**msgspec.to_builtins(receipt), "is_authenticated": public_key is not None})
    else:
        _show(receipt, is_authenticated=public_key is not None)
    return ExitCode.OK


def _fetch(request_id: str, listener: Listener) -> Receipt:
    path = RECEIPTS_PATH + request_id
    reply = asyncio.run(send(listener, path))
    if reply.status == 404:
        raise CommandError(
            f"{listener.url} has no receipt of {request_id}",
            code=ExitCode.NOT_FOUND,
            remedy="it is the x-request-id header of an answer; a tenant gets its own only",
        )
    read(listener, path, reply)
    return _receipt(reply.body, listener.url)


def _show(receipt: Receipt, *, is_authenticated: bool) -> None:
    told = receipt.summary
    state = "final" if receipt.is_final else "provisional: some energy is not measured yet"
    rows = [
        ("tenant, project, key", f"{told['tenant']}, {told['project'] or '-'}, {told['key_id'] or '-'}"),
        ("model, tier, data class", f"{told['model']}, {told['tier']}, {told['data_class']}"),
        ("price", f"{told['price'] or '-'}"),
        ("cost", f"{told['cost_nano'] / 1e9:.9f} {told['currency']}"),
    ]
    for attempt in told["attempts"]:
        measured = f"grade {attempt['grade']}, {attempt['policy']}" if attempt["is_measured"] else "predicted so far"
        rows += [
            (attempt["attempt_id"], f"{attempt['outcome']} on {attempt['worker_id']} ({attempt['zone'] or '-'})"),
            (
                "  tokens",
                f"{attempt['input_tokens']} in ({attempt['cached_tokens']} cached), {attempt['output_tokens']} out, "
                f"paid by the {attempt['payer']}",
            ),
            ("  energy", f"{attempt['energy_mj'] / 1e3:.3f} J, {attempt['gpu_us'] / 1e6:.3f} GPU-seconds ({measured})"),
        ]
    print_table(f"{receipt.request_id} ({state})", ("", ""), rows, numeric_from=2)
    print_lines([f"{len(receipt.rows)} rows, each proven to be in the tree that was signed; {receipt.statement}"])
    if not is_authenticated:
        print_lines([NOT_AUTHENTICATED])


def run_trace(path: Path, *, receipts: list[Path], key: str | None, as_json: bool) -> ExitCode:
    """Which of the receipts this text is the output or the input of; exit code 3 where of none."""
    public_key = read_public_key(key)
    text = read_file(path, MAX_TEXT_BYTES)
    found: list[dict[str, Any]] = []
    for each in receipts:
        receipt = read_receipt(each)
        try:
            check_receipt(receipt, key=public_key)
        except ValueError as error:
            raise CommandError(f"{each}: {error}", code=ExitCode.VERIFICATION) from None
        found += [{"receipt": str(each), "is": where} for where in matches(receipt, text)]
    if as_json:
        print_json({"found": found, "is_authenticated": public_key is not None})
    else:
        print_lines([f"{path} is {each['is']} ({each['receipt']})" for each in found])
    if not found:
        raise CommandError(f"{path}: no receipt given here is of exactly this text", code=ExitCode.NOT_FOUND)
    return ExitCode.OK


def read_public_key(key: str | None) -> PublicKey | None:
    """A key's text, or the file that holds it. Raises: CommandError."""
    if key is None:
        return None
    text = key if key.count("+") >= 2 else read_file(Path(key), 4096).decode("utf-8", "replace")
    try:
        return PublicKey.parse(text)
    except ValueError as error:
        raise CommandError(f"--key: {error}", code=ExitCode.USAGE) from None


def read_receipt(path: Path) -> Receipt:
    """Raises: CommandError."""
    return _receipt(read_file(path, MAX_RECEIPT_BYTES), str(path))


def _receipt(data: bytes, source: str) -> Receipt:
    try:
        return msgspec.json.decode(data, type=Receipt)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{source} gave no receipt: {error}", code=ExitCode.VERIFICATION) from None


def read_file(path: Path, max_bytes: int) -> bytes:
    """Raises: CommandError where it cannot be read, or is longer."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}", code=ExitCode.NOT_FOUND) from None
    if len(data) > max_bytes:
        raise CommandError(f"{path} has more than {max_bytes} bytes", code=ExitCode.USAGE)
    return data
