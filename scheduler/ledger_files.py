"""Where a configuration keeps its ledger: its URL, the key that signs it, the checkpoints beside it.

Called by ``scheduler.service`` and by the commands that read a ledger. It must never know a row.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from threading import Thread

from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader, shown_url, sqlite_url
from scheduler.accounting.spool import Spool, sync_folder
from scheduler.config import Config
from scheduler.credentials import kept_seed, read_key

logger = logging.getLogger("jouleway.ledger")

MAX_CHECKPOINT_BYTES = 16 << 20
"""About three weeks of one checkpoint every 30 s; then the older half goes."""

HANG_S = 2.0
"""A commit waits for its checkpoint's file no longer than this, and for none while an earlier one hangs."""


def ledger_url(config: Config) -> str:
    """Of the configured ledger. Raises: ConfigError where its file cannot be used."""
    ledger = config.ledger
    if ledger.url_file is not None:
        return read_key(ledger.url_file, where="ledger.url_file")
    return ledger.url or sqlite_url(config.state_dir / "ledger.db")


def key_path(config: Config) -> Path:
    """Of the signing key, written or not."""
    return config.ledger.key_file or config.state_dir / "ledger.key"


def checkpoint_dir(config: Config) -> Path:
    """Away from the ledger."""
    state_dir = config.state_dir
    return config.ledger.checkpoint_dir or state_dir.with_name(f"{state_dir.name}-checkpoints")


def open_ledger(config: Config) -> Ledger:
    """Made or migrated, and locked; its public key lies beside the secret one. Raises: LedgerError, ConfigError."""
    path, url = key_path(config), ledger_url(config)
    _check_key_is_there(path, url)
    seed = kept_seed(path, where="ledger.key_file")
    keeper = CheckpointKeeper(checkpoint_dir(config))
    ledger = Ledger(url, seed=seed, on_checkpoint=keeper)
    try:
        if not ledger.size:
            _check_is_first(ledger, checkpoint_dir(config))
        keeper.open(ledger.head()["ledger_id"])
        public_path = path.with_name(f"{path.name}.pub")
        public_path.write_text(f"{ledger.signer.public_key}\n")
    except OSError as error:
        ledger.close()
        raise LedgerError(f"{error.filename} cannot be written: {error.strerror}") from None
    except LedgerError:
        ledger.close()
        raise
    return ledger


def _check_key_is_there(path: Path, url: str) -> None:
    """A new key beside a ledger that another one signed would only hide that it is lost."""
    if path.exists():
        return
    try:
        reader = Reader(url)
    except LedgerError:
        return  # no ledger yet
    try:
        head = reader.head()
    except LedgerError:
        return
    finally:
        reader.close()
    raise LedgerError(
        f"ledger.key_file: {path} is missing, and {shown_url(url)} is signed by {head['public_key']}; "
        "remedy: put the key back from its copy, or begin a new ledger (ledger.url)"
    )


def _check_is_first(ledger: Ledger, folder: Path) -> None:
    """An empty ledger where checkpoints of our own key tell of another one: that one is lost, and not to be replaced in
    silence.
    """
    for path in sorted(folder.glob("*.checkpoints")):
        for note in reversed(read_notes(path)):
            origin, _, _ = note.partition("\n")
            try:
                found = Signer(origin, ledger.signer.seed).public_key.verify(note)
            except ValueError:
                continue
            if found.size:
                raise LedgerError(
                    f"{ledger.url} is empty, and {path} says that {found.origin} had {found.size} rows: the ledger is "
                    "lost or the URL is another one; remedy: restore a backup, or move that file away to begin anew"
                )
            break


def read_notes(path: Path) -> list[str]:
    """Checkpoints of a file, three line ends between them."""
    return [f"{note.strip()}\n" for note in path.read_text(encoding="utf-8").split("\n\n\n") if note.strip()]


def open_spool(config: Config, ledger: Ledger) -> Spool | None:
    """Of a ledger on a server. A ledger in a file needs none; what was kept for it while it was on a server (a copy
    back may be older) is delivered all the same. Raises: LedgerError.
    """
    folder = config.state_dir / "spool"
    path = folder / f"{ledger.head()['ledger_id']}.rows"
    try:
        if not ledger.is_on_server:
            if path.exists():
                Spool(ledger, path).close()
            return None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Spool(ledger, path)
    except OSError as error:
        raise LedgerError(f"{error.filename} cannot be written: {error.strerror}") from None


class CheckpointKeeper:
    """Appends every checkpoint that the ledger keeps to a file of that ledger, three line ends between them."""

    def __init__(self, folder: Path, *, hang_s: float = HANG_S) -> None:
        self._folder = folder
        self._hang_s = hang_s
        self._path: Path | None = None
        self._writing: Thread | None = None

    def open(self, ledger_id: str) -> None:
        """Raises: OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = self._folder / f"{ledger_id}.checkpoints"
        self._path.touch(mode=0o600)

    def __call__(self, size: int, note: str) -> None:
        """Best effort: a disk beside the ledger that fails, or a share that hangs, must not stop it; the log tells."""
        if self._path is None:
            return
        if self._writing is None or not self._writing.is_alive():
            self._writing = Thread(target=self._append, args=(self._path, size, note), daemon=True)
            self._writing.start()
            self._writing.join(self._hang_s)
        if self._writing.is_alive():
            logger.error("checkpoint of %d rows: %s hangs", size, self._path)

    def _append(self, path: Path, size: int, note: str) -> None:
        try:
            if path.stat().st_size > MAX_CHECKPOINT_BYTES:
                self._halve(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{note}\n\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.error("checkpoint of %d rows: %s cannot be written: %s", size, error.filename, error.strerror)

    @staticmethod
    def _halve(path: Path) -> None:
        """On the disk before it takes the place of what is there: no crash may leave half a file, or none."""
        notes = path.read_text(encoding="utf-8").split("\n\n\n")
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)  # of a try that broke off, with whatever mode
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write("\n\n\n".join(notes[len(notes) // 2 :]))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(path.parent)
