"""The whole control plane over simulated engines in this process: started, served, balanced and stopped in order."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scheduler import service as service_module
from scheduler.accounting.change_rows import LedgerChangeLog
from scheduler.accounting.changes import Owner
from scheduler.accounting.directory import Directory
from scheduler.accounting.growth import Growth, check_growth
from scheduler.accounting.ledger_reader import Reader
from scheduler.commands.http_client import fetch
from scheduler.config import load_config
from scheduler.config_energy import DeferralConfig, EnergyConfig
from scheduler.config_errors import ConfigError
from scheduler.config_prices import PricesConfig
from scheduler.config_sections import LimitsConfig, PriceConfig
from scheduler.config_tenants import BudgetConfig, KeyConfig
from scheduler.ledger_files import ledger_url
from scheduler.listeners import PortTaken, bind
from scheduler.service import Service
from scheduler.snapshot import is_up, state_words
from tests.local_service import LocalCluster, complete
from workers import metering
from workers.errors import WorkerError
from workers.types import WorkerState

CONFIG = """
server: {{port: {port}}}
admin: {{port: 0}}
state_dir: state
limits: {{drain_s: 1, start_timeout_s: {start_timeout_s}}}
models: {{m: {{default_output_tokens: 8, normalizer: none, price: {{input: 10, output: 10}}}}}}
workers:
  - name: sim
    zone: hall
    engine: simulated
    model: m
    count: 2
    calibration_s: 0
    window_s: 0.1
    meter: {{kind: simulated}}
    engine_args: {engine_args}
tenants: [{{name: alpha}}, {{name: beta, data_class: important, budgets: {budgets}}}]
zones: {{hall: {{data_class: core}}}}
generate_keys: true
"""
FAST = {"fixed_step_s": 0.0005, "refresh_s": 0.005}


def config_of(
    folder: Path, *, port: int = 0, start_timeout_s: float = 10, budgets: str = "[]", **engine_args: object
) -> Any:
    path = folder / "c.yaml"
    arguments = json.dumps({**FAST, **engine_args})
    path.write_text(CONFIG.format(port=port, start_timeout_s=start_timeout_s, budgets=budgets, engine_args=arguments))
    return load_config(path)


@asynccontextmanager
async def running(folder: Path, *, config: Any = None, **settings: Any) -> AsyncIterator[Service]:
    service = Service(config or config_of(folder, **settings))
    assert isinstance(service.cluster, LocalCluster)
    service.cluster.loop = asyncio.get_running_loop()
    try:
        await service.start()
        yield service
    finally:
        for starting in service.cluster.starting:
            starting.cancel()
        await service.stop()
        await asyncio.gather(*service.cluster.starting, return_exceptions=True)


@pytest.fixture(autouse=True)
def local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "RayCluster", LocalCluster)
    monkeypatch.setattr(service_module, "RESTART_DELAYS_S", (0.01,))


async def test_requests_are_served_and_the_accounts_close(tmp_path: Path) -> None:
    """Through real sockets to the engine and back; after the stop every joule has its place."""
    async with running(tmp_path) as service:
        said: list[str] = []
        await service.wait_ready(progress=said.append)
        assert {"worker sim-0: ready", "worker sim-1: ready"} <= set(said)
        keys = list(service.generated_keys.values())
        replies = await asyncio.gather(*(complete(service, keys[index % 2]) for index in range(12)))
        assert {200} == {reply.status for reply in replies}
        assert {8} == {reply.json()["usage"]["completion_tokens"] for reply in replies}
        balance = await fetch(
            f"{service.admin_url}/v1/jouleway/balance", headers={"Authorization": f"Bearer {service.admin_key}"}
        )
        assert 200 == balance.status
    snapshot = service.snapshot()
    assert (12, 0, 0) == (snapshot.finished["completed"], snapshot.open_attempts, snapshot.num_running)
    assert (0, 0) == (snapshot.balance.difference_mj, snapshot.balance.in_flight_mj)
    assert 96 == sum(row.output_tokens for row in snapshot.tenants)
    assert snapshot.balance.requests_mj > 0
    assert ["connect", "shutdown"] == service.cluster.events  # type: ignore[attr-defined]


async def test_configured_rules_prices_and_zones_reach_each_request(tmp_path: Path) -> None:
    """Money is counted by the model's price against the tenant's budget; zones and classes are those of the file."""
    async with running(tmp_path, budgets="[{money: 0.00025, per: total}]") as service:
        await service.wait_ready()
        key = service.generated_keys["beta"]
        metered = {"x-jouleway-metering": "1"}
        first, second, third = [await complete(service, key, headers=metered) for _ in range(3)]
        cost_nano = first.json()["jouleway"]["cost_nano"]
        assert first.json()["usage"]["total_tokens"] * 10_000 == cost_nano
        assert (200, 200, 429) == (first.status, second.status, third.status)
        budget = third.json()["error"]["budget"]
        assert ("tenant beta", 250_000, 250_000 - cost_nano - second.json()["jouleway"]["cost_nano"]) == (
            budget["level"], budget["limit"], budget["left"],
        )  # fmt: skip
        for name, value, code in (
            ("x-jouleway-zones", "yard", "unknown_zone"),
            ("x-jouleway-data-class", "general", "may_only_tighten"),
        ):
            assert code == (await complete(service, key, headers={name: value})).json()["error"]["code"]


async def test_a_header_of_a_megabyte_is_refused_and_the_next_request_served(tmp_path: Path) -> None:
    """Through the real listener."""
    async with running(tmp_path) as service:
        await service.wait_ready()
        key = service.generated_keys["alpha"]
        refusal = await complete(service, key, headers={"x-jouleway-task": "x" * 1_000_000})
        assert (400, "x-jouleway-task") == (refusal.status, refusal.json()["error"]["param"])
        assert 200 == (await complete(service, key, headers={"x-jouleway-task": "x" * 128})).status


async def test_nobody_enters_by_the_wrong_door(tmp_path: Path) -> None:
    """A tenant's key opens no admin route, the admin's key no model; admin routes are not on the public listener."""
    async with running(tmp_path) as service:
        await service.wait_ready()
        tenant_key = service.generated_keys["alpha"]
        asked = f"{service.admin_url}/v1/jouleway/balance"
        assert (await fetch(asked, headers={"Authorization": f"Bearer {tenant_key}"})).status in (401, 403)
        assert 401 == (await complete(service, service.admin_key)).status
        wrong_door = f"{service.url}/metrics"
        assert (await fetch(wrong_door, headers={"Authorization": f"Bearer {service.admin_key}"})).status in (401, 404)


async def test_who_holds_an_older_checkpoint_gets_the_proof_that_the_ledger_grew(tmp_path: Path) -> None:
    """From both listeners, while it serves."""
    async with running(tmp_path) as service:
        await service.wait_ready()
        tenant_key = service.generated_keys["alpha"]
        key, size = service.ledger.signer.public_key, 0
        old = key.verify(service.ledger.head()["note"])
        for url, by in ((service.url, tenant_key), (service.admin_url, service.admin_key)):
            await complete(service, tenant_key)
            asked = f"{url}/v1/jouleway/checkpoint?from={old.size}"
            reply = await fetch(asked, headers={"Authorization": f"Bearer {by}"})
            new = check_growth(msgspec.json.decode(reply.body, type=Growth), old, key=key)
            assert new.size > max(old.size, size)
            size = new.size


async def test_a_worker_that_dies_is_replaced_and_serves_again(tmp_path: Path) -> None:
    """The fleet is told by the dispatcher; the successor answers under the same name."""
    async with running(tmp_path) as service:
        await service.wait_ready()
        cluster = service.cluster
        assert isinstance(cluster, LocalCluster)
        await cluster.links[0].worker.stop(cause="died by the test")
        async with asyncio.timeout(10):
            while len(cluster.links) < 3 or not all(worker.is_ready for worker in service.snapshot().workers):
                await asyncio.sleep(0.02)
        assert 1 == service.fleet.num_restarts
        assert 200 == (await complete(service, service.generated_keys["alpha"])).status


async def test_the_successor_goes_on_from_the_last_reading_of_the_same_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the dead worker said its counter was, and the last reading of it that was booked."""
    monkeypatch.setattr(metering, "counter_id", lambda meter_name, gpu_uuids: "GPU-1")
    async with running(tmp_path) as service:
        await service.wait_ready()
        cluster = service.cluster
        assert isinstance(cluster, LocalCluster)
        (dead, *_), num_links = cluster.links, len(cluster.links)
        async with asyncio.timeout(10):
            while service.settlement.last_counter_mj(dead.worker_id) is None:
                await asyncio.sleep(0.02)
            await dead.worker.stop(cause="died by the test")
            while len(cluster.links) == num_links:
                await asyncio.sleep(0.02)
        spec = cluster.links[-1].worker.spec
        assert (dead.worker_id, "GPU-1") == (spec.worker_id, spec.last_counter_id)
        assert spec.last_counter_mj is not None
        assert spec.last_counter_mj > 0


async def test_a_worker_that_does_not_start_ends_the_wait_with_its_cause(tmp_path: Path) -> None:
    """The engine's own words, not a time-out."""
    async with running(tmp_path, start_fails=True) as service:
        with pytest.raises(WorkerError, match="start_fails"):
            await service.wait_ready()


async def test_the_wait_for_workers_has_an_end(tmp_path: Path) -> None:
    """limits.start_timeout_s is named, and who is late."""
    async with running(tmp_path, start_timeout_s=0.2, start_s=30) as service:
        with pytest.raises(WorkerError, match=r"start_timeout_s = 0\.2 s: sim-0, sim-1"):
            await service.wait_ready()


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    """And the other port is free again."""
    with bind("server", "127.0.0.1", 0) as taken, pytest.raises(PortTaken, match=r"server\.port"):
        Service(config_of(tmp_path, port=taken.getsockname()[1]))


def test_a_bad_admin_key_is_said_before_anything_starts(tmp_path: Path) -> None:
    """It is readable by others: no port is bound."""
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "admin.key"
    path.write_text("a-key-that-everybody-reads\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Service(config_of(tmp_path))


async def test_no_key_appears_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From start to stop, at the finest level."""
    caplog.set_level(logging.DEBUG)
    async with running(tmp_path) as service:
        await service.wait_ready()
        await complete(service, service.generated_keys["alpha"], prompt="CANARY-PROMPT")
        secrets = [service.admin_key, *service.generated_keys.values(), "CANARY-PROMPT"]
    assert [] == [secret for secret in secrets if secret in caplog.text]


async def test_rules_and_keys_change_while_it_serves(tmp_path: Path) -> None:
    """A budget that was lowered refuses the next request; what is read at the start only is named."""
    async with running(tmp_path) as service:
        await service.wait_ready()
        key = service.generated_keys["alpha"]
        assert 200 == (await complete(service, key)).status
        before = service._config
        poor = before.tenants[0].model_copy(update={"budgets": (BudgetConfig(tokens=Decimal(1), per="1h"),)})
        changed = before.model_copy(update={"tenants": (poor, *before.tenants[1:]), "limits": LimitsConfig(drain_s=9)})
        assert ["limits"] == service.reload(changed)
        assert 429 == (await complete(service, key)).status
        assert 200 == (await complete(service, service.generated_keys["beta"])).status


async def test_a_ledger_keeps_its_currency(tmp_path: Path) -> None:
    """A reload is refused and changes nothing; a start too, once money was charged, and says what to do."""
    config = config_of(tmp_path)
    in_euro = config.model_copy(update={"currency": "EUR"})
    async with running(tmp_path, config=config) as service:
        await service.wait_ready()
        with pytest.raises(ConfigError, match="currency: USD cannot become EUR while it serves; remedy: a new ledger"):
            service.reload(in_euro)
        assert 200 == (await complete(service, service.generated_keys["alpha"])).status
        assert [] == service.reload(config)
    with pytest.raises(ConfigError, match=r"has charged money in USD, and EUR .* remedy: currency: USD, or a new"):
        Service(in_euro)
    async with running(tmp_path, config=config):
        pass  # everything that the refused one had opened was closed
    async with running(tmp_path, config=in_euro.model_copy(update={"state_dir": tmp_path / "other"})):
        pass


async def test_prices_change_while_it_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next request pays the new price, one that runs its own; what has no price is refused and told in the log."""
    slow = {"fixed_step_s": 0.02}
    async with running(tmp_path, **slow) as service:
        await service.wait_ready()
        key, metered = service.generated_keys["alpha"], {"x-jouleway-metering": "1"}
        running_one = asyncio.create_task(complete(service, key, headers=metered, max_tokens=20))
        async with asyncio.timeout(10):
            while not service.snapshot().num_running:
                await asyncio.sleep(0.005)
        before = service._config
        dearer = before.models["m"].model_copy(update={"price": PriceConfig(input=Decimal(70), output=Decimal(70))})
        assert [] == service.reload(before.model_copy(update={"models": {"m": dearer}})), "no restart for a price"
        first, second = await running_one, await complete(service, key, headers=metered)
        assert [10_000, 70_000] == [
            reply.json()["jouleway"]["cost_nano"] // reply.json()["usage"]["total_tokens"] for reply in (first, second)
        ]
        unpriced = before.models["m"].model_copy(update={"price": None})
        refuse = PricesConfig(missing="refuse")
        service.reload(before.model_copy(update={"models": {"m": unpriced}, "prices": refuse}))
        reply = await complete(service, key)
        assert (503, "no_price", "false") == (
            reply.status, reply.json()["error"]["code"], reply.headers["x-should-retry"]
        )  # fmt: skip
    assert "prices: no price version is in force now: requests are refused (no_price)" in caplog.text


async def test_a_reload_that_is_refused_leaves_prices_as_they_were(tmp_path: Path) -> None:
    """Those that `jouleway models` shows, and no row says that others came into the house."""
    async with running(tmp_path) as service:
        await service.wait_ready()
        before, rates, seq = service._config, service._rates_now(), service.settlement.journal.next_seq
        dearer = before.models["m"].model_copy(update={"price": PriceConfig(input=Decimal(70))})
        keyless = before.tenants[0].model_copy(
            update={
                "keys": (KeyConfig(file=tmp_path / "no.key", budgets=(BudgetConfig(tokens=Decimal(1), per="1h"),)),)
            }
        )
        wrong = before.model_copy(update={"models": {"m": dearer}, "tenants": (keyless, *before.tenants[1:])})
        with pytest.raises(ConfigError, match=r"no\.key"):
            service.reload(wrong)
        assert (before, rates, seq) == (service._config, service._rates_now(), service.settlement.journal.next_seq)
        service.reload(before.model_copy(update={"models": {"m": dearer}}))
        assert rates != service._rates_now()


async def admin(service: Service, method: str, path: str, body: object = None, *, key: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {key or service.admin_key}"}
    url = f"{service.admin_url}/v1/jouleway/admin{path}"
    return await fetch(url, method=method, payload=body, headers=headers)


async def test_a_tenant_lives_by_the_api_alone(tmp_path: Path) -> None:
    """Created, given a key and a budget, asked, revoked, while everything runs; then the log makes it again."""
    config = config_of(tmp_path).model_copy(update={"directory": "api", "generate_keys": False})
    async with running(tmp_path, config=config) as service:
        await service.wait_ready()
        assert Owner.API is service.directory_owner
        assert 201 == (await admin(service, "POST", "/tenants", {"name": "gamma", "data_class": "core"})).status
        made = (await admin(service, "POST", "/tenants/gamma/keys", {})).json()
        assert 200 == (await complete(service, made["key"])).status
        budgets = {"level": "key", "name": made["key_id"], "budgets": [{"tokens": 1, "per": "1h"}]}
        assert 200 == (await admin(service, "PUT", "/budgets", budgets)).status
        assert 429 == (await complete(service, made["key"])).status
        unknown = await admin(service, "POST", "/tenants", {"name": "delta", "zones": ["mars"]})
        assert (400, "zones") == (unknown.status, unknown.json()["error"]["param"])
        other = (await admin(service, "POST", "/tenants/gamma/keys", {})).json()
        running_one = asyncio.create_task(complete(service, other["key"], max_tokens=200))
        await asyncio.sleep(0.05)
        assert 200 == (await admin(service, "POST", f"/keys/{other['key_id']}/revoke")).status
        assert 401 == (await complete(service, other["key"])).status
        assert 200 == (await running_one).status
        assert [] == service.reload(config)
        assert ["directory"] == service.reload(config.model_copy(update={"directory": "file", "generate_keys": False}))
    reader = Reader(ledger_url(config))
    log = LedgerChangeLog(reader)
    rows, last = list(log.changes()), await log.page(before=None, limit=1)
    reader.close()
    assert service._directory.tenancy.directory.state() == Directory.of(rows).state()
    assert ("key_revoked", "access_denied") == (rows[-1].what, last[0].fields["what"])


async def test_where_the_file_owns_the_api_reads_only(tmp_path: Path) -> None:
    """And says which file."""
    async with running(tmp_path) as service:
        refused = await admin(service, "POST", "/tenants", {"name": "gamma"})
        assert (409, True) == (refused.status, str(tmp_path / "c.yaml") in refused.json()["error"]["message"])
        shown = (await admin(service, "GET", "/tenants")).json()["data"]
        assert [("alpha", 1), ("beta", 1)] == [(row["name"], row["num_keys"]) for row in shown]


def test_states_are_said_in_words() -> None:
    """With the cause, where there is one."""
    from types import SimpleNamespace

    status = SimpleNamespace(state=SimpleNamespace(value="starting"), cause="calibrating (at most 20 s)")
    assert "starting (calibrating (at most 20 s))" == state_words(SimpleNamespace(status=status))  # type: ignore[arg-type]
    lost = SimpleNamespace(status=None, phase="lost", cause="worker_lost")
    assert "lost (worker_lost)" == state_words(lost)  # type: ignore[arg-type]


async def test_a_file_that_appears_in_the_folder_changes_prices_and_lets_who_waits_begin(tmp_path: Path) -> None:
    """No restart: the core's price, the ledger's carbon, and a batch request that waited for a cheaper hour."""
    feed = tmp_path / "feed"
    feed.mkdir()

    def drop(text: str) -> None:
        (feed / ".new").write_text("start_utc,value,unit\n" + text)
        (feed / ".new").replace(feed / "prices.csv")

    hour = int(time.time()) // 3_600 * 3_600
    later, latest = (datetime.fromtimestamp(hour + 3_600 * number, UTC).isoformat() for number in (2, 3))
    drop(f"{datetime.fromtimestamp(hour, UTC).isoformat()},0.36,per kWh\n{later},0.09,per kWh\n{latest},0.36,per kWh\n")
    config = config_of(tmp_path)
    energy = EnergyConfig(folder=feed, refresh_s=0.1, deferral=DeferralConfig(margin_s=0))
    async with running(tmp_path, config=config.model_copy(update={"energy": energy})) as service:
        assert {"hall": pytest.approx(100.0)} == service._core.rules.placement.nano_per_joule
        key = service.generated_keys["alpha"]
        asking = asyncio.create_task(
            complete(service, key, {"x-jouleway-deadline-s": "86400"}, service_tier="flex", max_tokens=2)
        )
        while not len(service._core.deferral):
            await asyncio.sleep(0.02)
        drop(f"{datetime.fromtimestamp(hour, UTC).isoformat()},0.18,per kWh\n{later},0.36,per kWh\n")
        reply = await asyncio.wait_for(asking, 20)
        assert 200 == reply.status
        assert {"hall": pytest.approx(50.0)} == service._core.rules.placement.nano_per_joule
        (feed / "carbon.csv").write_text(
            f"start_utc,value,unit\n{datetime.fromtimestamp(hour, UTC).isoformat()},720,g/kWh\n"
        )
        while service.settlement.carbon_ug_per_mj["hall"] != 0.2:
            await asyncio.sleep(0.02)
        assert [] == service.reload(config)
        assert ({}, {"hall": 0.0}) == (
            service._core.rules.placement.nano_per_joule,
            service.settlement.carbon_ug_per_mj,
        )


@pytest.mark.parametrize(
    ("state", "is_ready", "expected"),
    [
        (WorkerState.READY, True, True),
        (WorkerState.PARKED, False, True),
        (WorkerState.STARTING, False, False),
        (WorkerState.SICK, False, False),
        (None, False, False),
    ],
)
def test_a_worker_that_is_found_parked_is_up(state: WorkerState | None, is_ready: bool, expected: bool) -> None:
    """Whoever starts a control plane beside parked engines does not wait for engines that nobody needs."""
    from types import SimpleNamespace

    status = None if state is None else SimpleNamespace(state=state)
    assert expected is is_up(SimpleNamespace(is_ready=is_ready, status=status))  # type: ignore[arg-type]
