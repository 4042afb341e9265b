"""Where a configuration keeps its ledger: one key, checkpoints elsewhere, and no new ledger where one was lost."""

import logging
import os
import stat
import time
from contextlib import closing
from pathlib import Path

import pytest

from scheduler import ledger_files
from scheduler.accounting.checkpoints import PublicKey, Signer
from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerInUse
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.rows import Genesis, Opened, Row
from scheduler.accounting.spool import Spool
from scheduler.accounting.verify import verify
from scheduler.config import Config, load_config
from scheduler.config_errors import ConfigError
from scheduler.ledger_files import (
    CheckpointKeeper,
    checkpoint_dir,
    key_path,
    ledger_url,
    open_ledger,
    open_spool,
    read_notes,
)
from tests.ledger_words import LEDGER_ID, SEED

CONFIG = """
state_dir: state
models: {{m: {{}}}}
workers: [{{name: w, engine: simulated, model: m}}]
tenants: [{{name: t}}]
generate_keys: true
ledger: {ledger}
"""
NOTE = Signer(f"jouleway/{LEDGER_ID}", SEED).sign(5, bytes(32))


def config_of(folder: Path, ledger: str = "{}") -> Config:
    folder.mkdir(exist_ok=True)
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(ledger=ledger))
    return load_config(path)


def write_first(ledger: Ledger) -> None:
    """Its first row, with a state: so there is a checkpoint."""
    key = ledger.signer.public_key
    row = Genesis(ledger_id=ledger.head()["ledger_id"], origin=key.name, public_key=str(key), statement="s", seq=0)
    ledger.write([row], None)
    ledger._on_checkpoint(1, ledger.head()["note"])


def test_everything_has_its_place_beside_the_configuration(tmp_path: Path) -> None:
    """The ledger and its key in the state's folder, checkpoints in another one."""
    config = config_of(tmp_path)
    assert f"sqlite:///{tmp_path}/state/ledger.db" == ledger_url(config)
    assert (tmp_path / "state" / "ledger.key", tmp_path / "state-checkpoints") == (
        key_path(config), checkpoint_dir(config)
    )  # fmt: skip


def test_each_place_may_be_another(tmp_path: Path) -> None:
    """Relative ones are beside the configuration; a URL with a password is in a file of its owner's."""
    (tmp_path / "url").write_text("postgresql://me:CANARY@host/db\n")
    (tmp_path / "url").chmod(0o600)
    config = config_of(tmp_path, "{url_file: url, key_file: keys/k, checkpoint_dir: /elsewhere}")
    assert ("postgresql://me:CANARY@host/db", tmp_path / "keys" / "k", Path("/elsewhere")) == (
        ledger_url(config), key_path(config), checkpoint_dir(config)
    )  # fmt: skip
    assert "CANARY" not in repr(config)
    (tmp_path / "url").chmod(0o644)
    with pytest.raises(ConfigError, match=r"ledger.url_file: .*url is open to others"):
        ledger_url(config)
    assert "sqlite:////a.db" == ledger_url(config_of(tmp_path, "{url: 'sqlite:////a.db'}"))


def test_a_first_start_makes_the_key_and_says_who_signs(tmp_path: Path) -> None:
    """The secret for its owner alone, the public one beside it, to be given away."""
    config = config_of(tmp_path)
    with closing(open_ledger(config)) as ledger:
        secret, public = key_path(config), key_path(config).with_name("ledger.key.pub")
        assert (0o600, 64) == (stat.S_IMODE(secret.stat().st_mode), len(secret.read_text().strip()))
        assert str(ledger.signer.public_key) == public.read_text().strip()
        assert secret.read_text().strip() not in public.read_text()
        write_first(ledger)
    first = public.read_text()
    with closing(open_ledger(config)) as ledger:
        assert (2, first) == (ledger.epoch, public.read_text())
    with closing(Reader(ledger_url(config))) as reader:
        assert 1 == verify(reader, key=PublicKey.parse(first), checkpoints=notes_of(config)).num_rows


def notes_of(config: Config) -> list[str]:
    return [note for path in sorted(checkpoint_dir(config).glob("*")) for note in read_notes(path)]


def test_checkpoints_are_kept_away_from_the_ledger(tmp_path: Path) -> None:
    """As they come, in a file of the ledger's name, readable by its owner."""
    config = config_of(tmp_path)
    with closing(open_ledger(config)) as ledger:
        assert [] == notes_of(config)
        write_first(ledger)
        assert [ledger.head()["note"]] == notes_of(config)
        path = checkpoint_dir(config) / f"{ledger.head()['ledger_id']}.checkpoints"
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))


def test_a_second_control_plane_is_refused_with_everything_as_it_was(tmp_path: Path) -> None:
    """Of the same configuration."""
    config = config_of(tmp_path)
    with closing(open_ledger(config)), pytest.raises(LedgerInUse):
        open_ledger(config)
    open_ledger(config).close()


@pytest.mark.parametrize("wrong", ["x", "0" * 63, "g" * 64, "0" * 66])
def test_a_key_that_is_none_is_refused(tmp_path: Path, wrong: str) -> None:
    """By the place where it is configured; what it holds is not said."""
    config = config_of(tmp_path)
    key_path(config).parent.mkdir()
    key_path(config).write_text(wrong)
    key_path(config).chmod(0o600)
    with pytest.raises(ConfigError, match=r"ledger.key_file: .* (64 hexadecimal digits|16 or more)") as caught:
        open_ledger(config)
    assert len(wrong) < 2 or wrong not in str(caught.value)


def test_a_key_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """Its ledger is there: a new key could sign nothing of it."""
    config = config_of(tmp_path)
    open_ledger(config).close()
    key_path(config).unlink()
    with pytest.raises(LedgerError, match=r"ledger.key is missing, and .* is signed by .*; remedy: put the key back"):
        open_ledger(config)
    assert not key_path(config).exists()


def test_a_ledger_that_is_gone_is_not_begun_anew_in_silence(tmp_path: Path) -> None:
    """Its checkpoints tell of it; whoever moves them away means it."""
    config = config_of(tmp_path)
    with closing(open_ledger(config)) as ledger:
        write_first(ledger)
    for path in (tmp_path / "state").glob("ledger.db*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"is empty, and .* had 1 rows: the ledger is lost .* remedy: restore"):
            open_ledger(config)
    for path in checkpoint_dir(config).glob("*"):
        path.rename(tmp_path / path.name)
    open_ledger(config).close()


def test_checkpoints_of_another_key_do_not_matter(tmp_path: Path) -> None:
    """Two houses may keep theirs in one folder; what is no checkpoint is none."""
    config = config_of(tmp_path)
    checkpoint_dir(config).mkdir()
    (checkpoint_dir(config) / "other.checkpoints").write_text(f"{NOTE}\n\nnonsense\n\n\n")
    open_ledger(config).close()


@pytest.mark.parametrize("what", ["checkpoint_dir", "key_file"])
def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, what: str) -> None:
    """By its path; the lock is free again."""
    (tmp_path / "file").write_text("x")
    config = config_of(tmp_path, f"{{{what}: file/below}}")
    with pytest.raises((LedgerError, ConfigError), match=r"file.* cannot be (written|read): "):
        open_ledger(config)
    open_ledger(config_of(tmp_path)).close()


def test_only_a_ledger_on_a_server_has_a_spool(tmp_path: Path, postgres_url: str) -> None:
    """In the state's folder, by the ledger's id."""
    with closing(open_ledger(config_of(tmp_path / "file"))) as ledger:
        assert None is open_spool(config_of(tmp_path / "file"), ledger)
    config = config_of(tmp_path / "server", f"{{url: '{postgres_url}'}}")
    with closing(open_ledger(config)) as ledger:
        spool = open_spool(config, ledger)
        assert spool is not None
        spool.close()
        assert 0o700 == stat.S_IMODE((tmp_path / "server" / "state" / "spool").stat().st_mode)


def opened_row(seq: int) -> Opened:
    return Opened(epoch=seq, version="v", statement="s", seq=seq)


def spooled(config: Config, monkeypatch: pytest.MonkeyPatch, *rows: Row) -> Path:
    """Kept by a control plane whose server was away."""

    def away(self: Ledger, rows: object, state: object) -> bool:
        raise LedgerError("away")

    with closing(open_ledger(config)) as ledger, monkeypatch.context() as patched:
        write_first(ledger)
        path = config.state_dir / "spool" / f"{ledger.head()['ledger_id']}.rows"
        path.parent.mkdir()
        spool = Spool(ledger, path)
        patched.setattr(Ledger, "write", away)
        assert not spool.write(list(rows), None)
        spool.close()
    return path


def test_what_was_kept_for_a_server_is_delivered_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger moved back from PostgreSQL while the spool still held charges that clients saw end."""
    config = config_of(tmp_path)
    path = spooled(config, monkeypatch, opened_row(1), opened_row(2))
    for _ in range(2):
        with closing(open_ledger(config)) as ledger:
            assert None is open_spool(config, ledger)
            assert 3 == ledger.size
    with closing(Reader(ledger_url(config))) as reader:
        assert 3 == verify(reader).num_rows
    assert 0 == path.stat().st_size


def test_a_spool_that_does_not_fit_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is older than what the spool follows."""
    config = config_of(tmp_path)
    spooled(config, monkeypatch, opened_row(5))
    with closing(open_ledger(config)) as ledger, pytest.raises(LedgerBroken, match="rows are missing"):
        open_spool(config, ledger)


# -- the keeper


def test_a_share_that_hangs_stops_no_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is waited for once, and passed over until it answers."""
    keeper = CheckpointKeeper(tmp_path, hang_s=0.05)
    keeper.open("abc")
    path = tmp_path / "abc.checkpoints"
    path.unlink()
    os.mkfifo(path)  # to open it for writing hangs until somebody reads
    keeper(1, "one\n")
    began_s = time.monotonic()
    keeper(2, "two\n")
    assert time.monotonic() - began_s < 0.05
    assert 2 == caplog.text.count("checkpoints hangs")
    with path.open() as share:
        assert "one" in share.read()


def keeper_of(folder: Path) -> tuple[CheckpointKeeper, Path]:
    keeper = CheckpointKeeper(folder)
    keeper.open(LEDGER_ID)
    return keeper, folder / f"{LEDGER_ID}.checkpoints"


def test_notes_are_read_as_they_were_kept(tmp_path: Path) -> None:
    """However often it was opened."""
    keeper, path = keeper_of(tmp_path / "new")
    keeper(1, NOTE)
    keeper.open(LEDGER_ID)
    keeper(2, NOTE)
    assert [NOTE, NOTE] == read_notes(path)


def test_a_keeper_that_is_not_open_keeps_nothing(tmp_path: Path) -> None:
    """A ledger's first checkpoint may come before its id is known."""
    CheckpointKeeper(tmp_path)(1, NOTE)
    assert [] == list(tmp_path.iterdir())


def test_the_older_half_goes_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has an end; the newest are whole."""
    keeper, path = keeper_of(tmp_path)
    monkeypatch.setattr(ledger_files, "MAX_CHECKPOINT_BYTES", 10 * len(NOTE.encode()))
    signer = Signer(f"jouleway/{LEDGER_ID}", SEED)
    notes = [signer.sign(size, bytes(32)) for size in range(1, 101)]
    for size, note in enumerate(notes, start=1):
        keeper(size, note)
        assert path.stat().st_size < 13 * len(NOTE.encode())
    kept = read_notes(path)
    assert notes[-len(kept) :] == kept
    assert len(kept) >= 4
    assert [f"{LEDGER_ID}.checkpoints"] == [each.name for each in tmp_path.iterdir()]


def test_the_newest_half_is_on_the_disk_before_it_replaces_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And readable by its owner alone, whatever a try that broke off left behind; then its name is made durable."""
    keeper, path = keeper_of(tmp_path)
    for size in range(1, 9):
        keeper(size, NOTE)
    path.with_suffix(".new").write_text("half")
    monkeypatch.setattr(ledger_files, "MAX_CHECKPOINT_BYTES", 10)
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(handle: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    keeper(9, NOTE)
    expected = [f"sync {path.stem}.new", "replace", f"sync {tmp_path.name}", f"sync {path.name}"]
    assert (expected, 0o600) == (events, stat.S_IMODE(path.stat().st_mode))
    assert {NOTE} == set(read_notes(path))


def test_a_keeper_that_cannot_write_does_not_stop_the_ledger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said in the log."""
    keeper, path = keeper_of(tmp_path / "folder")
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.ERROR):
        keeper(7, NOTE)
    assert f"checkpoint of 7 rows: {path} cannot be written" in caplog.text
