"""Reading a ledger: in order, in bounded parts, from any path, and without leaving a trace."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from scheduler.accounting import ledger_reader
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger_reader import Reader, known_versions, make_engine, shown_url, sqlite_url, words_of
from scheduler.accounting.merkle import Tree
from tests.ledger_words import (
    Life,
    charge_of,
    execute,
    file_of,
    fill,
    hold_of,
    living,
    request_id,
    rows_of,
)
from tests.scripted_link import posting_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger's file."""
    return file_of(tmp_path_factory.mktemp("model"), 30)


@pytest.fixture
def reader(ledger_url: str) -> Iterator[Reader]:
    """Of 600 rows and a few checkpoints."""
    fill(ledger_url, 600, commit_rows=150)
    with closing(Reader(ledger_url)) as reader:
        yield reader


@pytest.mark.parametrize("num_read", [7, 601, 5_000])
def test_rows_come_in_order_whatever_is_read_at_a_time(
    reader: Reader, num_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, or a range; never more at a time."""
    whole = list(reader.stored())
    assert list(range(600)) == [seq for seq, *_ in whole][:600]
    monkeypatch.setattr(ledger_reader, "READ_ROWS", num_read)
    batches = list(reader.batches())
    assert whole == [row for rows in batches for row in rows] == list(reader.stored())
    assert all(len(rows) <= num_read for rows in batches)
    for first, last in ((0, 0), (0, 1), (5, 13), (598, 700), (700, 800), (13, 5)):
        assert whole[first:last] == list(reader.stored(first, last))


def test_checkpoints_come_in_order_whatever_is_read_at_a_time(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were kept."""
    kept = list(reader.checkpoints())
    assert len(kept) >= 4
    assert kept == sorted(kept)
    monkeypatch.setattr(ledger_reader, "READ_ROWS", 1)
    assert kept == list(reader.checkpoints())


def test_the_tree_is_found_by_its_stored_hashes(reader: Reader) -> None:
    """Leaves are the rows' own, higher nodes have a table."""
    leaves = [leaf for *_, leaf in reader.stored()]
    tree = Tree()
    nodes = tree.extend(leaves)
    assert tree.root() == Tree.of(len(leaves), reader.hashes).root()
    assert [2, 1] == [len(nodes), nodes[1][1]]
    assert [node for _, _, node in nodes] == reader.hashes(1, 0, 2)
    assert (leaves[3:5], []) == (reader.hashes(0, 3, 2), reader.hashes(0, 700, 2))


def test_a_request_has_its_own_rows_only(ledger_url: str) -> None:
    """Of all its attempts, in order; neighbours in the alphabet have theirs."""
    with living(ledger_url) as life:
        for number in (1, 2, 10, 11):
            name = request_id(number)
            life.settlement.hold(hold_of(name))
            life.settlement.charge(charge_of(f"{name}-1", attempt_number=1))
            life.settlement.post_energy("w-0", posting_of(f"{name}-1"))
        life.settlement.charge(charge_of(f"{request_id(1)}-12"))
        life.commit()
        with closing(Reader(ledger_url)) as reader:
            assert ["hold", "charge", "energy", "charge"] == [row[1] for row in reader.of_request(request_id(1))]
            assert 3 == len(reader.of_request(request_id(10)))
            assert [] == reader.of_request(request_id(3))
            found = reader.find("energy", f"{request_id(2)}-1")
            assert found is not None
            assert ("energy", f"{request_id(2)}-1") == found[1:3]
            assert (None, None) == (reader.find("void", request_id(2)), reader.find("hold", "nobody"))


def test_a_row_that_is_there_twice_is_found(reader: Reader, ledger_url: str) -> None:
    """Where somebody took the index away."""
    assert None is reader.duplicate()
    execute(ledger_url, "DROP INDEX rows_by_id")
    execute(ledger_url, "INSERT INTO rows SELECT 9999, kind, row_id, body, leaf FROM rows WHERE seq = 1")
    assert ("opened", "1") == reader.duplicate()


def test_the_newest_state_is_read(ledger_url: str) -> None:
    """Of none there is none."""
    life = Life(ledger_url)
    life.commit()
    with closing(Reader(ledger_url)) as reader:
        assert None is reader.state()
        life.end()
        state = reader.state()
        assert state is not None
        assert 2 == state[0]


def test_a_reader_needs_no_lock_and_sees_what_is_committed(ledger_url: str) -> None:
    """While it is written."""
    with living(ledger_url) as life, closing(life.ledger):
        life.commit()
        with closing(Reader(ledger_url)) as reader:
            assert 2 == len(list(reader.stored()))
            life.settlement.hold(hold_of(request_id(1)))
            assert 2 == len(list(reader.stored()))
            life.commit()
            assert 3 == reader.head()["size"] == len(list(reader.stored()))


@pytest.mark.parametrize("name", ["plain.db", "a b.db", "100%.db", "a#b?c=d&e.db", "%41%zz.db", "é日.db", "x'y\".db"])
def test_a_copy_may_have_any_name(tmp_path: Path, model: Path, name: str) -> None:
    """No character of a path is taken for something else."""
    folder = tmp_path / "of the ledger's"
    folder.mkdir()
    path = Path(shutil.copy(model, folder / name))
    assert rows_of(sqlite_url(model)) == rows_of(sqlite_url(path))


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_copy_is_left_as_it_is(
    tmp_path: Path, model: Path, is_writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a byte of it changes; where nothing can be written nothing is tried to be."""
    folder = tmp_path / "copy"
    folder.mkdir()
    copy = Path(shutil.copy(model, folder / "ledger.db"))
    before = copy.read_bytes()
    monkeypatch.setattr(ledger_reader.os, "access", lambda *asked: is_writable)
    with closing(Reader(sqlite_url(copy))) as reader:
        assert 30 == len(list(reader.stored()))
        with pytest.raises(LedgerError, match="readonly database"), reader.reading() as connection:
            connection.execute(sa.text("DELETE FROM rows"))
    assert before == copy.read_bytes()
    assert is_writable or [copy] == list(folder.iterdir())


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    """No file, no database, a database of something else."""
    text, other = tmp_path / "text", tmp_path / "other.db"
    text.write_text("not a database, but a long enough text " * 100)
    execute(sqlite_url(other), "CREATE TABLE t (x INTEGER)")
    for path, words in (
        (tmp_path / "missing", "there is no such file"),
        (tmp_path, "there is no such file"),
        (text, "file is not a database"),
        (other, "is no ledger of Jouleway"),
    ):
        with pytest.raises(LedgerError, match=words):
            Reader(sqlite_url(path))


def test_an_error_has_neither_statement_nor_values(ledger_url: str) -> None:
    """A row may name a tenant; a log is no place for it."""
    engine = make_engine(ledger_url, is_read_only=False)
    with closing(engine.connect()) as connection, pytest.raises(sa.exc.SQLAlchemyError) as caught:
        connection.execute(sa.text("SELECT :value FROM nowhere"), {"value": "CANARY"})
    engine.dispose()
    assert "nowhere" in words_of(caught.value)
    assert not any(word in words_of(caught.value) for word in ("CANARY", "SELECT", "\n"))
    assert "ArgumentError" == words_of(sa.exc.ArgumentError("CANARY"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:CANARY@host/db", "postgresql://me:***@host/db"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("CANARY", "a URL that cannot be read"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert shown == shown_url(url)


def test_versions_are_known_from_the_newest_to_the_first() -> None:
    """As they follow each other in ``migrations/versions``."""
    assert "0001" == known_versions()[-1]
    assert list(known_versions()) == sorted(known_versions(), reverse=True)
