"""The operator's application: one key, read only, and what it shows adds up."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from scheduler.api.access import Hosts
from scheduler.api.admin import AdminApp
from scheduler.metrics import Metrics
from tests.asgi_client import Asked, ask
from tests.fake_dispatcher import FakeDispatcher
from tests.local_link import ADMIN_KEY, KEYS, MODEL, ControlPlane, admin_keys, control_plane


@pytest_asyncio.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    """A control plane that answered one request."""
    async with control_plane() as running:
        body = {"model": MODEL, "prompt": "one two three", "max_tokens": 4}
        answered = await ask(running.relay, "/v1/completions", body, key=KEYS["alpha"]).finished()
        assert 200 == answered.status
        yield running


async def shown(plane: ControlPlane, path: str, **how: Any) -> Asked:
    return await ask(plane.admin, path, **{"key": ADMIN_KEY, **how}).finished()


async def test_workers(plane: ControlPlane) -> None:
    """State, load, meter and grade of each."""
    asked = await shown(plane, "/v1/jouleway/workers")
    worker = asked.json()["workers"][0]
    assert ("sim-0", "connected", True, "ready", "D") == (
        worker["worker_id"], worker["phase"], worker["is_ready"], worker["status"]["state"], worker["status"]["grade"],
    )  # fmt: skip
    assert ("application/json", "no-store") == (asked.headers["content-type"], asked.headers["cache-control"])


async def test_balance(plane: ControlPlane) -> None:
    """Meter = requests + idle + overhead + unattributed + in flight, and who used what."""
    found = (await shown(plane, "/v1/jouleway/balance")).json()
    balance = found["balance"]
    parts = ("requests_mj", "idle_mj", "overhead_mj", "unattributed_mj", "in_flight_mj")
    assert balance["meter_mj"] == sum(balance[part] for part in parts)
    alpha = next(row for row in found["tenants"] if row["tenant"] == "alpha")
    assert (1, 4, 4) == (alpha["requests"], alpha["input_tokens"], alpha["output_tokens"])
    assert isinstance(found["workers"], list)


async def test_snapshot(plane: ControlPlane) -> None:
    """Everything at one moment, as JSON."""
    found = (await shown(plane, "/v1/jouleway/snapshot")).json()
    assert (1, {"completed": 1}, [MODEL]) == (found["submitted"], found["finished"], found["ready_models"])
    assert {"workers", "queue", "balance", "tenants", "worker_energy"} <= found.keys()


async def test_queues(plane: ControlPlane) -> None:
    """Each band, best first."""
    found = (await shown(plane, "/v1/jouleway/queues")).json()["queues"]
    assert [("priority", 0), ("default", 0), ("flex", 0)] == [(band["band"], band["num_requests"]) for band in found]


async def test_budgets(plane: ControlPlane) -> None:
    """Those that are nearly spent, what is held, what was taken beyond the holds."""
    found = (await shown(plane, "/v1/jouleway/budgets")).json()
    assert ([], {"budgets", "held", "excess"}) == (found["budgets"], found.keys())
    assert not any(found["held"].values())


async def test_one_request(plane: ControlPlane) -> None:
    """Its life, whosever it was, with what it cost."""
    body = {"model": MODEL, "prompt": "x", "max_tokens": 2}
    request_id = (await ask(plane.relay, "/v1/completions", body, key=KEYS["beta"]).finished()).headers["x-request-id"]
    found = (await shown(plane, f"/v1/jouleway/requests/{request_id}")).json()
    assert (request_id, "beta", "completed") == (found["request_id"], found["tenant"], found["outcome"])
    assert (f"{request_id}-1", 2) == ((only := found["attempts"][0])["attempt_id"], only["tokens"]["output"])
    own = (await ask(plane.relay, f"/v1/jouleway/requests/{request_id}", key=KEYS["beta"]).finished()).json()
    assert found["waits"] == own["waits"]
    other = await ask(plane.relay, f"/v1/jouleway/requests/{request_id}", key=KEYS["alpha"]).finished()
    assert 404 == other.status


async def test_an_unknown_request_is_not_found(plane: ControlPlane) -> None:
    """Never seen, or too long ago."""
    asked = await shown(plane, "/v1/jouleway/requests/req-nobody")
    assert (404, "request_not_found") == (asked.status, asked.error()["code"])


async def test_metrics_are_prometheus_text(plane: ControlPlane) -> None:
    """The type says which version of it."""
    asked = await shown(plane, "/metrics")
    assert "text/plain; version=0.0.4; charset=utf-8" == asked.headers["content-type"]
    assert 'jouleway_tokens_total{class="output",tenant="alpha"} 4.0' in asked.body.decode()


@pytest.mark.parametrize(
    ("path", "how", "status", "code"),
    [
        ("/metrics", {"key": None}, 401, "invalid_api_key"),
        ("/v1/jouleway/balance", {"key": "wrong-key-0123456789"}, 401, "invalid_api_key"),
        ("/v1/jouleway/balance", {"key": KEYS["alpha"]}, 401, "invalid_api_key"),
        ("/v1/jouleway/balance", {"key": None, "headers": {"authorization": "Bearer"}}, 401, "invalid_api_key"),
        ("/v1/jouleway/balance", {"host": "rebound.example"}, 403, "host_not_allowed"),
        ("/v1/jouleway/balance", {"method": "DELETE"}, 405, "method_not_allowed"),
        ("/v1/jouleway/nothing", {}, 404, "route_not_found"),
        ("/", {}, 404, "route_not_found"),
        ("/v1/jouleway/nothing", {"key": None}, 401, "invalid_api_key"),
    ],
)
async def test_each_refusal(plane: ControlPlane, path: str, how: dict[str, Any], status: int, code: str) -> None:
    """A tenant's key opens nothing here; without a key not even routes can be told apart."""
    asked = await shown(plane, path, **how)
    assert (status, code) == (asked.status, asked.error()["code"])
    assert asked.headers["x-request-id"].startswith("req-")


async def test_health_needs_no_key(plane: ControlPlane) -> None:
    """It says nothing but that it runs."""
    asked = await shown(plane, "/health", key=None)
    assert (200, {"status": "ok"}) == (asked.status, asked.json())


async def test_a_failure_here_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """The listener goes on."""
    caplog.set_level(logging.ERROR)

    class Broken(FakeDispatcher):
        def snapshot(self) -> Any:
            raise ValueError("no snapshot")

    app = AdminApp(dispatcher=Broken(), keys=admin_keys(), hosts=Hosts(), metrics=Metrics())  # type: ignore[arg-type]
    asked = await ask(app, "/v1/jouleway/snapshot", key=ADMIN_KEY).finished()
    assert (500, "internal_error") == (asked.status, asked.error()["code"])
    assert "ValueError" in caplog.text


async def test_lifespan_is_left_alone() -> None:
    """The application neither starts nor stops anything."""
    app = AdminApp(
        dispatcher=FakeDispatcher(),  # type: ignore[arg-type]
        keys=admin_keys(), hosts=Hosts(), metrics=Metrics(),
    )  # fmt: skip

    async def nothing(*message: object) -> Any:
        raise AssertionError

    await asyncio.wait_for(app({"type": "lifespan"}, nothing, nothing), 1)
