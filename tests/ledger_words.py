"""Short ways to say what is in a ledger, who wrote it, and what somebody did to it behind our back.

Used by tests of the ledger (``from tests.ledger_words import Life, fill``).
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import CHECKPOINTS, LEDGER, NODES, ROWS, Reader, make_engine, sqlite_url
from scheduler.accounting.merkle import Tree, leaf_hash
from scheduler.accounting.outcomes import Facts, Tally, Verdict
from scheduler.accounting.outcomes import Outcome as Judgement
from scheduler.accounting.recovery import recover
from scheduler.accounting.rows import (
    Changed,
    Charge,
    Correction,
    Energy,
    Genesis,
    Hold,
    Judged,
    Prices,
    Row,
    decode,
    encode,
)
from scheduler.accounting.settlement import Settlement, request_id_of
from scheduler.core.actions import Payer
from scheduler.core.request import Rates
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from tests.scripted_link import MODEL, posting_of, window_of
from workers.types import Outcome

SEED = b"\x07" * 32
OTHER_SEED = b"\x08" * 32
LEDGER_ID = "0123456789abcdef"
STATEMENT = "jouleway-measurement/1.0"
RATES = Rates(input_nano=7_300_000, cached_nano=1_100_000, output_nano=31_700_000, version="2026-11-01/0123abcd")
WORKERS = ("w-0", "w-1")


def request_id(number: int) -> str:
    """As the relay makes them, of letters that say the number."""
    return "req-" + str(number).rjust(26, "0").translate(str.maketrans("0123456789", "abcdefghij"))


def hold_of(request_id: str, **fields: Any) -> Hold:
    """100 tokens in, 50 out, priced."""
    values = {
        "tenant": "alpha", "model": MODEL, "arrived_us": 1_000_000, "input_tokens": 100, "output_tokens": 50,
        "rates": RATES, **fields,
    }  # fmt: skip
    rates: Rates = values["rates"]
    cost_nano = rates.cost_nano(
        input_tokens=values["input_tokens"], cached_tokens=0, output_tokens=values["output_tokens"]
    )
    return Hold(request_id=request_id, **{"cost_nano": cost_nano, **values})


def charge_of(attempt_id: str, **fields: Any) -> Charge:
    """90 tokens in, 30 of them cached, 40 out, at the price of ``hold_of``; the operator pays nothing."""
    values = {
        "request_id": request_id_of(attempt_id), "attempt_number": int(attempt_id.rpartition("-")[2]),
        "tenant": "alpha", "model": MODEL, "worker_id": "w-0", "outcome": Outcome.COMPLETED, "arrived_us": 1_000_000,
        "input_tokens": 90, "cached_tokens": 30, "output_tokens": 40, "rates": RATES, **fields,
    }  # fmt: skip
    rates: Rates = values["rates"]
    cost_nano = rates.cost_nano(**{name: values[name] for name in ("input_tokens", "cached_tokens", "output_tokens")})
    is_free = values.get("payer") is Payer.OPERATOR
    return Charge(attempt_id=attempt_id, **{"cost_nano": 0 if is_free else cost_nano, **values})


def judged(outcome_id: str) -> Judged:
    """A request of its own, accepted."""
    verdict = Verdict(request_id=f"req-{outcome_id}", accepted=True, score_ppm=500_000)
    facts = Facts(tenant="alpha", model=MODEL, currency="USD")
    return Judged(
        outcome=Judgement(outcome_id=outcome_id, verdict=verdict, facts=facts, at_us=1), change=Tally(1, 0, 1)
    )


def energy_of(attempt_id: str, **fields: Any) -> Energy:
    """100 mJ and 10 GPU-µs of alpha's."""
    values = {"account": "alpha", "worker_id": "w-0", "energy_mj": 100, "gpu_us": 10, "grade": "A", "policy": "p"}
    return Energy(attempt_id=attempt_id, **{**values, **fields})


class Life:
    """A control plane's books on a ledger: opened and recovered; then ended in order, or killed."""

    def __init__(
        self,
        url: str,
        *,
        seed: bytes = SEED,
        rules: Rules | None = None,
        ledger_id: str = LEDGER_ID,
        unix_clock: Callable[[], float] | None = None,
        use_state: bool = True,
    ) -> None:
        clock = unix_clock or itertools.count(1_000_000_000).__next__
        self.checkpoints: list[str] = []
        self.ledger = Ledger(
            url,
            seed=seed,
            new_ledger_id=lambda: ledger_id,
            on_checkpoint=lambda size, note: self.checkpoints.append(note),
        )
        self.core = Scheduler(models=[MODEL], rules=rules)
        try:
            self.settlement, self.recovered = recover(
                self.ledger, self.core, statement=STATEMENT, version="1", unix_clock=clock, use_state=use_state
            )
        except BaseException:
            self.ledger.close()
            raise
        self.settlement.on_settled = self.core.holds.book_energy

    def commit(self, *, with_state: bool = False) -> None:
        """Everything so far is durable."""
        asyncio.run(self.settlement.journal.commit(with_state=with_state))

    def end(self) -> None:
        """In order: with a state."""
        self.commit(with_state=True)
        self.ledger.close()

    def kill(self) -> None:
        """What was not committed is gone."""
        self.ledger.close()


@contextmanager
def living(url: str, **options: Any) -> Iterator[Life]:
    """Killed at the end of the block, unless it ended before."""
    life = Life(url, **options)
    try:
        yield life
    finally:
        life.kill()


class Traffic:
    """Facts as they come in: random, but each one possible. Deterministic by ``seed``."""

    def __init__(self, settlement: Settlement, *, seed: int = 0, first_request: int = 1) -> None:
        """``first_request``: above those of every earlier traffic on the same ledger."""
        self.settlement = settlement
        self.chance = random.Random(seed)
        self.numbers = itertools.count(settlement.journal.next_seq)
        self.requests = itertools.count(first_request)
        self.running: list[str] = []
        """Attempts without a charge."""
        self.unposted: list[str] = []
        for worker_id in WORKERS:
            settlement.open_worker(worker_id, incarnation="life-1")

    def fill(self, num_rows: int) -> None:
        """Until the ledger has so many rows, or one more: the last step may write two."""
        while self.settlement.journal.next_seq < num_rows:
            self.step()

    def step(self) -> None:
        """One thing happens."""
        steps = (self.begin, self.meter, self.charge, self.post, self.give_up, self.void, self.note)
        self.chance.choices(steps, weights=(30, 15, 25, 25, 2, 3, 6))[0]()

    def begin(self) -> None:
        name, tenant = request_id(next(self.requests)), self.chance.choice(("alpha", "beta"))
        self.settlement.hold(hold_of(name, tenant=tenant, project="p", key_id="k", task="nightly"))
        self.running.append(f"{name}-1")

    def meter(self) -> None:
        worker_id = self.chance.choice(WORKERS)
        mine = [each for each in (*self.running, *self.unposted) if self.worker_of(each) == worker_id][:4]
        shares = tuple((each, self.chance.randint(0, 500), self.chance.randint(0, 50)) for each in mine)
        is_calibration = not shares and self.chance.random() < 0.3
        self.settlement.window(worker_id, window_of(*shares, calibrating=is_calibration), number=next(self.numbers))

    def charge(self) -> None:
        if not self.running:
            return
        attempt_id = self.running.pop(self.chance.randrange(len(self.running)))
        hold = self.settlement.books.holds[request_id_of(attempt_id)]
        common = {"tenant": hold.tenant, "project": "p", "key_id": "k", "task": "nightly"}
        worker_id = self.worker_of(attempt_id)
        if self.chance.random() < 0.1:  # in vain, and once more
            name, _, number = attempt_id.rpartition("-")
            self.running.append(f"{name}-{int(number) + 1}")
            common |= {"payer": Payer.OPERATOR, "outcome": Outcome.FAILED}
        output_tokens = self.chance.randint(0, 50)
        self.settlement.charge(charge_of(attempt_id, worker_id=worker_id, output_tokens=output_tokens, **common))
        self.unposted.append(attempt_id)

    def post(self) -> None:
        if self.unposted:
            attempt_id = self.unposted.pop(0)
            self.settlement.post_energy(self.worker_of(attempt_id), posting_of(attempt_id))

    def give_up(self) -> None:
        if self.unposted:
            self.settlement.give_up(self.unposted.pop(0))

    def void(self) -> None:
        if self.running:
            self.settlement.release(request_id_of(self.running.pop()), "client_gone")

    def note(self) -> None:
        number = str(self.settlement.journal.next_seq)
        self.settlement.note(
            self.chance.choice(
                (
                    Changed(change_id=number, fields={"what": "key_revoked", "target": "k"}),
                    judged(number),
                    Prices(version=number, text="model: m\n# π ≈ 3.14 €/Mtok"),
                    Correction(
                        correction_id=number,
                        of_seq=0,
                        reason="twice",
                        actor="ops",
                        legs=[("used/alpha", "USD", -5), ("drawn/alpha", "USD", 5)],
                    ),
                )
            )
        )

    @staticmethod
    def worker_of(attempt_id: str) -> str:
        """Attempts stay where they are."""
        return WORKERS[int(attempt_id.rpartition("-")[2]) % 2]


def fill(
    url: str, num_rows: int, *, seed: int = 0, commit_rows: int = 40, first_request: int = 1, **options: Any
) -> list[str]:
    """A whole ledger of so many rows or one more, ended in order; the checkpoints that were told."""
    life = Life(url, **options)
    try:
        traffic = Traffic(life.settlement, seed=seed, first_request=first_request)
        while life.settlement.journal.next_seq < num_rows:
            traffic.fill(min(life.settlement.journal.next_seq + commit_rows, num_rows))
            life.commit(with_state=True)
    finally:
        life.end()
    return life.checkpoints


def rows_of(url: str) -> list[Row]:
    """All of them, as they are stored."""
    reader = Reader(url)
    try:
        return [decode(body or "") for _, _, _, body, _ in reader.stored()]
    finally:
        reader.close()


# -- behind our back


def execute(url: str, statement: str, **values: Any) -> list[Any]:
    """One statement on the database itself; what it returns."""
    engine = make_engine(url, is_read_only=False)
    try:
        with engine.begin() as connection:
            done = connection.execute(sa.text(statement), values)
            return list(done) if done.returns_rows else []
    finally:
        engine.dispose()


def empty(url: str) -> None:
    """As if nobody had ever opened it: quicker than another database for each of many examples."""
    if url.startswith("sqlite"):
        for suffix in ("", "-wal", "-shm"):
            Path(url.removeprefix("sqlite:///") + suffix).unlink(missing_ok=True)
    else:
        execute(url, "DROP SCHEMA public CASCADE")
        execute(url, "CREATE SCHEMA public")


def rewrite(url: str, change: Callable[[list[Row]], None], *, seed: bytes | None = None) -> None:
    """Somebody with the database in hand changes rows and hashes the tree anew, as if they had always been there.

    ``seed``: and signs it, with the key of that seed. The numbers of the rows are left as they were changed to.
    """
    rows = rows_of(url)
    change(rows)
    engine = make_engine(url, is_read_only=False)
    with closing(engine.connect()) as connection, connection.begin():
        origin = connection.execute(sa.select(LEDGER.c.origin)).scalar_one()
        sizes = {*connection.execute(sa.select(CHECKPOINTS.c.size)).scalars(), len(rows)}
        signer = None if seed is None else Signer(origin, seed)
        if signer is not None and isinstance(rows[0], Genesis):
            rows[0].public_key = str(signer.public_key)
        tree, nodes, values, notes = Tree(), [], [], {}
        for row in rows:
            body = encode(row)
            leaf = leaf_hash(body)
            values.append({"seq": row.seq, "kind": row.kind, "row_id": row.row_id, "body": body.decode(), "leaf": leaf})
            nodes += tree.append(leaf)
            if signer is not None and tree.size in sizes:
                notes[tree.size] = signer.sign(tree.size, tree.root())
        for table in (ROWS, NODES):
            connection.execute(sa.delete(table))
        connection.execute(sa.insert(ROWS), values)
        if nodes:
            names = ("level", "place", "hash")
            connection.execute(sa.insert(NODES), [dict(zip(names, node, strict=True)) for node in nodes])
        if signer is not None:
            head = {"size": tree.size, "note": notes[tree.size], "public_key": str(signer.public_key)}
            connection.execute(sa.update(LEDGER).values(head))
            connection.execute(sa.delete(CHECKPOINTS))
            connection.execute(
                sa.insert(CHECKPOINTS), [{"size": size, "note": note} for size, note in sorted(notes.items())]
            )
    engine.dispose()


def file_of(folder: Path, num_rows: int = 200, **options: Any) -> Path:
    """A ledger's file as a copy of it would be: whole, and without a log beside it."""
    path = folder / "ledger.db"
    fill(sqlite_url(path), num_rows, **options)
    execute(sqlite_url(path), "PRAGMA wal_checkpoint(TRUNCATE)")
    return path
