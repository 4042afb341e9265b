"""`jouleway ledger verify` and `copy`: what is sound is said, what is not ends with 7, and nothing is believed."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.ledger_reader import sqlite_url
from scheduler.accounting.receipts import make_receipt
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.ledger import read_notes, run_verify
from scheduler.commands.receipt import NOT_AUTHENTICATED
from scheduler.ledger_files import CheckpointKeeper
from tests.ledger_words import (
    LEDGER_ID,
    OTHER_SEED,
    SEED,
    STATEMENT,
    charge_of,
    execute,
    file_of,
    fill,
    hold_of,
    living,
    request_id,
)
from tests.scripted_link import posting_of

ID = request_id(1_000_001)
KEY, OTHER_KEY = (Signer(f"jouleway/{LEDGER_ID}", seed).public_key for seed in (SEED, OTHER_SEED))


class Case:
    """A ledger's file, its checkpoints in a folder elsewhere, a receipt and the public key in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = file_of(folder, 100)
        self.url = sqlite_url(self.file)
        self.first = Path(shutil.copy(self.file, folder / "first.db"))
        self.receipt = folder / "receipt.json"
        with living(self.url) as life:
            life.settlement.hold(hold_of(ID))
            life.settlement.charge(charge_of(f"{ID}-1"))
            life.settlement.post_energy("w-0", posting_of(f"{ID}-1"))
            life.commit(with_state=True)
            self.receipt.write_bytes(msgspec.json.encode(make_receipt(life.ledger, ID, statement=STATEMENT)))
            self.notes = [note for _, note in life.ledger.checkpoints()]
            self.size = life.ledger.size
        keeper = CheckpointKeeper(folder / "elsewhere")
        keeper.open(LEDGER_ID)
        for number, note in enumerate(self.notes):
            keeper(number, note)
        self.checkpoints = folder / "elsewhere" / f"{LEDGER_ID}.checkpoints"
        self.key = folder / "ledger.key.pub"
        self.key.write_text(f"{KEY}\n")

    def verify(self, source: str | None = None, **options: Any) -> ExitCode:
        values: dict[str, Any] = {"key": None, "checkpoints": [], "receipts": [], "as_json": False, **options}
        return run_verify(source or str(self.file), **values)

    def refused(self, source: str | None = None, **options: Any) -> CommandError:
        with pytest.raises(CommandError) as caught:
            self.verify(source, **options)
        return caught.value


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_sound_ledger_is_told_in_a_sentence(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """With everything that can be given: key as a file or as text, checkpoints, receipts."""
    for key in (str(case.key), str(KEY)):
        assert ExitCode.OK == case.verify(key=key, checkpoints=[case.checkpoints], receipts=[case.receipt])
        said = " ".join(capsys.readouterr().out.split())
        assert f"jouleway/{LEDGER_ID}: {case.size} rows are those that were signed; every one balances" in said
        assert "1 receipts are of this ledger" in said
        assert "NOT AUTHENTICATED" not in said


def test_without_a_key_it_says_so(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """An attacker could have signed it anew."""
    assert ExitCode.OK == case.verify()
    assert NOT_AUTHENTICATED.split()[:8] == capsys.readouterr().out.split()[-len(NOT_AUTHENTICATED.split()) :][:8]


def test_what_was_found_may_be_had_as_json(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts for programs; nothing else on standard output."""
    case.verify(key=str(KEY), checkpoints=[case.checkpoints], receipts=[case.receipt], as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (True, f"jouleway/{LEDGER_ID}", case.size, True, 0, 1) == tuple(
        told[name] for name in ("ok", "origin", "rows", "is_authenticated", "compacted_rows", "receipts")
    )
    assert told["checkpoints"] >= 2 * len(case.notes)
    case.verify(as_json=True)
    assert not json.loads(capsys.readouterr().out)["is_authenticated"]


def test_a_ledger_may_be_named_by_its_url(case: Case) -> None:
    """A file's too."""
    assert ExitCode.OK == case.verify(case.url)


def test_a_changed_row_is_named_and_the_exit_code_is_seven(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """In both forms."""
    execute(case.url, "UPDATE rows SET body = body || ' ' WHERE seq = 30")
    error = case.refused(key=str(KEY))
    assert (ExitCode.VERIFICATION, True) == (error.code, "row 30: was changed" in str(error))
    capsys.readouterr()
    case.refused(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (False, 30) == (told["ok"], told["row"])
    assert "was changed" in told["fault"]


@pytest.mark.parametrize("what", ["missing", "empty", "text", "folder", "another database", "truncated"])
def test_a_file_that_cannot_be_read_is_no_sound_ledger(case: Case, tmp_path: Path, what: str) -> None:
    """Seven as well: a ledger that was is not there."""
    path = tmp_path / "copy.db"
    match what:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no database" * 1_000)
        case "folder":
            path.mkdir()
        case "another database":
            execute(sqlite_url(path), "CREATE TABLE t (x INTEGER)")
        case "truncated":
            path.write_bytes(case.file.read_bytes()[:50_000])
    assert ExitCode.VERIFICATION == case.refused(str(path)).code


def test_a_server_that_does_not_answer_is_told_without_its_password(case: Case, tmp_path: Path) -> None:
    """Neither the URL that was given nor the error has it."""
    error = case.refused(f"postgresql://me:CANARY@/db?host={tmp_path}")
    assert (ExitCode.VERIFICATION, False, True) == (error.code, "CANARY" in str(error), "me:***@" in str(error))


def test_an_older_copy_is_told_by_the_checkpoints(case: Case, tmp_path: Path) -> None:
    """And by a receipt, whose checkpoint binds the whole ledger."""
    older = Path(shutil.copy(case.first, tmp_path / "older.db"))
    assert ExitCode.OK == case.verify(str(older), key=str(KEY))
    for options in ({"checkpoints": [case.checkpoints]}, {"receipts": [case.receipt]}):
        error = case.refused(str(older), key=str(KEY), **options)
        assert (ExitCode.VERIFICATION, True) == (error.code, "rolled back" in str(error))


def test_a_receipt_of_a_fork_is_no_receipt_of_this_ledger(case: Case, tmp_path: Path) -> None:
    """The same key, other rows: either the tree or the row says so."""
    fork = tmp_path / "fork"
    fork.mkdir()
    fill(sqlite_url(fork / "ledger.db"), 150, seed=5)
    error = case.refused(str(fork / "ledger.db"), key=str(KEY), receipts=[case.receipt])
    assert (ExitCode.VERIFICATION, True) == (error.code, "fork" in str(error))


def test_a_receipt_of_another_ledger_is_said_to_be(case: Case, tmp_path: Path) -> None:
    """Before anything else."""
    other = tmp_path / "other"
    other.mkdir()
    path = file_of(other, 30)
    execute(sqlite_url(path), "UPDATE ledger SET public_key = :key", key=str(OTHER_KEY))
    assert "is a receipt of another ledger" in str(case.refused(str(path), receipts=[case.receipt]))


def test_a_receipt_that_was_changed_is_refused(case: Case) -> None:
    """With what is wrong about it."""
    receipt = json.loads(case.receipt.read_text())
    receipt["summary"]["cost_nano"] = 0
    case.receipt.write_text(json.dumps(receipt))
    error = case.refused(receipts=[case.receipt])
    assert (ExitCode.VERIFICATION, True) == (error.code, "its summary is not what its rows say" in str(error))


@pytest.mark.parametrize(
    ("option", "content", "code", "words"),
    [
        ("key", "nonsense", ExitCode.USAGE, "--key: not a public key"),
        ("key", str(KEY).replace("+", "-"), ExitCode.USAGE, "--key: not a public key"),
        ("key", None, ExitCode.NOT_FOUND, "cannot be read"),
        ("checkpoints", None, ExitCode.NOT_FOUND, "cannot be read"),
        ("checkpoints", "nonsense", ExitCode.VERIFICATION, "a checkpoint kept elsewhere: not a checkpoint"),
        ("receipts", None, ExitCode.NOT_FOUND, "cannot be read"),
        ("receipts", "nonsense", ExitCode.VERIFICATION, "gave no receipt"),
        ("receipts", b"\xff\xfe", ExitCode.VERIFICATION, "gave no receipt"),
        ("receipts", "{}", ExitCode.VERIFICATION, "gave no receipt"),
    ],
)
def test_what_is_given_must_be_what_it_is_given_for(
    case: Case, tmp_path: Path, option: str, content: str | bytes | None, code: ExitCode, words: str
) -> None:
    """Each with its exit code."""
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    error = case.refused(**{option: str(path) if option == "key" else [path]})
    assert (code, True) == (error.code, words in str(error))


def test_another_key_is_not_the_ledgers(case: Case) -> None:
    """It names the one that signed."""
    assert f"it is signed by {KEY}, not by the key that was given" in str(case.refused(key=str(OTHER_KEY)))


def test_checkpoints_are_read_as_they_are_kept(case: Case) -> None:
    """Three line ends between them; blank ones at the ends do not matter."""
    assert case.notes == read_notes(case.checkpoints)
    case.checkpoints.write_text("\n\n\n\n" + "\n\n\n".join(note.strip() for note in case.notes))
    assert case.notes == read_notes(case.checkpoints)
    case.checkpoints.write_text("")
    assert [] == read_notes(case.checkpoints)
