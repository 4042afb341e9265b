"""What a tenant may ask of the decisions: its own requests, and what would become of one that is not asked."""

import json
from typing import Any

import pytest

from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Exchange
from scheduler.api.explain import life_of, what_if
from scheduler.api.intake import Intake
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.core.request import Band, DataClass, Request
from tests.fake_dispatcher import FakeDispatcher

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "CANARY hello"}]}
LINE = {"url": CHAT, "body": HELLO}
CALLER = Caller(tenant="alpha", project="p", key_id="key-1", best_band=Band.DEFAULT, data_class=DataClass.IMPORTANT)


async def nothing(*message: object) -> Any:
    raise AssertionError("nothing is read or written here")


def asked(line: object, dispatcher: FakeDispatcher | None = None, **headers: str) -> Any:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/jouleway/what-if", "headers": raw}
    intake = Intake(models={"m": ServedModel(name="m")}, limits=RelayLimits(), salt_key=b"k", unix_clock=lambda: 7.0)
    told = what_if(
        dispatcher or FakeDispatcher(),
        intake,
        Exchange(scope, nothing, nothing, request_id="req-if"),
        line if isinstance(line, bytes) else json.dumps(line).encode(),
        caller=CALLER,
        arrival_s=5.0,
    )
    return json.loads(told)


def refused(line: object, **headers: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asked(line, **headers)
    return caught.value


def request_of(line: object, **headers: str) -> Request:
    """What the core was asked."""
    dispatcher = FakeDispatcher()
    assert {"request_id": "req-if", "state": "what_if"} == asked(line, dispatcher, **headers)
    assert [] == dispatcher.submissions
    return dispatcher.asked[0]


def test_a_life_is_told_to_its_tenant_and_to_the_operator() -> None:
    """Nobody else learns even that it was."""
    dispatcher = FakeDispatcher()
    dispatcher.stories = {"req-a": {"tenant": "alpha", "waits": []}}
    assert {"tenant": "alpha", "waits": []} == json.loads(life_of(dispatcher, "req-a", tenant="alpha"))
    assert {"tenant": "alpha", "waits": []} == json.loads(life_of(dispatcher, "req-a"))
    errors = []
    for request_id, tenant in (("req-a", "beta"), ("req-b", "beta"), ("req-b", None)):
        with pytest.raises(ApiError) as caught:
            life_of(dispatcher, request_id, tenant=tenant)
        errors.append((caught.value.status, caught.value.code, caught.value.message))
    assert 1 == len(set(errors))
    assert (404, "request_not_found") == errors[0][:2]


def test_a_line_of_a_jobs_file_is_the_request_it_would_be() -> None:
    """With the headers that it would have; the line's own id and method are read over."""
    request = request_of(
        {**LINE, "custom_id": "1", "method": "POST"}, x_jouleway_task="nightly", x_jouleway_data_class="core"
    )
    assert ("alpha", "m", "nightly", DataClass.CORE, 5.0, 7.0) == (
        request.tenant, request.model, request.task, request.data_class, request.arrival_s, request.arrival_unix_s,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (b"[" * 100_000, 400, "json_too_deep"),
        ({"body": HELLO}, 400, "invalid_json"),
        ({"url": CHAT}, 400, "invalid_json"),
        ({**LINE, "headers": {}}, 400, "invalid_json"),
        ({**LINE, "url": "/v1/nothing"}, 400, "invalid_value"),
        ({**LINE, "url": "/metrics"}, 400, "invalid_value"),
        ({**LINE, "body": 1}, 400, "invalid_value"),
        ({**LINE, "body": {**HELLO, "temprature": 1}}, 400, "unknown_parameter"),
        ({**LINE, "body": {**HELLO, "model": "x"}}, 404, "model_not_found"),
    ],
)
def test_each_wrong_line_is_refused_as_the_request_would_be(line: object, status: int, code: str) -> None:
    """And what stands in it is not repeated."""
    error = refused(line)
    assert (status, code) == (error.status, error.code)
    assert "CANARY" not in error.message


def test_headers_may_not_loosen_here_either() -> None:
    """A hypothetical request is no way around a key."""
    assert 403 == refused(LINE, x_jouleway_data_class="general").status
