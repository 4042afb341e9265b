"""The ledger's database: one writer, all or nothing, exactly once, whatever the disk does. SQLite and PostgreSQL."""

import asyncio
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from alembic import command as alembic_command
from alembic.config import Config as AlembicConfig
from hypothesis import HealthCheck, given, settings

from scheduler.accounting import ledger as ledger_module
from scheduler.accounting import ledger_reader
from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerInUse, LedgerLost
from scheduler.accounting.journal import Journal, State
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.rows import Changed, Genesis, Row, decode
from scheduler.accounting.usage_book import GROUPS, SUMS
from scheduler.accounting.verify import verify
from tests.ledger_words import LEDGER_ID, OTHER_SEED, SEED, empty, execute, rows_of
from tests.postgres import PostgresServer


def opened(url: str, **options: Any) -> Ledger:
    return Ledger(url, **{"seed": SEED, "new_ledger_id": lambda: LEDGER_ID, **options})


def numbered(seq: int, word: str = "x") -> Row:
    row: Row = Changed(change_id=str(seq), fields={"what": word})
    row.seq, row.at_us = seq, seq
    return row


def genesis_of(ledger: Ledger) -> Row:
    key = str(ledger.signer.public_key)
    row = Genesis(ledger_id=LEDGER_ID, origin=ledger.signer.public_key.name, public_key=key, statement="s")
    row.seq = 0
    return row


def batch(ledger: Ledger, num_rows: int, *, start: int | None = None) -> list[Row]:
    """The next rows; the first of a ledger is its genesis."""
    first = ledger.size if start is None else start
    return [numbered(seq) if seq else genesis_of(ledger) for seq in range(first, first + num_rows)]


def written(ledger: Ledger, num_rows: int) -> list[Row]:
    rows = batch(ledger, num_rows)
    ledger.write(rows, None)
    return rows


def stored(reader: Reader) -> list[int]:
    return [seq for seq, *_ in reader.stored()]


def assert_sound(url: str, num_rows: int) -> None:
    with closing(Reader(url)) as reader:
        assert num_rows == verify(reader, key=PublicKey.parse(reader.head()["public_key"])).num_rows


# -- opened


def test_a_ledger_that_is_opened_again_goes_on(ledger_url: str) -> None:
    """Its rows, its name and its key are there; the epoch rises by one each time."""
    with closing(opened(ledger_url)) as ledger:
        assert (1, 0) == (ledger.epoch, ledger.size)
        written(ledger, 300)
    for epoch in (2, 3):
        with closing(opened(ledger_url, new_ledger_id=lambda: "another")) as ledger:
            assert (epoch, f"jouleway/{LEDGER_ID}") == (ledger.epoch, ledger.head()["origin"])
            written(ledger, 5)
    assert_sound(ledger_url, 310)


def test_a_ledger_is_its_owners_alone(tmp_path: Path) -> None:
    """From the first byte; a folder that is missing is made."""
    path = tmp_path / "new" / "ledger.db"
    opened(f"sqlite:///{path}").close()
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))


def test_a_second_control_plane_is_refused(ledger_url: str) -> None:
    """As long as the first one has it, and not longer; a reader is none."""
    with closing(opened(ledger_url)) as ledger:
        with pytest.raises(LedgerInUse, match="stop that one first"):
            opened(ledger_url)
        written(ledger, 3)
        with closing(Reader(ledger_url)) as reader:
            assert [0, 1, 2] == stored(reader)
    opened(ledger_url).close()


def test_the_lock_is_free_after_an_opening_that_failed(ledger_url: str) -> None:
    """Whoever puts the right key back need not wait for anything."""
    opened(ledger_url).close()
    with pytest.raises(LedgerError, match=r"signed by another key .* put that key's file back"):
        opened(ledger_url, seed=OTHER_SEED)
    with closing(opened(ledger_url)) as ledger:
        assert 2 == ledger.epoch


def test_one_that_lost_its_lock_cannot_write(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another took the ledger over: the first writes nothing more, at once and later, and destroys nothing."""
    monkeypatch.setattr(ledger_module.WriterLock, "_lock_file", lambda self, path: None)
    monkeypatch.setattr(ledger_module.WriterLock, "_lock_server", lambda self, engine: None)
    with closing(opened(ledger_url)) as stale:
        written(stale, 2)
        with closing(opened(ledger_url)) as ledger:
            for rows in (batch(stale, 1), batch(stale, 2), []):
                with pytest.raises(LedgerLost, match="another control plane has taken over"):
                    stale.write(rows, None)
            written(ledger, 1)
            with pytest.raises(LedgerLost):
                stale.write(batch(stale, 1), None)
    assert_sound(ledger_url, 3)


def test_a_newer_version_is_refused(ledger_url: str) -> None:
    """By the writer and by a reader, with what to do."""
    opened(ledger_url).close()
    execute(ledger_url, "UPDATE alembic_version SET version_num = '9999'")
    for to_open in (opened, Reader):
        with pytest.raises(LedgerError, match=r"newer version \(9999; known here: \d+\); remedy: update jouleway"):
            to_open(ledger_url)


@pytest.mark.parametrize("version", ledger_reader.known_versions())
def test_every_version_is_migrated(new_ledger_url: Callable[[], str], version: str) -> None:
    """With rows in it, which stay as they were signed, and are written on."""
    url, model_url = new_ledger_url(), new_ledger_url()
    with closing(opened(model_url)) as ledger:
        rows = written(ledger, 300)
        ledger.write([], State(300, b"state", [(300, [usage_row(0, "a", 1)])]))
    of_version(url, version, model_url)
    assert [(version,)] == execute(url, "SELECT version_num FROM alembic_version")
    with closing(opened(url)) as ledger:
        assert (2, rows, (300, b"state")) == (ledger.epoch, rows_of(url), ledger.state())
        written(ledger, 5)
    assert ([(ledger_reader.known_versions()[0],)], [(0, "a", 1, 1)]) == (
        execute(url, "SELECT version_num FROM alembic_version"), sums_of(url)
    )  # fmt: skip
    assert_sound(url, 305)


def of_version(url: str, version: str, model_url: str) -> None:
    """A database as that version made it, with everything of the model that it had a place for."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(ledger_reader.MIGRATIONS))
    engines = [ledger_reader.make_engine(each, is_read_only=False) for each in (url, model_url)]
    try:
        with engines[0].begin() as old, engines[1].begin() as model:
            config.attributes["connection"] = old
            alembic_command.upgrade(config, version)
            tables, full = sa.MetaData(), sa.MetaData()
            tables.reflect(old)
            full.reflect(model)
            for table in tables.tables.values():
                names = [column.name for column in table.columns if column.name in full.tables[table.name].columns]
                found = [dict(row) for row in model.execute(sa.select(full.tables[table.name])).mappings()]
                if found and table.name != "alembic_version":
                    old.execute(sa.insert(table), [{name: row[name] for name in names} for row in found])
    finally:
        for engine in engines:
            engine.dispose()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE ledger SET size = size - 1", "changed from outside"),
        ("UPDATE ledger SET note = 'x'", "changed from outside"),
        ("DELETE FROM rows WHERE seq = 299", "changed from outside"),
        ("DELETE FROM nodes", "changed from outside"),
        ("UPDATE rows SET leaf = (SELECT leaf FROM rows WHERE seq = 1) WHERE seq = 298", "changed from outside"),
        ("DROP TABLE rows", "rows"),
    ],
)
def test_what_was_changed_from_outside_is_not_written_on(ledger_url: str, damage: str, words: str) -> None:
    """As far as the tree's edge shows it: what lies deeper is verify's."""
    with closing(opened(ledger_url)) as ledger:
        written(ledger, 300)
    execute(ledger_url, damage)
    with pytest.raises(LedgerError, match=words):
        opened(ledger_url)


def test_a_ledger_without_a_head_says_so(ledger_url: str) -> None:
    """It was never finished, or its head was taken away."""
    with closing(opened(ledger_url)) as ledger:
        execute(ledger_url, "DELETE FROM ledger")
        with pytest.raises(LedgerBroken, match="has no head"):
            ledger.head()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "no url", "postgresql+psycopg"])
def test_what_can_be_no_ledger_is_refused(url: str) -> None:
    """One in memory would be gone with the process."""
    with pytest.raises(LedgerError, match="sqlite:////PATH or postgresql://"):
        opened(url)


def test_a_password_is_never_said(tmp_path: Path) -> None:
    """Where nobody answers, the error has the URL without it."""
    url = f"postgresql://me:CANARY@/db?host={tmp_path}"
    for to_open in (opened, Reader):
        with pytest.raises(LedgerError) as caught:
            to_open(url)
        assert ("***" in str(caught.value), "CANARY" in str(caught.value)) == (True, False)


def test_a_path_that_cannot_be_is_an_error_in_words(tmp_path: Path) -> None:
    """A file where a folder should be."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match=r"file/ledger.db cannot be written: "):
        opened(f"sqlite:///{tmp_path}/file/ledger.db")


# -- written


def test_rows_and_their_tree_are_one_transaction(ledger_url: str) -> None:
    """The head says as many rows as there are, signed, after every write; nothing is there that was not asked for."""
    with closing(opened(ledger_url)) as ledger:
        for num_rows in (1, 0, 255, 1, 300):
            rows = batch(ledger, num_rows)
            before = ledger.size
            ledger.write(rows, None)
            head = ledger.head()
            signed = ledger.signer.public_key.verify(head["note"])
            assert (before + num_rows,) * 3 == (head["size"], signed.size, len(stored(ledger)))
    assert_sound(ledger_url, 557)


def test_texts_are_stored_as_they_were_sealed(ledger_url: str) -> None:
    """Whatever is in them."""
    words = ["", "\x00\x1f", "é", "日本語", "🔋", '"\\', "�", "‮", " "]
    with closing(opened(ledger_url)) as ledger:
        written(ledger, 1)
        rows = [numbered(seq, word) for seq, word in enumerate(words, start=1)]
        ledger.write(rows, None)
        assert rows == [decode(body or "") for _, _, _, body, _ in ledger.stored(1)]
    assert_sound(ledger_url, 1 + len(words))


def test_checkpoints_are_kept_now_and_then_and_with_every_state(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told once it is durable; the newest note is the head's."""
    monkeypatch.setattr(ledger_module, "CHECKPOINT_ROWS", 10)
    told: list[tuple[int, str]] = []
    with closing(opened(ledger_url, on_checkpoint=lambda *words: told.append(words))) as ledger:
        for num_rows, state, sizes in (
            (9, None, []),
            (1, None, [10]),
            (3, State(13, b"state", []), [10, 13]),
            (9, None, [10, 13]),
            (25, None, [10, 13, 47]),
        ):
            ledger.write(batch(ledger, num_rows), state)
            assert sizes == [size for size, _ in told] == [size for size, _ in ledger.checkpoints()]
        assert told[-1][1] == ledger.head()["note"]
        assert (13, b"state") == ledger.state()
        ledger.write([], State(47, b"the same rows", []))
        assert (47, b"the same rows") == ledger.state()
    assert_sound(ledger_url, 47)


def usage_row(minute_us: int, tenant: str, amount: int) -> tuple[object, ...]:
    return (minute_us, tenant, *[""] * (len(GROUPS) - 1), *[amount] * len(SUMS))


def sums_of(url: str) -> list[tuple[int, str, int, int]]:
    return sorted(map(tuple, execute(url, "SELECT minute_us, tenant, requests, rejected FROM usage")))


def test_usage_is_summed_with_the_state_that_it_came_with(ledger_url: str) -> None:
    """Twice the same group in one state too; what a stored state had is never added again."""
    with closing(opened(ledger_url)) as ledger:
        written(ledger, 10)
        first = (10, [usage_row(0, "a", 1), usage_row(0, "b", 2), usage_row(0, "a", 4)])
        ledger.write([], State(10, b"", [first]))
        assert [(0, "a", 5, 5), (0, "b", 2, 2)] == sums_of(ledger_url)
        written(ledger, 2)
        ledger.write([], State(12, b"", [first, (12, [usage_row(0, "a", -1), usage_row(60, "a", 7)])]))
        assert [(0, "a", 4, 4), (0, "b", 2, 2), (60, "a", 7, 7)] == sums_of(ledger_url)
        assert [(12,)] == execute(ledger_url, "SELECT seq FROM states")


# -- when the database fails


@contextmanager
def commits_of_unknown_outcome(ledger: Ledger, *, num_writes: int = 1) -> Iterator[None]:
    """So many transactions are stored, and their writer hears that they failed."""
    real, left = ledger._writing, [num_writes]

    @contextmanager
    def writing() -> Iterator[sa.Connection]:
        with real() as connection:
            yield connection
        if left[0]:
            left[0] -= 1
            raise LedgerError("the connection broke")

    ledger._writing = writing  # type: ignore[method-assign]
    try:
        yield
    finally:
        ledger._writing = real  # type: ignore[method-assign]


@contextmanager
def failing(ledger: Ledger) -> Iterator[None]:
    """Nothing reaches the database."""

    @contextmanager
    def writing() -> Iterator[sa.Connection]:
        raise LedgerError("the database is away")
        yield

    real, ledger._writing = ledger._writing, writing  # type: ignore[method-assign]
    try:
        yield
    finally:
        ledger._writing = real  # type: ignore[method-assign]


def test_a_commit_of_unknown_outcome_is_found_again(ledger_url: str) -> None:
    """It was stored: the same rows, with others behind them, are not written twice."""
    with closing(opened(ledger_url)) as ledger:
        rows = batch(ledger, 5)
        with commits_of_unknown_outcome(ledger), pytest.raises(LedgerError, match="connection broke"):
            ledger.write(rows, None)
        rows += batch(ledger, 3, start=5)
        with failing(ledger), pytest.raises(LedgerError, match="away"):
            ledger.write(rows, None)
        with commits_of_unknown_outcome(ledger), pytest.raises(LedgerError, match="connection broke"):
            ledger.write(rows, None)
        ledger.write(rows, None)
        assert rows == rows_of(ledger_url)
        written(ledger, 1)
    assert_sound(ledger_url, 9)


def test_a_state_of_unknown_outcome_is_stored_once(ledger_url: str) -> None:
    """And its checkpoint, and its usage, however often it is given again."""
    told: list[int] = []
    with closing(opened(ledger_url, on_checkpoint=lambda size, note: told.append(size))) as ledger:
        rows, usage = batch(ledger, 5), [(5, [usage_row(0, "a", 1)])]
        with commits_of_unknown_outcome(ledger, num_writes=2):
            for _ in range(2):
                with pytest.raises(LedgerError, match="connection broke"):
                    ledger.write(rows, State(5, b"", usage))
                usage.append((5, []))
        ledger.write(rows, State(5, b"", usage))
        assert ([(0, "a", 1, 1)], [5], [5]) == (
            sums_of(ledger_url), [size for size, _ in ledger.checkpoints()], told
        )  # fmt: skip
    assert_sound(ledger_url, 5)


def test_what_was_stored_meanwhile_by_somebody_else_is_never_taken_for_ours(ledger_url: str) -> None:
    """More rows than were given, fewer than were there, other rows, another epoch."""
    with closing(opened(ledger_url)) as ledger:
        written(ledger, 4)
        for change, back in (
            ("UPDATE ledger SET size = 9", "UPDATE ledger SET size = 4"),
            ("UPDATE ledger SET size = 3", "UPDATE ledger SET size = 4"),
            ("UPDATE ledger SET size = 5", "UPDATE ledger SET size = 4"),
            ("UPDATE ledger SET epoch = 7", "UPDATE ledger SET epoch = 1"),
        ):
            with failing(ledger), pytest.raises(LedgerError, match="away"):
                ledger.write(batch(ledger, 2), None)
            execute(ledger_url, change)
            with pytest.raises(LedgerLost):
                ledger.write(batch(ledger, 2), None)
            execute(ledger_url, back)
        written(ledger, 2)
    assert_sound(ledger_url, 6)


def test_a_write_that_nobody_waits_for_any_more_is_waited_for_by_the_next(ledger_url: str) -> None:
    """A cancelled commit runs on in its thread: it is no other control plane."""
    with closing(opened(ledger_url)) as ledger:
        real, has_begun, may_go_on = ledger._writing, threading.Event(), threading.Event()

        @contextmanager
        def slow() -> Iterator[sa.Connection]:
            with real() as connection:
                yield connection
                has_begun.set()
                assert may_go_on.wait(10)

        async def run() -> None:
            journal = Journal(ledger)
            journal.append(genesis_of(ledger))
            ledger._writing = slow  # type: ignore[method-assign]
            commit = asyncio.create_task(journal.commit())
            await asyncio.to_thread(has_begun.wait, 10)
            commit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await commit
            ledger._writing = real  # type: ignore[method-assign]
            journal.append(numbered(1))
            again = asyncio.create_task(journal.commit())
            await asyncio.sleep(0.05)
            may_go_on.set()
            await again
            assert 2 == journal.durable_seq

        asyncio.run(run())
    assert_sound(ledger_url, 2)


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(opened(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger:
        written(ledger, 20)
        yield ledger


@contextmanager
def pragma(ledger: Ledger, text: str) -> Iterator[None]:
    """Of every connection while the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_reader, "PRAGMAS", (*ledger_reader.PRAGMAS, text))
        ledger._engine.dispose()
        yield
    ledger._engine.dispose()


@pytest.mark.parametrize(
    ("trouble", "words"), [("max_page_count=30", "disk is full"), ("query_only=1", "readonly database")]
)
def test_a_full_disk_loses_nothing(sqlite_ledger: Ledger, trouble: str, words: str) -> None:
    """Nor does one that was mounted anew, read only: an error, again and again, then all of it."""
    rows: list[Row] = []
    with pragma(sqlite_ledger, trouble):
        for num_rows in (500, 1, 300):
            rows += batch(sqlite_ledger, num_rows, start=20 + len(rows))
            with pytest.raises(LedgerError, match=f"could not be written: .*{words}"):
                sqlite_ledger.write(rows, State(20 + len(rows), b"", []))
            assert 20 == len(stored(sqlite_ledger))
    sqlite_ledger.write(rows, None)
    assert rows == rows_of(sqlite_ledger.url)[20:]
    assert_sound(sqlite_ledger.url, 821)


def test_a_server_that_was_away_finds_everything_in_order(postgres_server: PostgresServer, postgres_url: str) -> None:
    """Stopped, and with the power gone: an error meanwhile, then every row once."""
    with closing(opened(postgres_url)) as ledger:
        rows = written(ledger, 10)
        for at_once in (False, True):
            postgres_server.stop(at_once=at_once)
            later = batch(ledger, 5)
            for _ in range(2):
                with pytest.raises(LedgerError):
                    ledger.write(later, None)
            with pytest.raises(LedgerError):
                ledger.head()
            postgres_server.start()
            ledger.write(later, None)
            rows += later
            with pytest.raises(LedgerInUse):  # the lock went with the server, and is ours again
                opened(postgres_url)
    assert rows == rows_of(postgres_url)
    assert_sound(postgres_url, 20)


# -- any order at all


STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "unknown", "failing", "reopen", "kill"]), st.integers(0, 40), st.booleans()),
    max_size=12,
)


def test_whatever_fails_in_whatever_order_the_rows_are_those_that_were_appended(ledger_url: str) -> None:
    """Each once, in order, the tree verified: batches, states, failures before and behind the commit, reopenings."""

    @settings(max_examples=25 if ledger_url.startswith("sqlite") else 10, suppress_health_check=[HealthCheck.too_slow])
    @given(steps=STEPS)
    def run(steps: list[tuple[str, int, bool]]) -> None:
        empty(url := ledger_url)
        ledger, pending, usage, appended = opened(url), [], [], []
        pending = batch(ledger, 1)
        try:
            for step, num_rows, with_state in [*steps, ("write", 1, True)]:
                next_seq = pending[-1].seq + 1 if pending else ledger.size
                pending += [numbered(seq) for seq in range(next_seq, next_seq + num_rows)]
                next_seq = pending[-1].seq + 1 if pending else ledger.size
                state = None
                if with_state:
                    usage.append((next_seq, [usage_row(0, "a", next_seq)]))
                    state = State(next_seq, b"%d" % next_seq, list(usage))
                try:
                    match step:
                        case "unknown":
                            with commits_of_unknown_outcome(ledger):
                                ledger.write(pending, state)
                        case "failing":
                            with failing(ledger):
                                ledger.write(pending, state)
                        case _:
                            ledger.write(pending, state)
                except LedgerError:
                    if step != "kill":
                        continue
                else:
                    appended += pending
                    pending, usage = [], [] if with_state else usage
                if step in ("reopen", "kill"):
                    ledger.close()
                    ledger = opened(url)
            assert ([], len(appended)) == (pending, ledger.size)
        finally:
            ledger.close()
        assert appended == rows_of(url)
        assert_sound(url, len(appended))

    run()
