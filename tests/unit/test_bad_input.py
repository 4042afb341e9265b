"""Bad input and clients that leave, through everything but Ray: nothing lost, nothing leaked, all of it settled."""

import asyncio
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest

from scheduler.api.limits import RelayLimits
from scheduler.api.streaming import KEEP_ALIVE
from scheduler.core.admission import Limits
from scheduler.core.queue import QueueLimits
from tests.asgi_client import Asked, ask
from tests.local_link import ADMIN_KEY, FAST_ENGINE, KEYS, MODEL, ControlPlane, control_plane, simulated_spec

CHAT = "/v1/chat/completions"
SECRET = "CANARY-prompt-of-a-tenant"


def chat(**fields: Any) -> dict[str, Any]:
    """Four tokens, to the last one, unless told otherwise."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{SECRET} says hello"}],
        "max_tokens": 4,
        "ignore_eos": True,
        **fields,
    }


def begin(plane: ControlPlane, body: object, **how: Any) -> Asked:
    return ask(plane.relay, CHAT, body, **{"key": KEYS["alpha"], **how})


async def until(is_so: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.002)


async def is_quiet(plane: ControlPlane) -> None:
    """Waits until nothing runs: credit returned, every attempt charged once, no request open."""
    await until(lambda: plane.dispatcher.snapshot().num_open == 0 and plane.dispatcher.snapshot().num_running == 0)
    found = plane.dispatcher.snapshot()
    assert [0] * len(found.workers) == [worker.credit.kv_tokens for worker in found.workers]
    assert [0, 0, 0] == [band.num_requests for band in found.queue]
    assert found.dispatched == sum(row.attempts for row in found.tenants)


def slow_spec(**values: Any) -> Any:
    """An engine of 20 ms a step and one attempt at a time."""
    return simulated_spec(engine_args={"fixed_step_s": 0.02, "refresh_s": 0.005, "max_sequences": 1}, **values)


# -- bodies and headers: one engine, nothing of it reaches the engine


BAD_BODIES: list[tuple[str, object, int, str]] = [
    ("invalid JSON", b'{"model":', 400, "invalid_json"),
    ("depth 100,000", b'{"messages":' + b"[" * 100_000, 400, "json_too_deep"),
    ("NaN", json.dumps(chat(temperature=math.nan)).encode(), 400, "invalid_json"),
    ("a lone surrogate", chat(messages=[{"role": "user", "content": "\ud800"}]), 400, "invalid_json"),
    ("negative max_tokens", chat(max_tokens=-1), 400, "invalid_value"),
    ("huge max_tokens", chat(max_tokens=10**12), 400, "invalid_value"),
    ("n = 10^9", chat(n=10**9), 400, "invalid_value"),
    ("an unknown field", chat(temprature=1), 400, "unknown_parameter"),
    ("an operator-only field", chat(priority=-5), 400, "operator_only_parameter"),
    ("a million messages", b'{"messages":[%b{}]}' % (b"{}," * 999_999), 413, "body_too_large"),
    ("a body too large", b" " * 2_000_000, 413, "body_too_large"),
    ("an unknown model", chat(model="gpt-x"), 404, "model_not_found"),
]


async def test_each_bad_body_is_refused_with_its_word_and_costs_nothing() -> None:
    """The table of issue 3: a clear error that names the field; nothing was submitted, the next request is served."""
    async with control_plane() as plane:
        for name, body, status, code in BAD_BODIES:
            asked = await begin(plane, body).finished()
            assert (name, status, code) == (name, asked.status, asked.error()["code"])
            assert asked.headers["x-request-id"].startswith("req-")
            assert SECRET not in asked.body.decode()
        assert 0 == plane.dispatcher.snapshot().submitted
        assert 200 == (await begin(plane, chat()).finished()).status


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"key": None}, 401),
        ({"key": "wrong-key-0123456789"}, 401),
        ({"headers": {"authorization": "Bearer twice"}}, 401),
        ({"key": None, "headers": {"authorization": "Bearer\t" + KEYS["alpha"]}}, 401),
        ({"host": "evil.example"}, 403),
        ({"headers": {"host": "localhost"}}, 400),
        ({"headers": {"content-length": "1e3"}}, 400),
        ({"headers": {"x-jouleway-deadline-s": "-1"}}, 400),
    ],
)
async def test_each_bad_header_is_refused(how: dict[str, Any], status: int) -> None:
    """No key, a wrong one, a malformed header, a hostile Host."""
    async with control_plane() as plane:
        asked = await begin(plane, chat(), **how).finished()
        assert status == asked.status
        assert asked.error()["code"]
        assert 0 == plane.dispatcher.snapshot().submitted


async def test_a_context_that_is_too_long_is_the_engines_refusal_in_our_words() -> None:
    """The engine counts; the client reads OpenAI's code."""
    spec = simulated_spec(engine_args={**FAST_ENGINE, "max_model_len": 8})
    async with control_plane([spec]) as plane:
        for is_stream in (False, True):
            asked = await begin(plane, chat(stream=is_stream)).finished()
            assert (400, "context_length_exceeded") == (asked.status, asked.error()["code"])
            assert SECRET not in asked.body.decode()
        await is_quiet(plane)


# -- clients that leave


async def test_a_client_that_leaves_while_queued_leaves_the_queue() -> None:
    """Nothing was computed for it, nothing is charged."""
    async with control_plane([slow_spec(max_running=1)]) as plane:
        running = begin(plane, chat(max_tokens=8))
        queued = begin(plane, chat())
        await until(lambda: sum(band.num_requests for band in plane.dispatcher.snapshot().queue) == 1)
        queued.hang_up()
        await queued.finished()
        assert queued.status is None
        assert 200 == (await running.finished()).status
        await is_quiet(plane)
        found = plane.dispatcher.snapshot()
        assert ({"aborted": 1, "completed": 1}, 1) == (found.finished, found.dispatched)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_in_prefill_aborts_its_attempt(is_stream: bool) -> None:
    """The engine stops; what it computed is charged to the request, once."""
    async with control_plane([slow_spec()]) as plane:
        asked = begin(plane, chat(max_tokens=1000, stream=is_stream))
        await until(lambda: plane.dispatcher.snapshot().num_running == 1)
        asked.hang_up()
        await asked.finished()
        await is_quiet(plane)
        found = plane.dispatcher.snapshot()
        assert {"aborted": 1} == found.finished
        row = found.tenants[0]
        assert ("alpha", 1) == (row.tenant, row.aborted)
        assert row.output_tokens < 100


async def test_a_client_that_leaves_while_it_reads_is_charged_what_was_computed() -> None:
    """Tokens that were generated are settled, the rest is never computed."""
    async with control_plane([simulated_spec(engine_args={"fixed_step_s": 0.002, "refresh_s": 0.005})]) as plane:
        asked = begin(plane, chat(max_tokens=2000, stream=True))
        await asked.until(lambda seen: len(seen.events()) >= 5)
        asked.hang_up()
        await asked.finished()
        await is_quiet(plane)
        row = plane.dispatcher.snapshot().tenants[0]
        assert (1, True) == (row.aborted, 4 <= row.output_tokens < 1000)


async def test_a_client_that_leaves_after_the_last_chunk_is_charged_once() -> None:
    """The request is complete whether anybody reads [DONE] or not."""
    async with control_plane() as plane:
        asked = begin(plane, chat(stream=True))
        await asked.until(lambda seen: '"finish_reason":"length"' in seen.body.decode())
        asked.hang_up()
        await asked.finished()
        await is_quiet(plane)
        found = plane.dispatcher.snapshot()
        row = found.tenants[0]
        assert (1, 4, 1) == (row.attempts, row.output_tokens, sum(found.finished.values()))


async def test_a_slow_reader_is_ended() -> None:
    """One write may block ``slow_reader_s``; then the engine's time goes to others."""
    async with control_plane(limits=RelayLimits(slow_reader_s=0.04)) as plane:
        asked = begin(plane, chat(max_tokens=100_000, stream=True))
        await asked.until(lambda seen: len(seen.events()) >= 2)
        asked.may_write.clear()
        await asked.finished()
        assert not asked.is_complete
        await is_quiet(plane)
        found = plane.dispatcher.snapshot()
        assert {"aborted": 1} == found.finished
        assert found.tenants[0].output_tokens < 10_000


# -- queues and deadlines


async def test_a_full_queue_says_when_to_come_back() -> None:
    """503 with Retry-After; who waits is not disturbed."""
    limits = Limits(queue=QueueLimits(max_requests=1))
    async with control_plane([slow_spec(max_running=1)], core_limits=limits) as plane:
        running, waiting = begin(plane, chat(max_tokens=6)), begin(plane, chat())
        await until(lambda: sum(band.num_requests for band in plane.dispatcher.snapshot().queue) == 1)
        refused = await begin(plane, chat()).finished()
        assert (503, "queue_full") == (refused.status, refused.error()["code"])
        assert int(refused.headers["retry-after"]) >= 1
        assert [200, 200] == [(await each.finished()).status for each in (running, waiting)]
        metrics = plane.metrics.render().decode()
        assert 'jouleway_requests_rejected_total{reason="queue_full"} 1.0' in metrics
        assert 'jouleway_errors_total{code="queue_full",status="503"} 1.0' in metrics


async def test_a_deadline_that_passes_in_the_queue_is_a_504() -> None:
    """Nobody waits for an answer that nobody wants."""
    async with control_plane([slow_spec(max_running=1)]) as plane:
        running = begin(plane, chat(max_tokens=20))
        late = await begin(plane, chat(), headers={"x-jouleway-deadline-s": "0.06"}).finished()
        assert (504, "deadline_exceeded", "false") == (
            late.status, late.error()["code"], late.headers["x-should-retry"],
        )  # fmt: skip
        assert 200 == (await running.finished()).status


async def test_a_deadline_that_passes_within_an_answer_is_an_error_chunk() -> None:
    """Without [DONE]; the tokens so far are charged."""
    async with control_plane([slow_spec()]) as plane:
        asked = begin(plane, chat(max_tokens=1000, stream=True), headers={"x-jouleway-deadline-s": "0.2"})
        await asked.finished()
        assert (200, "deadline_exceeded") == (asked.status, json.loads(asked.events()[-1])["error"]["code"])
        assert "[DONE]" not in asked.events()
        await is_quiet(plane)
        assert plane.dispatcher.snapshot().tenants[0].output_tokens >= 1


async def test_a_deadline_that_passes_before_a_whole_answer_is_a_504() -> None:
    """Nothing was sent yet: the status says it."""
    async with control_plane([slow_spec()]) as plane:
        asked = await begin(plane, chat(max_tokens=1000), headers={"x-jouleway-deadline-s": "0.1"}).finished()
        assert (504, "deadline_exceeded") == (asked.status, asked.error()["code"])
        await is_quiet(plane)


async def test_a_long_queue_keeps_a_stream_alive() -> None:
    """Empty events after ``keep_alive_s``, then the answer."""
    async with control_plane([slow_spec(max_running=1)], limits=RelayLimits(keep_alive_s=0.03)) as plane:
        begin(plane, chat(max_tokens=10))
        asked = await begin(plane, chat(stream=True)).finished()
        assert asked.body.startswith(KEEP_ALIVE)
        assert (200, "[DONE]") == (asked.status, asked.events()[-1])


async def test_a_worker_that_dies_within_an_answer_ends_it_with_an_error_chunk() -> None:
    """After the first byte nothing is tried again; what was computed is settled."""
    async with control_plane([slow_spec()]) as plane:
        asked = begin(plane, chat(max_tokens=1000, stream=True))
        await asked.until(lambda seen: len(seen.events()) >= 2)
        plane.links[0].cut()
        await asked.finished()
        assert "worker_lost" == json.loads(asked.events()[-1])["error"]["code"]
        assert asked.is_complete
        assert "[DONE]" not in asked.events()


async def test_a_worker_that_dies_before_the_first_byte_is_replaced_without_a_word() -> None:
    """The other worker answers; the client sees one ordinary answer."""
    first, second = slow_spec(worker_id="sim-0"), slow_spec(worker_id="sim-1")
    async with control_plane([first, second]) as plane:
        asked = begin(plane, chat(max_tokens=30))
        await until(lambda: plane.dispatcher.snapshot().num_running == 1)
        busy = next(worker.worker_id for worker in plane.dispatcher.snapshot().workers if worker.num_attempts)
        next(link for link in plane.links if link.worker_id == busy).cut()
        await asked.finished()
        assert (200, 30) == (asked.status, asked.json()["usage"]["completion_tokens"])
        assert 1 == plane.dispatcher.snapshot().retried


async def test_without_a_worker_a_request_ends_in_time() -> None:
    """503 no_worker after ``no_worker_timeout_s``."""
    async with control_plane([], core_limits=Limits(no_worker_timeout_s=0.05)) as plane:
        asked = await begin(plane, chat()).finished()
        assert (503, "no_worker") == (asked.status, asked.error()["code"])
        assert 503 == (await ask(plane.relay, "/ready").finished()).status


# -- the canary


async def test_no_text_of_a_prompt_or_an_answer_is_left_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    """Log, metrics, snapshot, request details, error bodies: after answers, refusals, aborts and a death."""
    caplog.set_level(logging.DEBUG)
    async with control_plane([simulated_spec(engine_args={"fixed_step_s": 0.002, "refresh_s": 0.005})]) as plane:
        words: set[str] = set()
        ids = []
        for body in (chat(), chat(stream=True), chat(zork=SECRET), chat(temperature=SECRET), chat(model=SECRET)):
            asked = await begin(plane, body).finished()
            ids.append(asked.headers["x-request-id"])
            if asked.status == 200 and not body.get("stream"):
                words = set(asked.json()["choices"][0]["message"]["content"].split())
            if asked.status != 200:
                assert SECRET not in asked.body.decode()
        gone = begin(plane, chat(max_tokens=1000, stream=True))
        await gone.until(lambda seen: len(seen.events()) >= 2)
        gone.hang_up()
        await gone.finished()
        broken = begin(plane, chat(max_tokens=1000, stream=True))
        await broken.until(lambda seen: len(seen.events()) >= 2)
        plane.links[0].cut()
        await broken.finished()
        paths = ["/metrics", "/v1/jouleway/snapshot", "/v1/jouleway/balance", "/v1/jouleway/workers"]
        shown = [await ask(plane.admin, path, key=ADMIN_KEY).finished() for path in paths]
        shown += [await ask(plane.admin, f"/v1/jouleway/requests/{each}", key=ADMIN_KEY).finished() for each in ids]
        texts = caplog.text + "".join(each.body.decode() for each in shown)
    assert len(words) == 4
    assert ids[0] in texts
    for text in (SECRET, *words, *KEYS.values(), ADMIN_KEY):
        assert text not in texts
