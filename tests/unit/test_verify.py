"""Verify finds every change of a row, whoever made it as far as keys and checkpoints can tell; and no false alarm."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scheduler.accounting import ledger_reader, row_checks
from scheduler.accounting import verify as verify_module
from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.postings import charge_legs, window_legs
from scheduler.accounting.receipts import check_receipt, make_receipt
from scheduler.accounting.rows import (
    OPERATOR,
    Changed,
    Charge,
    Correction,
    Daily,
    Energy,
    Hold,
    Opened,
    Row,
    Void,
    Window,
    request_id_of,
)
from scheduler.accounting.verify import Fault, Verified, verify
from scheduler.core.actions import Payer
from scheduler.core.request import CostPlus
from tests.flipped_ledger import Flips
from tests.ledger_words import (
    LEDGER_ID,
    OTHER_SEED,
    SEED,
    WORKERS,
    Life,
    Traffic,
    execute,
    file_of,
    fill,
    living,
    rewrite,
    rows_of,
)

NUM_ROWS = 300
"""More than a tile, so that there is a stored node."""
ORIGIN = f"jouleway/{LEDGER_ID}"
KEY, OTHER_KEY = Signer(ORIGIN, SEED).public_key, Signer(ORIGIN, OTHER_SEED).public_key


def checked(url: str, **options: Any) -> Verified:
    with closing(Reader(url)) as reader:
        return verify(reader, **options)


def fault(url: str, **options: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        checked(url, **{"key": KEY, **options})
    return caught.value


@pytest.fixture
def url(ledger_url: str) -> str:
    """Of a sound ledger."""
    fill(ledger_url, NUM_ROWS)
    return ledger_url


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a file, for what need not be tried twice."""
    return file_of(tmp_path_factory.mktemp("model"), NUM_ROWS)


@pytest.fixture
def copy_url(model: Path, tmp_path: Path) -> str:
    return sqlite_url(Path(shutil.copy(model, tmp_path / "copy.db")))


# -- sound ledgers


def test_a_sound_ledger_is_told_in_numbers(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is read at a time; its own key proves nothing of who signed."""
    heard: list[tuple[int, int]] = []
    found = checked(url, key=KEY, on_progress=lambda *words: heard.append(words))
    holds = [row for row in rows_of(url) if isinstance(row, Hold)]
    assert (ORIGIN, NUM_ROWS, True, 0) == (found.origin, found.num_rows, found.is_authenticated, found.num_compacted)
    assert 0 < found.num_open_holds < len(holds)
    assert found.num_checkpoints >= NUM_ROWS // 40
    assert (NUM_ROWS, NUM_ROWS) == heard[-1]
    monkeypatch.setattr(ledger_reader, "READ_ROWS", 7)
    assert found == checked(url, key=KEY)
    assert not checked(url).is_authenticated


def test_an_empty_ledger_is_sound(ledger_url: str) -> None:
    """Its head signs a tree of nothing."""
    with living(ledger_url):
        pass
    assert 0 == checked(ledger_url, key=KEY).num_rows


@pytest.mark.parametrize("seed", range(50))
def test_there_is_no_false_alarm(seed: int, tmp_path: Path) -> None:
    """Random traffic over a few lives, ended and killed; with every checkpoint that was told."""
    chance, notes = random.Random(seed), []
    url = sqlite_url(tmp_path / "ledger.db")
    for number in range(chance.randint(1, 3)):
        life = Life(url)
        traffic = Traffic(life.settlement, seed=seed, first_request=1_000 * number)
        for _ in range(chance.randint(0, 4)):
            traffic.fill(life.settlement.journal.next_seq + chance.randint(1, 30))
            life.commit(with_state=chance.random() < 0.3)
        life.end() if chance.random() < 0.5 else life.kill()
        notes += life.checkpoints
    assert checked(url, key=KEY, checkpoints=notes).is_authenticated


# -- somebody without the key


def test_a_changed_text_is_found_in_its_row(url: str) -> None:
    """One amount in it."""
    seq = first(rows_of(url), Hold).seq
    execute(
        url,
        "UPDATE rows SET body = REPLACE(body, :old, :new) WHERE seq = :seq",
        old='"output_tokens":50',
        new='"output_tokens":5',
        seq=seq,
    )
    assert (seq, True) == ((found := fault(url)).seq, "was changed" in str(found))


@pytest.mark.parametrize(
    ("column", "value"), [("kind", "void"), ("row_id", "req-x"), ("leaf", b"x" * 32), ("leaf", b"")]
)
def test_every_column_of_a_row_is_held_against_its_text(copy_url: str, column: str, value: object) -> None:
    """They are what rows are found by."""
    execute(copy_url, f"UPDATE rows SET {column} = :value WHERE seq = 7", value=value)
    assert 7 == fault(copy_url).seq


def test_rows_that_changed_places_are_found(copy_url: str) -> None:
    """The first of the two is named."""
    for one, other in ((-1, 5), (5, 9), (9, -1)):
        execute(copy_url, f"UPDATE rows SET seq = {one} WHERE seq = {other}")
    assert 5 == fault(copy_url).seq


@pytest.mark.parametrize(("where", "seq"), [("= 0", 0), ("= 5", 5), (">= 290", 290), ("> -1", 0)])
def test_rows_that_are_gone_are_found(url: str, where: str, seq: int) -> None:
    """The first, one in the middle, the last ones, all of them."""
    execute(url, f"DELETE FROM rows WHERE seq {where}")
    found = fault(url)
    assert (seq, True) == (found.seq, "missing" in str(found) or "ends after" in str(found))


def test_a_row_that_was_added_is_found(url: str) -> None:
    """Behind the last one nobody signed it."""
    execute(url, f"INSERT INTO rows SELECT {NUM_ROWS}, kind, 'again', body, leaf FROM rows WHERE seq = 9")
    assert NUM_ROWS == fault(url).seq
    execute(url, f"DELETE FROM rows WHERE seq = {NUM_ROWS}")
    rewrite(url, lambda rows: rows.append(moved(Changed(change_id="new", fields={}), seq=len(rows))))
    assert "added without a signature" in str(fault(url))


def moved(row: Row, *, seq: int) -> Row:
    row.seq, row.at_us = seq, 1 << 60
    return row


def renumbered(rows: list[Row]) -> None:
    for seq, row in enumerate(rows):
        row.seq = seq


def swap(rows: list[Row]) -> None:
    one, other, *_ = [place for place, row in enumerate(rows) if isinstance(row, Changed | Correction)]
    rows[one], rows[other] = rows[other], rows[one]
    rows[one].at_us, rows[other].at_us = rows[other].at_us, rows[one].at_us
    renumbered(rows)


def remove(rows: list[Row]) -> None:
    place = next(place for place, row in enumerate(rows) if isinstance(row, Changed | Correction) and place > 1)
    del rows[place]
    renumbered(rows)


def add(rows: list[Row]) -> None:
    rows.insert(5, Changed(change_id="new", fields={}, at_us=rows[5].at_us))
    renumbered(rows)


def change(rows: list[Row]) -> None:
    next(row for row in rows if isinstance(row, Changed)).fields["what"] = "nothing"


CHANGES = [change, swap, remove, add]


@pytest.mark.parametrize("done", CHANGES)
def test_whoever_hashes_everything_anew_lacks_the_signature(copy_url: str, done: Callable[[list[Row]], None]) -> None:
    """With or without a key that is trusted: the checkpoints are of the ledger's own key."""
    rewrite(copy_url, done)
    for key in (KEY, None):
        assert any(
            words in str(fault(copy_url, key=key))
            for words in ("not those that were signed", "without a signature", "the ledger ends after")
        )


@pytest.mark.parametrize("done", [*CHANGES, lambda rows: None])
def test_whoever_signs_with_a_key_of_his_own_is_found_by_who_knows_the_ledgers(
    copy_url: str, done: Callable[[list[Row]], None]
) -> None:
    """Without a key it agrees with itself, and is said to be not authenticated."""
    rewrite(copy_url, done, seed=OTHER_SEED)
    assert not checked(copy_url).is_authenticated
    assert "is signed by" in str(fault(copy_url))
    assert checked(copy_url, key=OTHER_KEY).is_authenticated


def test_another_ledgers_key_is_not_its_key(copy_url: str) -> None:
    """The same secret under another name too."""
    for key in (OTHER_KEY, Signer("jouleway/another", SEED).public_key):
        assert f"signed by {KEY}, not by the key that was given" in str(fault(copy_url, key=key))


# -- somebody with the key


@pytest.mark.parametrize("done", CHANGES)
def test_whoever_has_the_key_is_found_by_a_checkpoint_kept_elsewhere(
    copy_url: str, done: Callable[[list[Row]], None]
) -> None:
    """Any that has the change behind it; without one nobody can tell."""
    with closing(Reader(copy_url)) as reader:
        notes = [note for _, note in reader.checkpoints()]
    rewrite(copy_url, done, seed=SEED)
    assert checked(copy_url, key=KEY).is_authenticated
    for some in (notes[-2:-1], notes):
        assert "a fork" in str(fault(copy_url, checkpoints=some))


def test_an_older_copy_is_found_by_a_younger_checkpoint(tmp_path: Path) -> None:
    """Rolled back: everything in it is signed, and it is not all."""
    url, old = sqlite_url(tmp_path / "ledger.db"), tmp_path / "old.db"
    first = fill(url, 100)
    shutil.copy(tmp_path / "ledger.db", old)
    later = fill(url, 200, first_request=1_000)
    assert checked(sqlite_url(old), key=KEY, checkpoints=first).is_authenticated
    assert "it is older, or was rolled back" in str(fault(sqlite_url(old), checkpoints=[*first, later[-1]]))
    assert checked(url, key=KEY, checkpoints=[*first, *later]).is_authenticated


def test_a_fork_is_found_from_either_side(tmp_path: Path) -> None:
    """Two continuations of one copy, both signed by the ledger's key: no checkpoint of the one is the other's."""
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    common = fill(sqlite_url(one), 100)
    shutil.copy(one, other)
    notes = [fill(sqlite_url(path), 220, seed=seed, first_request=1_000) for seed, path in ((1, one), (2, other))]
    for path, own, foreign in ((one, *notes), (other, *reversed(notes))):
        assert checked(sqlite_url(path), key=KEY, checkpoints=[*common, *own]).is_authenticated
        for note in foreign:
            assert any(words in str(fault(sqlite_url(path), checkpoints=[note])) for words in ("a fork", "older"))


def test_a_checkpoint_of_nothing_hides_no_other(copy_url: str) -> None:
    """The first note of a ledger is of an empty tree: it stands before all others, and they are compared as well."""
    execute(
        copy_url, "INSERT INTO checkpoints (size, note) VALUES (0, :note)", note=Signer(ORIGIN, SEED).sign(0, EMPTY)
    )
    assert checked(copy_url, key=KEY).is_authenticated
    rewrite(copy_url, change, seed=SEED)
    execute(
        copy_url, "INSERT INTO checkpoints (size, note) VALUES (0, :note)", note=Signer(ORIGIN, SEED).sign(0, EMPTY)
    )
    wrong = Signer(ORIGIN, SEED).sign(50, b"\x00" * 32)
    assert "the first 50 rows are not those that were signed" in str(fault(copy_url, checkpoints=[wrong]))


EMPTY = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE checkpoints SET note = 'x'", "rows: not a checkpoint"),
        ("UPDATE checkpoints SET size = size + 1 WHERE size = 42", "the checkpoint of 43 rows is one of"),
        ("UPDATE checkpoints SET size = 999 WHERE size = 42", "the checkpoint of 999 rows is one of"),
        ("UPDATE ledger SET note = 'x'", "its newest checkpoint: not a checkpoint"),
        ("UPDATE ledger SET size = 7", "its head says 7"),
        ("UPDATE ledger SET public_key = 'x'", "signed by x"),
        ("UPDATE nodes SET hash = (SELECT leaf FROM rows WHERE seq = 1)", "stored nodes of level 1 from 0 on"),
        ("DELETE FROM nodes", "stored nodes of level 1"),
        ("DELETE FROM ledger", "unreadable: .* has no head"),
        ("DROP TABLE checkpoints", "unreadable: .*checkpoints"),
    ],
)
def test_what_stands_beside_the_rows_is_checked_too(copy_url: str, damage: str, words: str) -> None:
    """Checkpoints, the head, the nodes that proofs are made of."""
    execute(copy_url, damage.replace("42", str(execute(copy_url, "SELECT min(size) FROM checkpoints")[0][0])))
    with pytest.raises(Fault, match=words):
        checked(copy_url, key=KEY)


def test_a_public_key_that_is_none_is_said(copy_url: str) -> None:
    """Where none is given to trust."""
    execute(copy_url, "UPDATE ledger SET public_key = 'x'")
    assert "its public key: not a public key" in str(fault(copy_url, key=None))


def test_a_checkpoint_from_elsewhere_must_be_one(copy_url: str) -> None:
    """Of this ledger's key."""
    for note in ("", "x", Signer(ORIGIN, OTHER_SEED).sign(5, EMPTY), Signer("jouleway/b", SEED).sign(5, EMPTY)):
        assert "a checkpoint kept elsewhere: " in str(fault(copy_url, checkpoints=[note]))


# -- rows that are signed and do not add up


def first(rows: list[Row], kind: type[Any], **fields: Any) -> Any:
    return next(
        row for row in rows if isinstance(row, kind) and all(getattr(row, name) == fields[name] for name in fields)
    )


def paid(rows: list[Row]) -> Charge:
    charge: Charge = first(rows, Charge, payer=Payer.REQUEST)
    return charge


def legs_of_a_hold(rows: list[Row]) -> None:
    first(rows, Hold).input_tokens += 1


def legs_of_a_void(rows: list[Row]) -> None:
    row = first(rows, Void)
    row.legs = [(account, unit, 2 * amount) for account, unit, amount in row.legs]


def void_of_nothing(rows: list[Row]) -> None:
    first(rows, Void).request_id = "req-nobody"


def legs_of_a_charge(rows: list[Row]) -> None:
    row = paid(rows)
    row.legs = [(account.replace("used", "lost"), unit, amount) for account, unit, amount in row.legs]


def price_of_a_charge(rows: list[Row]) -> None:
    row = paid(rows)
    row.cost_nano += 1
    row.legs = [
        (account, unit, amount + {"used": 1, "draw": -1}.get(account[:4], 0) if unit == "USD" else amount)
        for account, unit, amount in row.legs
    ]


def rates_of_a_charge(rows: list[Row]) -> None:
    row = paid(rows)
    row.rates = row.rates._replace(version="2027")


def charge_without_a_hold(rows: list[Row]) -> None:
    """The request paid already: its hold is closed."""
    again = msgspec.structs.replace(paid(rows), attempt_id=f"{paid(rows).request_id}-9", legs=[])
    again.legs = charge_legs(again, None)
    rows.append(moved(again, seq=len(rows)))
    again.at_us = rows[-2].at_us


def charge_of_another_tenant(rows: list[Row]) -> None:
    row = paid(rows)
    other = "beta" if row.tenant == "alpha" else "alpha"
    row.legs = [(account.replace(row.tenant, other), unit, amount) for account, unit, amount in row.legs]
    row.tenant = other


def attempt_of_another_request(rows: list[Row]) -> None:
    """It takes the hold of the one, and stands in the receipt of the other."""
    paid(rows).attempt_id = "req-another-9"


def difference_in_another_currency(rows: list[Row]) -> None:
    """Of a cost-plus price."""
    row = next(row for row in rows if isinstance(row, Energy) and row.account == "alpha" and row.energy_mj)
    plus = CostPlus(energy_nano_per_kwh=10**15)
    for each in rows:
        if isinstance(each, Hold | Charge) and each.request_id == request_id_of(row.attempt_id):
            each.rates = each.rates._replace(plus=plus)
    row.cost_nano, row.currency = plus.cost_nano(energy_mj=row.energy_mj, gpu_us=row.gpu_us), "IDR"
    row.legs += [("drawn/alpha", "IDR", -row.cost_nano), ("used/alpha", "IDR", row.cost_nano)]


def plus(rows: list[Row], charge: Charge, nano: int, most_nano: int | None) -> None:
    """This charge is cost-plus, at a price that no measurement here comes to."""
    rates = charge.rates._replace(plus=CostPlus(gpu_nano_per_s=1))
    hold = first(rows, Hold, request_id=charge.request_id)
    hold.rates = charge.rates = rates
    charge.cost_nano, charge.plus_nano, charge.most_plus_nano = charge.cost_nano + nano, nano, most_nano
    charge.legs = charge_legs(charge, hold)


def charged_after_it_was_measured(rows: list[Row]) -> None:
    """An estimate of $ 1,000 for a joule, which nothing corrects: its energy was booked before, to the operator."""
    charge = next(row for row in rows if isinstance(row, Charge) and row.payer is Payer.REQUEST and row.cost_nano)
    plus(rows, charge, nano=1_000 * 10**9, most_nano=None)
    energy = first(rows, Energy, attempt_id=charge.attempt_id)
    energy.account = OPERATOR
    energy.legs = [(account.replace(f"/{charge.tenant}", f"/{OPERATOR}"), *rest) for account, *rest in energy.legs]
    places = [rows.index(charge), rows.index(energy)]
    times = [charge.at_us, energy.at_us]
    for row, place, at_us in zip((energy, charge), places, times, strict=True):
        rows[place] = row
        row.seq, row.at_us = place, at_us


def estimate_beyond_what_was_held(rows: list[Row]) -> None:
    plus(rows, paid(rows), nano=5, most_nano=4)


def estimate_of_nothing(rows: list[Row]) -> None:
    """$ 1,000 for no energy at all: its posting would put that right, and need never come."""
    plus(rows, paid(rows), nano=1_000 * 10**9, most_nano=None)


def parts(rows: list[Row], rates: dict[str, int], **tokens: int) -> None:
    """A charge of these tokens, at rates that were pinned so, with the price that they come to."""
    row = paid(rows)
    hold = first(rows, Hold, request_id=row.request_id)
    hold.rates = row.rates = row.rates._replace(**rates)
    for name, number in tokens.items():
        setattr(row, name, number)
    row.cost_nano = row_checks._price(row)
    row.legs = charge_legs(row, hold)


def reasoning_beyond_the_output(rows: list[Row]) -> None:
    """Each of them costs what reasoning costs beyond other output, and there is none."""
    parts(rows, {"reasoning_nano": 10**9}, output_tokens=1, reasoning_tokens=10**9)


def cached_beyond_the_input(rows: list[Row]) -> None:
    """What is left of the input is below 0, and so are the pictures in it, at a discount."""
    parts(rows, {"image_nano": 0}, input_tokens=10, cached_tokens=1_000, image_tokens=1)


def charge_of_another_project(rows: list[Row]) -> None:
    paid(rows).project = "another"


def charge_of_another_model(rows: list[Row]) -> None:
    paid(rows).model = "cheaper"


def hold_of_before_a_start(rows: list[Row]) -> None:
    """Which has to give it back: nobody is left who saw the end of its request."""
    row = paid(rows)
    rows.insert(row.seq, Opened(epoch=99, version="1", statement="s", at_us=row.at_us))
    renumbered(rows)


def sums_of_rows_to_come(rows: list[Row]) -> None:
    """Their texts could go at any time, as if they had been compacted."""
    rows.insert(5, Daily(from_seq=100, to_seq=200, day="2026-11-27", num_rows=1, at_us=rows[5].at_us))
    renumbered(rows)


def tokens_below_nothing(rows: list[Row]) -> None:
    """They would make room for others in the sum."""
    row = paid(rows)
    row.output_tokens = -row.output_tokens - 1


def first_with_shares(rows: list[Row]) -> Window:
    return next(row for row in rows if isinstance(row, Window) and row.window.shares)


def shares_beyond_the_meter(rows: list[Row]) -> None:
    """The legs have what is in flight, the shares ten times as much."""
    row = first_with_shares(rows)
    shares = tuple((name, 10 * energy_mj + 1, gpu_us) for name, energy_mj, gpu_us in row.window.shares)
    row.window = msgspec.structs.replace(row.window, shares=shares)


def gpu_time_beyond_what_was_busy(rows: list[Row]) -> None:
    """Overhead below 0 makes room for it."""
    row = first_with_shares(rows)
    (name, energy_mj, gpu_us), *others = row.window.shares
    row.window = msgspec.structs.replace(
        row.window,
        shares=((name, energy_mj, gpu_us + 10**9), *others),
        overhead_gpu_us=row.window.overhead_gpu_us - 10**9,
    )
    row.legs = window_legs(row.worker_id, row.window, is_calibration=False)


def share_below_nothing(rows: list[Row]) -> None:
    """One is given more by taking from another, who never runs to its end."""
    row = first_with_shares(rows)
    (name, energy_mj, gpu_us), *others = row.window.shares
    shares = ((name, energy_mj + 500, gpu_us), ("req-nobody-1", -500, 0), *others)
    row.window = msgspec.structs.replace(row.window, shares=shares)


def energy_from_another_worker(rows: list[Row]) -> None:
    row = next(row for row in rows if isinstance(row, Energy) and row.energy_mj)
    other = next(name for name in WORKERS if name != row.worker_id)
    row.legs = [(account.replace(row.worker_id, other), unit, amount) for account, unit, amount in row.legs]
    row.worker_id = other


def window_of_a_worker_where_it_never_ran(rows: list[Row]) -> None:
    row = first_with_shares(rows)
    second = msgspec.structs.replace(row, worker_id=next(name for name in WORKERS if name != row.worker_id), number=999)
    second.legs = [
        (account.replace(row.worker_id, second.worker_id), unit, amount) for account, unit, amount in row.legs
    ]
    rows.insert(row.seq + 1, second)
    renumbered(rows)


def money_of_the_operator(rows: list[Row]) -> None:
    first(rows, Charge, payer=Payer.OPERATOR).cost_nano = 5


def energy_of_another_payer(rows: list[Row]) -> None:
    row = first(rows, Energy, account="alpha")
    row.account = "beta"
    row.legs = [(account.replace("/alpha", "/beta"), unit, amount) for account, unit, amount in row.legs]


def energy_of_nowhere(rows: list[Row]) -> None:
    row = next(row for row in rows if isinstance(row, Energy) and row.energy_mj)
    row.energy_mj *= 2
    row.legs = [(account, unit, 2 * amount if unit == "mJ" else amount) for account, unit, amount in row.legs]


def gpu_time_of_nowhere(rows: list[Row]) -> None:
    row = next(row for row in rows if isinstance(row, Energy) and row.gpu_us)
    row.gpu_us *= 2
    row.legs = [(account, unit, 2 * amount if unit == "gpu_us" else amount) for account, unit, amount in row.legs]


def legs_of_energy(rows: list[Row]) -> None:
    next(row for row in rows if isinstance(row, Energy) and row.energy_mj).legs = []


def legs_of_a_window(rows: list[Row]) -> None:
    row = first(rows, Window)
    row.legs = [(account.replace("idle", "overhead"), unit, amount) for account, unit, amount in row.legs]


def balance_of_a_window(rows: list[Row]) -> None:
    first(rows, Window).legs[0] = ("meter/w-0", "mJ", -1)


def money_in_a_window(rows: list[Row]) -> None:
    first(rows, Window).legs += [("drawn/alpha", "USD", -5), ("used/alpha", "USD", 5)]


def energy_of_another_worker(rows: list[Row]) -> None:
    row = first(rows, Window)
    other = next(name for name in WORKERS if name != row.worker_id)
    row.legs += [(f"in_flight/{other}", "mJ", -5), (f"requests/{other}/alpha", "mJ", 5)]


def money_in_a_change(rows: list[Row]) -> None:
    first(rows, Changed).legs = [("drawn/alpha", "USD", -5), ("used/alpha", "USD", 5)]


def balance_of_a_correction(rows: list[Row]) -> None:
    first(rows, Correction).legs = [("used/alpha", "USD", -5)]


def time(rows: list[Row]) -> None:
    rows[40].at_us = rows[38].at_us - 1


def number(rows: list[Row]) -> None:
    rows[41].seq = 41 + 1_000


def beginning(rows: list[Row]) -> None:
    del rows[0]
    renumbered(rows)


def second_beginning(rows: list[Row]) -> None:
    rows[50] = moved(type(rows[0])(ledger_id="b", origin="b", public_key="b", statement="s"), seq=50)
    rows[50].at_us = rows[49].at_us


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (legs_of_a_hold, "moves something else than it says"),
        (legs_of_a_void, "moves something else than it says"),
        (void_of_nothing, "gives back a hold that is not open: req-nobody"),
        (legs_of_a_charge, "moves something else than it says"),
        (price_of_a_charge, "costs something else than its rates say"),
        (rates_of_a_charge, "at other rates than were pinned"),
        (charge_without_a_hold, "no hold of its request is open"),
        (charge_of_another_tenant, "is paid by (alpha|beta), and what is held is (beta|alpha)'s"),
        (attempt_of_another_request, "and its attempt of another request"),
        (difference_in_another_currency, "costs IDR, and its charge USD"),
        (charged_after_it_was_measured, "is charged after its energy was measured"),
        (estimate_beyond_what_was_held, "costs more for its energy than was held for it"),
        (estimate_of_nothing, "costs something else for its energy than its estimate comes to"),
        (reasoning_beyond_the_output, "more reasoning than output"),
        (cached_beyond_the_input, "more cached tokens than input"),
        (charge_of_another_project, "is of another project, key, task, model"),
        (charge_of_another_model, "is of another project, key, task, model"),
        (hold_of_before_a_start, "no hold of its request is open"),
        (sums_of_rows_to_come, "sums up rows 100 to 199, which are not all before it"),
        (gpu_time_beyond_what_was_busy, "gives more GPU-time than was busy"),
        (tokens_below_nothing, "cannot be read as a row of kind charge: Expected `int` >= 0"),
        (shares_beyond_the_meter, "the shares of window .* are not its in-flight part"),
        (share_below_nothing, "takes from an attempt instead of giving to it"),
        (energy_from_another_worker, "and windows of .* gave it"),
        (window_of_a_worker_where_it_never_ran, "which ran on"),
        (money_of_the_operator, "lets the operator pay money to itself"),
        (energy_of_another_payer, "is paid by beta, and its charge by alpha"),
        (energy_of_nowhere, "and windows gave it"),
        (gpu_time_of_nowhere, "and windows gave it"),
        (legs_of_energy, "moves something else than it says"),
        (legs_of_a_window, "moves something else than it says"),
        (balance_of_a_window, "does not balance"),
        (money_in_a_window, "moves something else than energy of the attempts it measured"),
        (energy_of_another_worker, "moves something else than energy of the attempts it measured"),
        (money_in_a_change, "moves something else than it says"),
        (balance_of_a_correction, r"does not balance: \{'USD': -5\}"),
        (time, "is older than the one before"),
        (number, "is missing or out of order"),
        (beginning, "is not the beginning of a ledger"),
        (second_beginning, "is not the beginning of a ledger of this key"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_was_signed_must_add_up(copy_url: str, wrong: Callable[[list[Row]], None], words: str) -> None:
    """The signature says who wrote it, not that it is right."""
    rewrite(copy_url, wrong, seed=SEED)
    with pytest.raises(Fault, match=words) as caught:
        checked(copy_url, key=KEY)
    assert caught.value.seq is not None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (price_of_a_charge, "costs something else than its rates say"),
        (rates_of_a_charge, "at other rates than were pinned"),
        (legs_of_a_charge, "moves something else than it says"),
        (charge_without_a_hold, "no hold of its request is open"),
        (charge_of_another_tenant, "and what is held is"),
        (energy_of_another_payer, "and its charge by alpha"),
        (difference_in_another_currency, "costs IDR, and its charge USD"),
        (charged_after_it_was_measured, "is charged after its energy was measured"),
        (estimate_beyond_what_was_held, "costs more for its energy than was held for it"),
        (estimate_of_nothing, "costs something else for its energy than its estimate comes to"),
        (reasoning_beyond_the_output, "more reasoning than output"),
        (cached_beyond_the_input, "more cached tokens than input"),
        (charge_of_another_project, "is of another project, key, task, model"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_tenant_finds_in_its_receipt_what_an_auditor_finds(
    copy_url: str, wrong: Callable[[list[Row]], None], words: str
) -> None:
    """It has nothing but that: what was signed must add up there too."""
    seq = fault_of(copy_url, wrong)
    with closing(Reader(copy_url)) as reader:
        ((body,),) = execute(copy_url, f"SELECT row_id FROM rows WHERE seq = {seq}")
        receipt = make_receipt(reader, request_id_of(body), statement="s")
    assert receipt is not None
    with pytest.raises(ValueError, match=words):
        check_receipt(receipt, key=KEY)


def held_and_paid_twice(rows: list[Row]) -> str:
    charge = paid(rows)
    hold = first(rows, Hold, request_id=charge.request_id)
    again = msgspec.structs.replace(charge, attempt_id=f"{charge.request_id}-9")
    rows += [moved(msgspec.structs.replace(hold), seq=len(rows)), moved(again, seq=len(rows) + 1)]
    return charge.request_id


def measured_twice(rows: list[Row]) -> str:
    row = first(rows, Energy, account="alpha")
    rows.append(moved(msgspec.structs.replace(row), seq=len(rows)))
    return request_id_of(row.attempt_id)


@pytest.mark.parametrize("wrong", [held_and_paid_twice, measured_twice])
def test_a_receipt_has_each_row_once(copy_url: str, wrong: Callable[[list[Row]], str]) -> None:
    """The index that forbids it is the operator's; an auditor finds it, and so does whose request it is."""
    execute(copy_url, "DROP INDEX rows_by_id")
    ids: list[str] = []

    def change(rows: list[Row]) -> None:
        at_us = rows[-1].at_us
        ids.append(wrong(rows))
        for row in rows[NUM_ROWS:]:
            row.at_us = at_us

    rewrite(copy_url, change, seed=SEED)
    with closing(Reader(copy_url)) as reader:
        receipt = make_receipt(reader, ids[0], statement="s")
    assert receipt is not None
    with pytest.raises(ValueError, match="is there twice"):
        check_receipt(receipt, key=KEY)


def test_an_index_that_leaves_rows_out_hides_none(copy_url: str) -> None:
    """It comes with the file: rows that it does not have are looked at all the same."""
    execute(copy_url, "DROP INDEX rows_by_id")

    def change(rows: list[Row]) -> None:
        at_us = rows[-1].at_us
        held_and_paid_twice(rows)
        for row in rows[NUM_ROWS:]:
            row.at_us = at_us

    rewrite(copy_url, change, seed=SEED)
    whole = "CREATE INDEX rows_by_id ON rows (row_id, kind)"
    execute(copy_url, f"{whole} WHERE seq < {NUM_ROWS}")
    with closing(sqlite3.connect(copy_url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'rows_by_id'", (whole,))
    assert "was booked twice" in str(fault(copy_url))


def fault_of(url: str, wrong: Callable[[list[Row]], None]) -> int:
    rewrite(url, wrong, seed=SEED)
    seq = fault(url).seq
    assert seq is not None
    return seq


def signed_anew(url: str) -> None:
    """As the key's owner would after changing leaves."""
    rows = execute(url, "SELECT leaf FROM rows ORDER BY seq")
    tree = verify_module.Tree()
    execute(url, "DELETE FROM nodes")
    execute(url, "DELETE FROM checkpoints")
    for level, place, node in tree.extend([leaf for (leaf,) in rows]):
        execute(url, "INSERT INTO nodes VALUES (:level, :place, :node)", level=level, place=place, node=node)
    execute(url, "UPDATE ledger SET note = :note", note=Signer(ORIGIN, SEED).sign(tree.size, tree.root()))


def test_a_text_that_is_no_row_is_said(copy_url: str) -> None:
    """With its number; and a kind that a later version may know is unknown here. A text says itself what it is."""
    void = '{"seq":5,"request_id":"req-a","tenant":"alpha","cause":"c"}'
    for body, kind, words in (
        ('{"kind":"hold"}', "hold", "row 5: cannot be read as a row of kind hold"),
        ("[]", "hold", "row 5: does not begin with its kind, hold"),
        (void, "void", "row 5: does not begin with its kind, void"),
        ('{"kind":"dream"}', "dream", "row 5: is of no kind that is known here: 'dream'"),
    ):
        leaf = verify_module.sha256(verify_module.LEAF_PREFIX + body.encode()).digest()
        execute(
            copy_url, "UPDATE rows SET body = :body, kind = :kind, leaf = :leaf WHERE seq = 5",
            body=body, kind=kind, leaf=leaf,
        )  # fmt: skip
        signed_anew(copy_url)
        assert words in str(fault(copy_url))


def test_a_row_that_is_booked_twice_is_found(copy_url: str) -> None:
    """By whoever took the index away and has the key."""
    execute(copy_url, "DROP INDEX rows_by_id")
    rewrite(copy_url, twice, seed=SEED)
    assert "was booked twice" in str(fault(copy_url))


def twice(rows: list[Row]) -> None:
    row = first(rows, Changed)
    rows.append(Changed(change_id=row.change_id, fields={}, seq=len(rows), at_us=rows[-1].at_us))


def test_a_text_may_go_where_a_compaction_says_so(copy_url: str) -> None:
    """All of them or none; anywhere else it is missed."""
    rows = rows_of(copy_url)
    seq = first(rows, Changed).seq
    rewrite(
        copy_url,
        lambda rows: rows.append(
            Daily(from_seq=seq, to_seq=seq + 1, day="2026-11-27", num_rows=1, seq=len(rows), at_us=rows[-1].at_us)
        ),
        seed=SEED,
    )
    assert 0 == checked(copy_url, key=KEY).num_compacted
    execute(copy_url, f"UPDATE rows SET body = NULL WHERE seq = {seq}")
    assert 1 == checked(copy_url, key=KEY).num_compacted
    execute(copy_url, f"UPDATE rows SET body = NULL WHERE seq = {seq + 1}")
    assert (seq + 1, True) == ((found := fault(copy_url)).seq, "no compaction says so" in str(found))


@pytest.mark.parametrize("value", ["'text'", "5", "NULL"])
def test_a_leaf_that_is_no_hash_is_damage(copy_url: str, value: str) -> None:
    """SQLite takes any value in any column."""
    execute(copy_url, "PRAGMA writable_schema = 1")
    execute(copy_url, "PRAGMA ignore_check_constraints = 1")
    if value == "NULL":
        execute(copy_url, "UPDATE rows SET body = x'00ff' WHERE seq = 9")
    else:
        execute(copy_url, f"UPDATE rows SET leaf = {value} WHERE seq = 9")
    assert (9, True) == ((found := fault(copy_url)).seq, "is damaged" in str(found))


# -- files


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_copy_is_found(model: Path, tmp_path: Path, part: float) -> None:
    """Unreadable, or rows are missing."""
    data = model.read_bytes()
    copy = tmp_path / "copy.db"
    copy.write_bytes(data[: int(len(data) * part)])
    with pytest.raises((Fault, LedgerError)):
        checked(sqlite_url(copy), key=KEY)


def test_flipped_bytes_are_found(tmp_path: Path) -> None:
    """2,000 of a ledger's file, each by itself: found, or no row is another one. `make soak-tamper` flips all."""
    flips = Flips(file_of(tmp_path, 200))
    chance = random.Random(20_261_127)
    with flips.flipping():
        num_found = sum(
            flips.found(place, chance.randrange(1, 256)) for place in chance.sample(range(len(flips.data)), 2_000)
        )
    assert num_found > 800, "most bytes of the file are rows, or lead to them"
