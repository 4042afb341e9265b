"""Energy that comes after its attempt was settled: verify lets a window move on exactly that, to whoever paid."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.merkle import leaf_hash
from scheduler.accounting.postings import energy_legs
from scheduler.accounting.rows import Leg, Row, Window, encode
from scheduler.accounting.verify import Fault, verify
from scheduler.core.actions import Payer
from tests.compacted_ledger import compact
from tests.ledger_words import SEED, charge_of, energy_of, execute, hold_of, living, request_id, rewrite, rows_of
from tests.scripted_link import window_of
from workers.types import Outcome

PAID, VAIN, OPEN = (f"{request_id(number)}-1" for number in (1, 2, 3))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Two attempts are given up, the tenant's and the operator's; their worker speaks again while another one runs."""
    url = sqlite_url(tmp_path / "ledger.db")
    with living(url) as life:
        settlement = life.settlement
        settlement.open_worker("w-0", incarnation="life-1")
        for number in (1, 2, 3):
            settlement.hold(hold_of(request_id(number)))
        settlement.window("w-0", window_of((PAID, 50, 5), (VAIN, 0, 0)), number=1)
        settlement.charge(charge_of(PAID))
        settlement.charge(charge_of(VAIN, payer=Payer.OPERATOR, outcome=Outcome.FAILED))
        for attempt_id in (PAID, VAIN):
            settlement.give_up(attempt_id)
        settlement.window("w-0", window_of((PAID, 0, 0), (OPEN, 7, 7)), number=2)
        settlement.window("w-0", window_of((OPEN, 30, 3), (PAID, 30, 3), (VAIN, 20, 0)), number=3)
        settlement.window("w-0", window_of((VAIN, 0, 4), (OPEN, 1, 1), (PAID, 9, 0)), number=4)
        settlement.charge(charge_of(OPEN))
        settlement.give_up(OPEN)
        life.commit()
    return url


def check(url: str) -> None:
    with closing(Reader(url)) as reader:
        verify(reader)


def late(rows: list[Row]) -> Window:
    return next(row for row in rows if isinstance(row, Window) and row.number == 3)


def test_what_comes_late_goes_where_the_rest_went(url: str) -> None:
    """Also where the posting that it follows is compacted: then nobody can say who paid."""
    check(url)
    with closing(Reader(url)) as reader:
        end = next(seq for seq, _, row_id, _, _ in reader.stored() if row_id == "w-0/life-1/2")
    compact(url, end)
    check(url)


def changed(change: Callable[[Leg], Leg]) -> Callable[[list[Row]], None]:
    """Of what follows the window's own legs."""

    def done(rows: list[Row]) -> None:
        row = late(rows)
        row.legs = [*row.legs[:-6], *map(change, row.legs[-6:])]

    return done


def more_than_its_shares(rows: list[Row]) -> None:
    late(rows).legs += [("in_flight/w-0", "mJ", -1_000), ("requests/w-0/alpha", "mJ", 1_000)]


def share_of_one_that_runs(rows: list[Row]) -> None:
    """30 mJ and 3 GPU-us too: but it is not settled yet."""
    late(rows).legs += [("in_flight/w-0", "mJ", -30), ("requests/w-0/alpha", "mJ", 30)]
    late(rows).legs += [("in_flight/w-0", "gpu_us", -3), ("requests/w-0/alpha", "gpu_us", 3)]


def before_its_posting(rows: list[Row]) -> None:
    row = next(row for row in rows if isinstance(row, Window) and row.number == 1)
    row.legs += [("in_flight/w-0", "mJ", -50), ("requests/w-0/alpha", "mJ", 50)]
    row.legs += [("in_flight/w-0", "gpu_us", -5), ("requests/w-0/alpha", "gpu_us", 5)]


def nothing_that_is_one_leg(rows: list[Row]) -> None:
    late(rows).legs = [*late(rows).legs[:-6], ("requests/w-0/alpha", "mJ", 0)]


def test_a_row_before_the_first_decides_nothing(url: str) -> None:
    """Nobody signed it: a posting there would say whose the energy of an attempt is that has none."""

    def to_gamma(rows: list[Row]) -> None:
        row = next(row for row in rows if isinstance(row, Window) and row.number == 2)
        row.legs += energy_legs("w-0", "gamma", energy_mj=7, gpu_us=7)
        del rows[-1]

    assert OPEN == rows_of(url)[-1].row_id
    rewrite(url, to_gamma, seed=SEED)
    posting = energy_of(OPEN, account="gamma", seq=-5, energy_mj=0, gpu_us=0)
    execute(
        url,
        "INSERT INTO rows (seq, kind, row_id, body, leaf) VALUES (-5, 'energy', :row_id, :body, :leaf)",
        row_id=OPEN,
        body=encode(posting).decode(),
        leaf=leaf_hash(encode(posting)),
    )
    with pytest.raises(Fault, match="is missing or out of order: the next one is numbered -5"):
        check(url)


def test_an_index_that_names_another_row_decides_nothing(url: str) -> None:
    """It comes with the file: by it each attempt's posting is the other's, and what was in vain is the tenant's."""
    execute(url, "DROP INDEX rows_by_id")
    for name, other in ((VAIN, "x"), (PAID, VAIN), ("x", PAID)):
        execute(url, "UPDATE rows SET row_id = :other WHERE kind = 'energy' AND row_id = :name", name=name, other=other)
    execute(url, "CREATE INDEX rows_by_id ON rows (row_id, kind)")
    ((root,),) = execute(url, "SELECT rootpage FROM sqlite_master WHERE name = 'rows_by_id'")
    payers = {"requests/w-0/alpha": "requests/w-0/(operator)", "requests/w-0/(operator)": "requests/w-0/alpha"}
    schema(url, "DELETE FROM sqlite_master WHERE name = 'rows_by_id'")

    def swapped(rows: list[Row]) -> None:
        for row in rows:
            if isinstance(row, Window) and row.number > 2:
                row.legs = [(payers.get(account, account), unit, amount) for account, unit, amount in row.legs]

    rewrite(url, swapped, seed=SEED)
    index = f"'index', 'rows_by_id', 'rows', {root}, 'CREATE INDEX rows_by_id ON rows (row_id, kind)'"
    schema(url, f"INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES ({index})")
    with pytest.raises(Fault, match="moves something else than energy of the attempts it measured"):
        check(url)


def schema(url: str, statement: str) -> None:
    """What SQLite itself would not do: an index stands in the file as it was, and is forgotten or known again."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(statement)


@pytest.mark.parametrize(
    "wrong",
    [
        changed(lambda leg: (leg[0], leg[1], 2 * leg[2])),
        changed(lambda leg: (leg[0].replace("/alpha", "/beta"), leg[1], leg[2])),
        changed(lambda leg: (leg[0].replace("/(operator)", "/alpha"), leg[1], leg[2])),
        changed(lambda leg: (leg[0], leg[1], -leg[2])),
        more_than_its_shares,
        share_of_one_that_runs,
        before_its_posting,
        nothing_that_is_one_leg,
    ],
)
def test_a_window_moves_on_nothing_else(url: str, wrong: Callable[[list[Row]], None]) -> None:
    """Not more, to nobody else, and nothing of an attempt without a posting."""
    rewrite(url, wrong, seed=SEED)
    with pytest.raises(Fault, match="moves something else than energy of the attempts it measured"):
        check(url)
