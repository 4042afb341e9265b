"""The public application: routes, hosts, keys, bodies, probes; an id and an OpenAI body on every answer."""

import asyncio
import logging
import re
from typing import Any

import pytest

from scheduler.api.access import Hosts
from scheduler.api.app import RelayApp, template_of
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.metrics import Metrics
from scheduler.streams import Submission
from tests.asgi_client import Asked, ask
from tests.fake_dispatcher import JSON, FakeDispatcher, Ready, completed, head
from tests.local_link import KEYS, caller_keys

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
KEY = KEYS["alpha"]


class Bench:
    """The application over a fake dispatcher, with a clock that stands."""

    def __init__(self, dispatcher: FakeDispatcher | None = None, **limits: Any) -> None:
        self.dispatcher = dispatcher or FakeDispatcher()
        self.metrics = Metrics()
        self.now_s = 100.0
        self.app = RelayApp(
            dispatcher=self.dispatcher,  # type: ignore[arg-type]
            keys=caller_keys(),
            hosts=Hosts(["api.example"]),
            models={name: ServedModel(name=name, created_unix_s=7) for name in ("m", "org/model")},
            limits=RelayLimits(**limits),
            metrics=self.metrics,
            clock=lambda: self.now_s,
            new_request_id=lambda: "req-fixed",
        )

    async def ask(self, path: str, body: object = None, **how: Any) -> Asked:
        return await ask(self.app, path, body, **how).finished()


# -- what is served


async def test_the_way_of_a_completion() -> None:
    """Host, route, key, body, relay; the answer carries our id."""
    bench = Bench()
    asked = ask(bench.app, CHAT, HELLO, key=KEY)
    stream = await bench.dispatcher.stream()
    stream.put_head(head(200, JSON))
    stream.put_body(b'{"ok":true}')
    stream.put_end(completed())
    await asked.finished()
    assert (200, {"ok": True}, "req-fixed") == (asked.status, asked.json(), asked.headers["x-request-id"])
    request = bench.dispatcher.submissions[0].request
    assert ("alpha", "req-fixed") == (request.tenant, request.request_id)


async def test_an_id_of_the_client_is_not_ours() -> None:
    """Ids are made here: nobody can write into the ledger of another."""
    asked = await Bench().ask("/v1/models", key=KEY, headers={"x-request-id": "req-theirs"})
    assert "req-fixed" == asked.headers["x-request-id"]


async def test_each_request_has_an_id_of_its_own() -> None:
    """The default makes random ones."""
    app = RelayApp(
        dispatcher=FakeDispatcher(),  # type: ignore[arg-type]
        keys=caller_keys(), hosts=Hosts(), models={}, limits=RelayLimits(), metrics=Metrics(),
    )  # fmt: skip
    ids = {(await ask(app, "/health").finished()).headers["x-request-id"] for _ in range(5)}
    assert 5 == len(ids)
    assert all(re.fullmatch(r"req-[a-z2-7]{26}", each) for each in ids)


async def test_models_are_listed_in_openais_shape() -> None:
    """What the configuration serves, whether a worker is ready or not."""
    bench = Bench()
    listed = (await bench.ask("/v1/models", key=KEY)).json()
    assert ("list", ["m", "org/model"]) == (listed["object"], [model["id"] for model in listed["data"]])
    assert {"id": "m", "object": "model", "created": 7, "owned_by": "jouleway"} == listed["data"][0]
    one = await bench.ask("/v1/models/org/model", key=KEY)
    assert listed["data"][1] == one.json()


async def test_a_model_that_is_not_served_is_not_found() -> None:
    """The same word as for a completion."""
    asked = await Bench().ask("/v1/models/other", key=KEY)
    assert (404, "model_not_found") == (asked.status, asked.error()["code"])


async def test_a_tenant_sees_the_life_of_its_own_requests() -> None:
    """That of another tenant is not told from one that never was."""
    bench = Bench()
    bench.dispatcher.stories = {each: {"tenant": each, "state": "waiting"} for each in KEYS}
    own = await bench.ask("/v1/jouleway/requests/alpha", key=KEY)
    assert (200, {"tenant": "alpha", "state": "waiting"}, "no-store") == (
        own.status, own.json(), own.headers["cache-control"],
    )  # fmt: skip
    other, nobody = [await bench.ask(f"/v1/jouleway/requests/{each}", key=KEY) for each in ("beta", "nobody")]
    assert (404, other.body) == (other.status, nobody.body)


async def test_a_what_if_runs_nothing() -> None:
    """The core is asked; nothing is submitted."""
    bench = Bench()
    asked = await bench.ask("/v1/jouleway/what-if", {"url": CHAT, "body": HELLO}, key=KEY)
    assert (200, {"request_id": "req-fixed", "state": "what_if"}) == (asked.status, asked.json())
    assert ("alpha", 100.0) == ((request := bench.dispatcher.asked[0]).tenant, request.arrival_s)
    assert [] == bench.dispatcher.submissions


async def test_health_and_readiness_need_no_key_and_no_host() -> None:
    """Load balancers ask by address."""
    bench = Bench()
    assert (200, 200) == (
        (await bench.ask("/health", host="10.0.0.7")).status, (await bench.ask("/ready", host="10.0.0.7")).status,
    )  # fmt: skip


@pytest.mark.parametrize("ready", [Ready(ready_models=()), Ready(is_draining=True), Ready(ledger_problem="disk full")])
async def test_not_ready_without_a_worker_or_while_it_drains(ready: Ready) -> None:
    """Alive, but send nothing here."""
    bench = Bench()
    bench.dispatcher.ready = ready
    assert (503, 200) == ((await bench.ask("/ready")).status, (await bench.ask("/health")).status)


async def test_readiness_is_looked_up_once_a_second() -> None:
    """Everybody may ask; a snapshot costs work."""
    bench = Bench()
    for _ in range(5):
        await bench.ask("/ready")
    assert 1 == bench.dispatcher.num_snapshots
    bench.now_s += 1.0
    bench.dispatcher.ready = Ready(ready_models=())
    assert 503 == (await bench.ask("/ready")).status


# -- what is refused


@pytest.mark.parametrize(
    ("path", "how", "status", "code"),
    [
        ("/v2/nothing", {}, 404, "route_not_found"),
        ("/v1/models", {}, 401, "invalid_api_key"),
        ("/v1/models", {"key": "wrong-key-0123456789"}, 401, "invalid_api_key"),
        ("/v1/models", {"headers": {"authorization": "Basic abc"}}, 401, "invalid_api_key"),
        ("/v1/models", {"key": KEY, "host": "evil.example"}, 403, "host_not_allowed"),
        ("/v1/models", {"key": KEY, "host": "a b"}, 400, "bad_host"),
        (CHAT, {"key": KEY, "method": "GET"}, 405, "method_not_allowed"),
        ("/v1/models", {"key": KEY, "method": "POST"}, 405, "method_not_allowed"),
        ("/health", {"method": "POST"}, 405, "method_not_allowed"),
        ("/v1/jouleway/requests/req-a", {"key": None}, 401, "invalid_api_key"),
        ("/v1/jouleway/requests/req-nobody", {"key": KEY}, 404, "request_not_found"),
        ("/v1/jouleway/requests/", {"key": KEY}, 404, "request_not_found"),
        ("/v1/jouleway/requests/req-a", {"key": KEY, "method": "DELETE"}, 405, "method_not_allowed"),
        ("/v1/jouleway/what-if", {"key": KEY}, 405, "method_not_allowed"),
        ("/v1/jouleway/snapshot", {"key": KEY}, 404, "route_not_found"),
    ],
)
async def test_each_refusal_has_its_status_word_and_id(path: str, how: dict[str, Any], status: int, code: str) -> None:
    """Also 401 and 404: what a client complains about can be found."""
    bench = Bench()
    asked = await bench.ask(path, **how)
    assert (status, code, "req-fixed") == (asked.status, asked.error()["code"], asked.headers["x-request-id"])
    assert f'jouleway_errors_total{{code="{code}",status="{status}"}} 1.0' in bench.metrics.render().decode()


async def test_the_headers_of_a_refusal() -> None:
    """401 says how to authenticate, 405 what is allowed."""
    bench = Bench()
    assert "Bearer" == (await bench.ask("/v1/models")).headers["www-authenticate"]
    assert "POST" == (await bench.ask(CHAT, key=KEY, method="PUT")).headers["allow"]


async def test_another_configured_host_is_served() -> None:
    """``server.allowed_hosts``, whatever its port."""
    assert 200 == (await Bench().ask("/v1/models", key=KEY, host="API.example:8443")).status


async def test_a_large_body_is_refused_before_it_is_read_and_the_connection_ends() -> None:
    """413 at once: the application returns although the body never came."""
    bench = Bench(max_body_bytes=1024)
    asked = await bench.ask(CHAT, b"", key=KEY, headers={"content-length": "1025"}, ends=False)
    assert (413, "body_too_large", "close") == (asked.status, asked.error()["code"], asked.headers["connection"])


async def test_an_unauthorized_body_is_not_read() -> None:
    """Strangers cannot make us hold their bytes."""
    asked = await Bench().ask(CHAT, [b"x"], ends=False)
    assert (401, "close") == (asked.status, asked.headers["connection"])


async def test_a_body_that_stops_is_answered() -> None:
    """408 after ``body_timeout_s``."""
    asked = await Bench(body_timeout_s=0.01).ask(CHAT, [b"{"], key=KEY, ends=False)
    assert (408, "body_timeout") == (asked.status, asked.error()["code"])


async def test_a_client_that_leaves_while_it_is_read_gets_nothing() -> None:
    """And nothing is submitted."""
    bench = Bench()
    asked = ask(bench.app, CHAT, [b"{"], key=KEY, ends=False)
    asked.hang_up()
    await asked.finished()
    assert (None, []) == (asked.status, bench.dispatcher.submissions)


# -- the loop's edge


class Broken(FakeDispatcher):
    """Fails with a text that nobody may see."""

    def submit(self, submission: Submission) -> Any:
        raise RuntimeError("SECRET-PROMPT")


async def test_a_bug_here_is_a_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """The exception may hold a prompt: its type is logged, nothing else."""
    caplog.set_level(logging.DEBUG)
    asked = await Bench(Broken()).ask(CHAT, HELLO, key=KEY)
    assert (500, "internal_error", "req-fixed") == (
        asked.status, asked.error()["code"], asked.headers["x-request-id"],
    )  # fmt: skip
    assert "SECRET" not in asked.body.decode() + caplog.text
    assert "req-fixed failed here: RuntimeError" in caplog.text


async def test_a_refusal_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Id, status and word; no header of the client."""
    caplog.set_level(logging.INFO, logger="jouleway.api")
    await Bench().ask("/v1/models", key="wrong-key-0123456789")
    assert ["request req-fixed: status 401, invalid_api_key"] == [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models/secret", "/v1/models/…"),
        ("/v1/jouleway/requests/secret", "/v1/jouleway/requests/…"),
        ("/secret", "(other)"),
    ],
)
def test_what_may_be_written_down_of_a_path(path: str, template: str) -> None:
    """Never what a client put there."""
    assert template == template_of(path)


async def test_lifespan_is_answered() -> None:
    """Servers that ask are told at once; nothing starts here."""
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await asyncio.wait_for(Bench().app({"type": "lifespan"}, receive, send), 1)
    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == sent


async def test_websockets_are_closed() -> None:
    """There is none here."""
    sent: list[str] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await Bench().app({"type": "websocket", "path": CHAT}, receive, send)
    assert ["websocket.close"] == sent
