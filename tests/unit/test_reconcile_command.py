"""`jouleway reconcile`: figures of a ledger as a table or as JSON; exit code 7 where something has no source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler.accounting.journal import Journal
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import sqlite_url
from scheduler.accounting.settlement import Settlement
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.reconcile import run
from tests.ledger_words import execute
from tests.scripted_link import window_of

CONFIG = """
state_dir: state
models: {m: {normalizer: none}}
workers: [{name: w, engine: simulated, model: m}]
tenants: [{name: t}]
generate_keys: true
"""


async def ledger_of(path: Path, *counters_mj: int) -> None:
    """One window a day from 2026-11-01 on, 73 mJ each; the counter as it is given."""
    ledger = Ledger(sqlite_url(path), seed=b"\x01" * 32)
    now_s = 1_793_491_200.0
    settlement = Settlement(journal=Journal(ledger, unix_clock=lambda: now_s))
    for number, counter_mj in enumerate(counters_mj, 1):
        settlement.window("w-0", window_of(window=number, counter_mj=counter_mj), number=number)
        now_s += 86_400
    await settlement.commit()
    ledger.close()


async def test_a_sound_ledger_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table, and for programs; a period is one of UTC."""
    path = tmp_path / "ledger.db"
    await ledger_of(path, 1_000, 1_073, 1_146)
    assert ExitCode.OK == run(str(path), config=None, from_text=None, to_text=None, as_json=False)
    assert "w-0: 3 windows" in capsys.readouterr().out
    period = {"from_text": "2026-11-02T00:00:00Z", "to_text": "2026-11-03T00:00:00Z"}
    assert ExitCode.OK == run(str(path), config=None, **period, as_json=True)
    (worker,) = json.loads(capsys.readouterr().out)["workers"]
    assert ("w-0", 1, 1_000, 1_073, 73) == tuple(
        worker[name] for name in ("worker_id", "num_windows", "first_counter_mj", "last_counter_mj", "metered_mj")
    )
    assert (0, 0, 0) == tuple(worker[f"unexplained_{name}"] for name in ("counter_mj", "mj", "tokens"))


@pytest.mark.parametrize("as_json", [True, False])
async def test_what_has_no_source_ends_with_7(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    """After the figures are shown; the worker is named."""
    path = tmp_path / "ledger.db"
    await ledger_of(path, 1_000, 1_080)
    with pytest.raises(CommandError, match="unexplained differences on w-0") as found:
        run(str(path), config=None, from_text=None, to_text=None, as_json=as_json)
    assert ExitCode.VERIFICATION == found.value.code
    assert ('"unexplained_counter_mj": 7' if as_json else "7 + 0 mJ") in capsys.readouterr().out


async def test_the_ledger_of_a_configuration_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the configuration keeps it; either that or a file."""
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    await ledger_of(tmp_path / "state" / "ledger.db", 1_000)
    assert ExitCode.OK == run(None, config=config, from_text=None, to_text=None, as_json=True)
    for source in (None, "x.db"):
        with pytest.raises(CommandError, match="a ledger's file or --config") as found:
            run(source, config=config if source else None, from_text=None, to_text=None, as_json=True)
        assert ExitCode.USAGE == found.value.code


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    """No traceback; a file that is not there has its own exit code."""
    (tmp_path / "text").write_text("no database, but a long enough text " * 100)
    for name, words, code in (
        ("none.db", "there is no such file", ExitCode.NOT_FOUND),
        ("text", "file is not a database", ExitCode.FAILURE),
    ):
        with pytest.raises(CommandError, match=words) as found:
            run(str(tmp_path / name), config=None, from_text=None, to_text=None, as_json=True)
        assert code == found.value.code


def test_a_configuration_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    """Its URL lies in a file that is open to others."""
    config, url = tmp_path / "c.yaml", tmp_path / "url"
    config.write_text(f"{CONFIG}ledger: {{url_file: url}}\n")
    url.write_text("sqlite:////a.db\n")
    url.chmod(0o644)
    with pytest.raises(CommandError, match=r"ledger\.url_file") as found:
        run(None, config=config, from_text=None, to_text=None, as_json=True)
    assert ExitCode.USAGE == found.value.code


@pytest.mark.parametrize("body", ["'{\"no row'", "7"])
async def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, body: str) -> None:
    """With the exit code of a ledger that is not what was signed, and whom to ask next."""
    path = tmp_path / "ledger.db"
    await ledger_of(path, 1_000, 1_073)
    execute(sqlite_url(path), f"UPDATE rows SET body = {body} WHERE seq = 1")
    with pytest.raises(CommandError, match="row 1 cannot be read") as found:
        run(str(path), config=None, from_text=None, to_text=None, as_json=True)
    assert (ExitCode.VERIFICATION, "jouleway ledger verify") == (found.value.code, found.value.remedy)
