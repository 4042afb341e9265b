"""A ledger that only grew is told from one that was rolled back or forked, by whoever kept a receipt."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.ledger_load import Load
from benchmarks.recovery import core
from scheduler.accounting.checkpoints import Checkpoint, Signer
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.growth import Growth, check_growth, make_growth
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import sqlite_url
from scheduler.accounting.receipts import make_receipt
from scheduler.accounting.recovery import recover
from scheduler.commands import grew
from scheduler.commands.control_plane import Listener
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.http_client import Reply
from tests import directory_office
from tests.asgi_client import Asked, ask
from tests.directory_office import CALLERS, Office

SEED = b"\x07" * 32
ROUTE = "/v1/jouleway/checkpoint"


def grown(path: Path, seed: int, *groups: int) -> list[str]:
    """A ledger with so many more requests in each commit; its checkpoints after each."""
    ledger, notes = Ledger(sqlite_url(path), seed=SEED, new_ledger_id=lambda: "house"), []
    settlement, _ = recover(ledger, core(), statement="s", version="v")
    load = Load(settlement, seed=seed)
    for num in groups:
        load.requests(num)
        asyncio.run(settlement.commit())
        notes.append(ledger.head()["note"])
    ledger.close()
    return notes


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    grown(tmp_path / "ledger.db", 1, 3)
    opened = Ledger(sqlite_url(tmp_path / "ledger.db"), seed=SEED)
    yield opened
    opened.close()


# -- the proof


def test_a_ledger_that_grew_is_proven_to_have_grown(tmp_path: Path) -> None:
    """From each of its checkpoints, over many sizes, and from the newest to itself."""
    path = tmp_path / "ledger.db"
    notes = grown(path, 1, 1, 2, 130, 1, 400)
    ledger = Ledger(sqlite_url(path), seed=SEED)
    key = ledger.signer.public_key
    for note in notes:
        old = key.verify(note)
        growth = msgspec.json.decode(msgspec.json.encode(make_growth(ledger, old.size)), type=Growth)
        assert ledger.size == check_growth(growth, old, key=key).size
    nothing = make_growth(ledger, 0)
    assert ([], ledger.size) == (nothing.proof, key.verify(nothing.checkpoint).size)
    ledger.close()


def test_a_fork_is_found(tmp_path: Path) -> None:
    """The same key, the same beginning, and other rows behind it."""
    path, fork = tmp_path / "ledger.db", tmp_path / "fork.db"
    grown(path, 1, 5)
    shutil.copy(path, fork)
    old_note = grown(path, 2, 10)[-1]
    grown(fork, 3, 50)
    forked = Ledger(sqlite_url(fork), seed=SEED)
    key = forked.signer.public_key
    old = key.verify(old_note)
    with pytest.raises(ValueError, match=f"do not begin with the {old.size} that were signed: this is a fork"):
        check_growth(make_growth(forked, old.size), old, key=key)
    forked.close()


def test_a_ledger_that_was_rolled_back_is_found(ledger: Ledger) -> None:
    """It has fewer rows than were signed: there is nothing to prove, and its newest checkpoint says so."""
    key = ledger.signer.public_key
    old = Checkpoint(key.name, ledger.size + 5, b"\x01" * 32)
    growth = make_growth(ledger, old.size)
    assert [] == growth.proof
    with pytest.raises(ValueError, match="older, or was rolled back"):
        check_growth(growth, old, key=key)


def test_no_other_proof_is_one(ledger: Ledger) -> None:
    """A hash changed, missing, too many or unreadable, another size, another key."""
    key = ledger.signer.public_key
    old_size = ledger.size - 3
    tree = ledger._tree.of(old_size, ledger.hashes)
    old, growth = Checkpoint(key.name, old_size, tree.root()), make_growth(ledger, old_size)
    check_growth(growth, old, key=key)
    first, *rest = growth.proof
    for proof in ([first], rest, [*growth.proof, first], [rest[0], *rest], ["?", *rest], []):
        with pytest.raises(ValueError, match=r"fork|cannot be read"):
            check_growth(msgspec.structs.replace(growth, proof=proof), old, key=key)
    with pytest.raises(ValueError, match="is one from"):
        check_growth(msgspec.structs.replace(growth, from_size=1), old, key=key)
    stranger = Signer(key.name, b"\x08" * 32)
    stranger.public_key.key_hash = key.key_hash
    forged = msgspec.structs.replace(growth, checkpoint=stranger.sign(ledger.size, ledger._tree.root()))
    with pytest.raises(ValueError, match="signature is wrong"):
        check_growth(forged, old, key=key)


# -- the route


async def get(office: Office, query: str, *, caller: str, is_admin: bool = False) -> Asked:
    return await ask(office.admin if is_admin else office.relay, f"{ROUTE}{query}", key=CALLERS[caller]).finished()


async def test_whoever_has_a_key_gets_the_checkpoint(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both listeners the same; without a key nothing; a size that is none is refused."""
    monkeypatch.setattr(directory_office, "grown", lambda size: make_growth(ledger, size))
    office = Office()
    answers = [
        await get(office, "?from=2", caller=caller, is_admin=is_admin)
        for caller, is_admin in (("tenant", False), ("billing", True), ("read", True), ("admin", True))
    ]
    assert [200] * 4 == [asked.status for asked in answers]
    assert 1 == len({asked.body for asked in answers})
    assert {"checkpoint", "from", "proof"} == answers[0].json().keys()
    assert 0 == (await get(office, "", caller="tenant")).json()["from"]
    for caller in ("nobody", "stranger", "revoked tenant", "admin"):
        assert 401 == (await get(office, "", caller=caller)).status
    for query in ("?from=-1", "?from=x", "?from=1&from=2", "?to=1", "?from=99999999999999999"):
        assert 400 == (await get(office, query, caller="tenant")).status, query


async def test_a_ledger_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be asked again."""

    def fails(size: int) -> Growth:
        raise LedgerError("away")

    monkeypatch.setattr(directory_office, "grown", fails)
    asked = await get(Office(), "", caller="tenant")
    assert (503, "ledger_unavailable", "5") == (asked.status, asked.error()["code"], asked.headers["retry-after"])


# -- the command


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A receipt that was kept, and a control plane that answers from the ledger that it is given."""
    path = tmp_path / "ledger.db"
    grown(path, 1, 60)
    ledger = Ledger(sqlite_url(path), seed=SEED)
    request_id = next(row_id for _, kind, row_id, *_ in ledger.stored() if kind == "hold")
    receipt = make_receipt(ledger, request_id, statement="s")
    kept = tmp_path / "receipt.json"
    kept.write_bytes(msgspec.json.encode(receipt))
    (tmp_path / "key.pub").write_text(str(ledger.signer.public_key))
    ledger.close()

    async def send(listener: Listener, path: str) -> Reply:
        answering = Ledger(sqlite_url(tmp_path / served["from"]), seed=SEED)
        body = msgspec.json.encode(make_growth(answering, int(path.partition("from=")[2])))
        answering.close()
        return Reply(status=200, headers={}, body=body)

    served = {"from": "ledger.db"}
    monkeypatch.setenv("JOULEWAY_API_KEY", "jw-key")
    monkeypatch.setattr(grew, "send", send)
    return served


def test_the_command_says_that_it_grew(tmp_path: Path, served: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With the key that is trusted, or with a word that nobody was authenticated."""
    grown(tmp_path / "ledger.db", 2, 30)
    receipt = tmp_path / "receipt.json"
    for key in (None, str(tmp_path / "key.pub")):
        assert ExitCode.OK == grew.run([receipt], key=key, url="http://x", config=None, as_json=False)
        assert ("NOT AUTHENTICATED" in capsys.readouterr().out) == (key is None)
    assert ExitCode.OK == grew.run([receipt], key=None, url="http://x", config=None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (True, False) == (told["ok"], told["is_authenticated"])
    assert told["grew"][0]["rows_then"] < told["grew"][0]["rows_now"]


@pytest.mark.parametrize(("num", "words"), [(20, "rolled back"), (200, "this is a fork")])
def test_the_command_ends_with_7_on_another_ledger(tmp_path: Path, served: Any, num: int, words: str) -> None:
    """Of the same name and key."""
    grown(tmp_path / "fork.db", 9, num)
    served["from"] = "fork.db"
    with pytest.raises(CommandError, match=words) as found:
        grew.run([tmp_path / "receipt.json"], key=None, url="http://x", config=None, as_json=True)
    assert ExitCode.VERIFICATION == found.value.code
    (kept,) = tmp_path.glob("receipt.grew-*.json")
    assert str(kept) in found.value.remedy, "nobody is sent the evidence twice"
    assert msgspec.json.decode(kept.read_bytes(), type=Growth).checkpoint


def test_a_receipt_that_proves_nothing_is_refused_first(tmp_path: Path, served: Any) -> None:
    """Before anybody is asked."""
    told = json.loads((tmp_path / "receipt.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps({**told, "checkpoint": told["checkpoint"].replace("\n", "\n1", 1)}))
    with pytest.raises(CommandError) as found:
        grew.run([tmp_path / "bad.json"], key=None, url="http://x", config=None, as_json=True)
    assert ExitCode.VERIFICATION == found.value.code
