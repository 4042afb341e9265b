"""The ledger goes away under a whole control plane: nothing is served unmetered, nothing ends before it is booked, and
afterwards every row is there once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.ledger_load import Load
from benchmarks.recovery import core, use
from scheduler import service as service_module
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.journal import STATE_S
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.recovery import recover
from scheduler.accounting.rows import Charge, Row, decode
from scheduler.accounting.verify import verify
from scheduler.commands.http_client import fetch
from scheduler.config import load_config
from scheduler.core.budgets import Budgets
from scheduler.ledger_files import ledger_url
from scheduler.service import Service
from tests.local_service import LocalCluster, complete
from tests.postgres import PostgresServer, running_server

CONFIG = """
server: {{port: 0}}
admin: {{port: 0}}
state_dir: state
limits: {{drain_s: 1, start_timeout_s: 30}}
models: {{m: {{default_output_tokens: 8, normalizer: none, price: {{input: 10, output: 10}}}}}}
workers:
  - name: sim
    engine: simulated
    model: m
    calibration_s: 0
    window_s: 0.2
    meter: {{kind: simulated}}
    engine_args: {{fixed_step_s: {step_s}, refresh_s: 0.005}}
tenants: [{{name: alpha}}]
generate_keys: true
ledger: {ledger}
"""


def config_of(folder: Path, *, ledger: str = "{}", step_s: float = 0.0005) -> Any:
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(ledger=ledger, step_s=step_s))
    return load_config(path)


@asynccontextmanager
async def running(config: Any) -> AsyncIterator[Service]:
    service = Service(config)
    cluster = service.cluster
    assert isinstance(cluster, LocalCluster)
    cluster.loop = asyncio.get_running_loop()
    try:
        await service.start()
        await service.wait_ready()
        yield service
    finally:
        for starting in cluster.starting:
            starting.cancel()
        await service.stop()
        await asyncio.gather(*cluster.starting, return_exceptions=True)


@pytest.fixture(autouse=True)
def local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "RayCluster", LocalCluster)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as started:
        yield started


async def is_ready(service: Service) -> bool:
    """An answer may be a second old."""
    await asyncio.sleep(1.05)
    return 200 == (await fetch(f"{service.url}/ready")).status


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def rows_of(config: Any) -> list[Row]:
    """All that a closed ledger has, after it was verified."""
    reader = Reader(ledger_url(config))
    try:
        found = verify(reader)
        assert 0 == found.num_open_holds
        return [decode(body) for _, _, _, body, _ in reader.stored() if body is not None]
    finally:
        reader.close()


def charges_by_request(rows: list[Row]) -> Counter[str]:
    return Counter(row.request_id for row in rows if isinstance(row, Charge))


def check_served(rows: list[Row], replies: list[Any]) -> None:
    """What ended well for its client is charged once, for what its client was told; nothing else is."""
    charged = charges_by_request(rows)
    assert {reply.headers["x-request-id"]: 1 for reply in replies} == charged
    tokens = {row.request_id: row.output_tokens for row in rows if isinstance(row, Charge)}
    for reply in replies:
        assert reply.json()["usage"]["completion_tokens"] == tokens[reply.headers["x-request-id"]]


# -- a ledger in a file


class Outage:
    """``begin`` and ``end`` one."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch, *, is_disk: bool) -> None:
        self._ledger, self._patch, self._is_disk = service.ledger, monkeypatch.context(), is_disk
        self._num_pages = 0

    def begin(self) -> None:
        if self._is_disk:
            with self._ledger.reading() as connection:
                self._num_pages = connection.execute(sa.text("PRAGMA page_count")).scalar_one()
            sa.event.listen(self._ledger._engine, "connect", self._limit)
            self._ledger._engine.dispose()
        else:
            self._patch.__enter__().setattr(Ledger, "write", self._fail)

    def end(self) -> None:
        if self._is_disk:
            sa.event.remove(self._ledger._engine, "connect", self._limit)
            self._ledger._engine.dispose()
        else:
            self._patch.__exit__(None, None, None)

    def _limit(self, connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {self._num_pages}")

    @staticmethod
    def _fail(*_: object) -> bool:
        raise LedgerError("the disk does not answer")


@pytest.mark.parametrize("is_disk", [False, True], ids=["error", "full disk"])
async def test_what_cannot_be_booked_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_disk: bool
) -> None:
    """503 and red while it lasts; what ran goes on and does not end; then it resumes, and all is there once."""
    caplog.set_level(logging.INFO, "jouleway")
    config = config_of(tmp_path, step_s=0.02)
    async with running(config) as service:
        key = service.generated_keys["alpha"]
        replies = [await complete(service, key)]
        # Long enough to begin before the outage, and done long before its end.
        ran = asyncio.create_task(complete(service, key, max_tokens=40))
        await until(lambda: service.snapshot().num_running and service.settlement.books.holds)
        await service.settlement.commit()
        outage = Outage(service, monkeypatch, is_disk=is_disk)
        outage.begin()
        waiting: list[asyncio.Task[Any]] = []
        while not service.snapshot().ledger_problem:  # until a commit has failed requests are taken: they wait
            waiting.append(asyncio.create_task(complete(service, key)))
            await asyncio.sleep(0.1)
            assert len(waiting) < 200
        refused = await complete(service, key)
        assert (503, "ledger_unavailable") == (refused.status, refused.json()["error"]["code"])
        assert 1 <= int(refused.headers["retry-after"])
        assert not await is_ready(service)
        assert 200 == (await fetch(f"{service.url}/health")).status
        durable_seq = service.settlement.journal.durable_seq
        await until(lambda: not service.snapshot().num_running)
        await asyncio.sleep(1.5)  # more than one try
        assert not any(task.done() for task in (ran, *waiting)), "an answer ended before it was booked"
        assert durable_seq == service.settlement.journal.durable_seq == service.snapshot().ledger_rows
        assert 0 < service.snapshot().ledger_pending_rows
        outage.end()
        replies += await asyncio.gather(ran, *waiting)
        assert {200} == {reply.status for reply in replies}
        assert "" == service.snapshot().ledger_problem
        assert await is_ready(service)
        replies.append(await complete(service, key))
    check_served(rows_of(config), replies)
    assert "ledger: writable again" in caplog.text


async def test_a_stream_begins_and_ends_only_when_it_is_booked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one byte of the engine leaves before the hold is durable, and no [DONE] before the charge is."""
    config = config_of(tmp_path)
    async with running(config) as service:
        outage = Outage(service, monkeypatch, is_disk=False)
        outage.begin()
        key = service.generated_keys["alpha"]
        stream = asyncio.create_task(complete(service, key, stream=True))
        await until(lambda: service.snapshot().ledger_problem)
        assert not stream.done()
        outage.end()
        reply = await stream
        assert (200, True) == (reply.status, reply.body.rstrip().endswith(b"data: [DONE]"))
    assert {reply.headers["x-request-id"]: 1} == charges_by_request(rows_of(config))


async def test_a_stop_in_an_outage_ends_answers_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clients are not told that all was well; the next start finds a sound ledger."""
    config = config_of(tmp_path)
    async with running(config) as service:
        outage = Outage(service, monkeypatch, is_disk=False)
        outage.begin()
        stream = asyncio.create_task(complete(service, service.generated_keys["alpha"], stream=True))
        await until(lambda: service.snapshot().ledger_problem)
    reply = await stream
    assert b"[DONE]" not in reply.body
    assert reply.status == 503 or b"error" in reply.body
    outage.end()
    async with running(config) as service:
        after = await complete(service, service.generated_keys["alpha"])
        assert 200 == after.status
    assert {after.headers["x-request-id"]: 1} == charges_by_request(rows_of(config))


# -- a ledger on a server


async def test_serving_goes_on_while_the_server_is_away(tmp_path: Path, server: PostgresServer) -> None:
    """Killed for a few seconds under load: every request is served and booked once, in one tree."""
    config = config_of(tmp_path, ledger=json.dumps({"url": server.new_database()}))
    async with running(config) as service:
        key, replies, tasks = service.generated_keys["alpha"], [], []
        await complete_all(service, key, replies, 3)
        await asyncio.to_thread(server.stop, at_once=True)
        await complete_all(service, key, replies, 5)
        assert await is_ready(service)
        assert service.spool is not None
        assert 0 < service.spool.num_rows
        assert "" == service.snapshot().ledger_problem
        receipt = await fetch(
            f"{service.url}/v1/jouleway/receipts/{replies[-1].headers['x-request-id']}",
            headers={"Authorization": f"Bearer {key}"},
        )
        assert (503, "ledger_unavailable") == (receipt.status, receipt.json()["error"]["code"])
        tasks = [asyncio.create_task(complete(service, key)) for _ in range(5)]
        await asyncio.to_thread(server.start)
        replies += await asyncio.gather(*tasks)
        while service.spool.num_rows:
            await complete_all(service, key, replies, 1)
            await asyncio.sleep(0.3)
            assert len(replies) < 200
        await complete_all(service, key, replies, 2)
    check_served(rows_of(config), replies)


async def complete_all(service: Service, key: str, replies: list[Any], num: int) -> None:
    found = await asyncio.gather(*(complete(service, key) for _ in range(num)))
    assert {200} == {reply.status for reply in found}
    replies += found


async def test_what_was_changed_in_an_outage_holds_after_a_restart(tmp_path: Path, server: PostgresServer) -> None:
    """A key that was revoked while the server was away, and a stop before it was back: it stays revoked."""
    config = config_of(tmp_path, ledger=json.dumps({"url": server.new_database()}))
    config = config.model_copy(update={"directory": "api", "generate_keys": False})

    async def admin(service: Service, path: str, body: object) -> Any:
        headers = {"Authorization": f"Bearer {service.admin_key}"}
        url = f"{service.admin_url}/v1/jouleway/admin{path}"
        return await fetch(url, method="POST", payload=body, headers=headers)

    async with running(config) as service:
        assert 201 == (await admin(service, "/tenants", {"name": "gamma"})).status
        made = (await admin(service, "/tenants/gamma/keys", {})).json()
        served = await complete(service, made["key"])
        assert 200 == served.status
        await asyncio.to_thread(server.stop, at_once=True)
        assert 200 == (await admin(service, f"/keys/{made['key_id']}/revoke", {})).status
    await asyncio.to_thread(server.start)
    async with running(config) as service:
        assert 401 == (await complete(service, made["key"])).status
    assert {served.headers["x-request-id"]: 1} == charges_by_request(rows_of(config))


# -- a clock that is set back


async def test_a_clock_that_is_set_back_by_an_hour_turns_nothing_around(tmp_path: Path) -> None:
    """Rows keep their order, states and checkpoints go on, and budgets of the day and for good are as they were."""
    url, now_s = sqlite_url(tmp_path / "ledger.db"), 1_793_520_000.0
    notes: list[int] = []
    ledger = Ledger(url, seed=b"\x01" * 32, on_checkpoint=lambda size, note: notes.append(size))
    scheduler = core()
    settlement, _ = recover(ledger, scheduler, statement="s", version="v", unix_clock=lambda: now_s)
    budgets = scheduler.holds.budgets
    load = Load(settlement, on_charge=lambda charge: use(budgets, charge))
    for step_s in (1_800, 1_800, -3_600, STATE_S, STATE_S, 3_600):
        now_s += step_s
        load.requests(40, at_unix_s=now_s)
        await settlement.commit()
    assert len(notes) == 6, "a state each time"
    used = lasting(budgets)
    ledger.close()
    reader = Reader(url)
    verify(reader)
    times_us = [decode(body).at_us for _, _, _, body, _ in reader.stored() if body is not None]
    reader.close()
    assert times_us == sorted(times_us)
    ledger = Ledger(url, seed=b"\x01" * 32)
    again = core()
    recover(ledger, again, statement="s", version="v", use_state=False, unix_clock=lambda: now_s)
    assert used == lasting(again.holds.budgets)
    ledger.close()


def lasting(budgets: Budgets) -> list[Any]:
    """What was used in windows that the clock did not leave."""
    return sorted(used for used in budgets.used() if used[3] in ("calendar day", "total"))
