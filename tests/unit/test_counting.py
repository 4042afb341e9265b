"""Counting asks an engine for a prompt's tokens: where the request itself may run, in time, or not at all."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from scheduler.api.counting import (
    MAX_ASKED_PER_TENANT,
    MAX_COUNTS_PER_TENANT,
    Counting,
    fits_prompt_tokens,
    question_of,
)
from scheduler.api.intake import Admitted
from scheduler.api.media import IMAGE_TOKENS
from scheduler.api.request_headers import Wishes
from scheduler.api.schemas import parse
from scheduler.core.actions import Rejection, Shortage
from scheduler.core.request import Band, DataClass, Request
from scheduler.streams import End, Stream
from tests.fake_dispatcher import JSON, FakeDispatcher, completed, head
from tests.image_files import png, url_of
from tests.scripted_link import settle_loop
from workers.types import Outcome

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
PIXEL = {"type": "image_url", "image_url": {"url": url_of(png(1, 1))}}


def admitted(path: str = CHAT, *, deadline_s: float | None = 500.0, **fields: Any) -> Admitted:
    body = {"model": "m", **({"messages": HELLO} if path == CHAT else {}), **fields}
    ask = parse(path, json.dumps(body).encode(), max_output_tokens=1000)
    request = Request(
        request_id="req-a", tenant="alpha", project="p", key_id="key-1", model="m", band=Band.FLEX,
        prompt_tokens_bound=9000, max_output_tokens=50, arrival_s=99.0, arrival_unix_s=7.0, deadline_s=deadline_s,
        body_bytes=len(ask.body), task="t", data_class=DataClass.CORE, zones=frozenset({"eu-1"}),
    )  # fmt: skip
    return Admitted(request=request, ask=ask, wishes=Wishes(data_class=DataClass.CORE, zones=None), salt=b"s")


class Bench:
    """Counting over a dispatcher that the test answers for."""

    def __init__(self, *, timeout_s: float = 5.0) -> None:
        self.dispatcher = FakeDispatcher()
        self.counting = Counting(
            submit=self.dispatcher.submit, clock=lambda: 100.0, timeout_s=timeout_s, new_request_id=lambda: "req-count"
        )

    def begin(self, asked: Admitted | None = None) -> asyncio.Task[int | None]:
        return asyncio.create_task(self.counting.prompt_tokens(asked or admitted()))

    async def answered(
        self, body: bytes, status: int = 200, end: End | None = None, asked: Admitted | None = None
    ) -> int | None:
        num_before = len(self.dispatcher.streams)
        task = self.begin(asked)
        async with asyncio.timeout(5):
            while len(self.dispatcher.streams) == num_before:
                await asyncio.sleep(0)
        stream = self.dispatcher.streams[-1]
        stream.put_head(head(status, JSON))
        stream.put_body(body)
        stream.put_end(end or completed())
        return await asyncio.wait_for(task, 5)


# -- when


def refusal(shortage: Shortage | None, status: int = 429) -> End:
    return End(rejection=Rejection(reason="insufficient_quota", status=status, message="No.", shortage=shortage))


def shortage(fits: int | None) -> Shortage:
    return Shortage(
        level="tenant a", measure="tokens", window="1d", limit=10, left=5, needed=20, fits_prompt_tokens=fits
    )  # fmt: skip


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (None, None),
        (completed(), None),
        (refusal(None), None),
        (refusal(shortage(None)), None),
        (refusal(shortage(0)), None),
        (refusal(shortage(17)), 17),
    ],
)
def test_only_a_budget_that_a_shorter_prompt_would_fit_is_worth_counting(end: End | None, expected: int | None) -> None:
    """No other refusal becomes a question to an engine."""
    assert expected == fits_prompt_tokens(end)


# -- what is asked


def asked(path: str, **fields: Any) -> tuple[str, dict[str, Any]] | None:
    question = question_of(path, json.dumps({"model": "m", **fields}).encode())
    return None if question is None else (question[0], json.loads(question[1]))


def test_a_chat_is_rendered_as_it_would_be() -> None:
    """All that reaches the template, none of the sampling."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    kept = {"messages": HELLO, "tools": tools, "add_generation_prompt": False, "chat_template_kwargs": {"a": 1}}
    found = asked(CHAT, **kept, documents=[{"title": "t"}], reasoning_effort="low", temperature=1, stream=True, n=3)
    extra = {"a": 1, "documents": [{"title": "t"}], "reasoning_effort": "low"}
    assert ("/tokenize", {"model": "m", **kept, "chat_template_kwargs": extra}) == found


def test_a_plain_chat_gets_nothing_added() -> None:
    """An empty argument could render another prompt."""
    assert ("/tokenize", {"model": "m", "messages": HELLO}) == asked(CHAT, messages=HELLO)


@pytest.mark.parametrize(
    ("path", "field", "value", "expected"),
    [
        (COMPLETION, "prompt", "hello", {"model": "m", "prompt": "hello"}),
        ("/v1/embeddings", "input", "hello", {"model": "m", "prompt": "hello"}),
        (COMPLETION, "prompt", ["a", "b"], None),
        (COMPLETION, "prompt", [1, 2, 3], None),
        ("/v1/embeddings", "input", ["a"], None),
        ("/v1/responses", "input", "hello", None),
    ],
)
def test_one_text_can_be_counted(path: str, field: str, value: object, expected: dict[str, Any] | None) -> None:
    """Several prompts, and routes without a way to count, keep their bound."""
    assert asked(path, **{field: value}) == (None if expected is None else ("/tokenize", expected))


def test_anthropics_messages_have_a_route_of_their_own() -> None:
    """The system text stands beside the messages there."""
    found = asked("/v1/messages", messages=HELLO, system="be brief", max_tokens=9)
    assert ("/v1/messages/count_tokens", {"model": "m", "messages": HELLO, "system": "be brief"}) == found


async def test_the_question_goes_only_where_the_request_may() -> None:
    """Class, zones, band and caller are the request's; it takes no budget and not longer than it may."""
    bench = Bench()
    assert 12 == await bench.answered(b'{"count":12,"max_model_len":100,"tokens":[1,2]}')
    submission = bench.dispatcher.submissions[0]
    request = submission.request
    assert ("req-count", "alpha", "p", "key-1", "m", Band.FLEX, DataClass.CORE, frozenset({"eu-1"})) == (
        request.request_id, request.tenant, request.project, request.key_id, request.model, request.band,
        request.data_class, request.zones,
    )  # fmt: skip
    assert (True, 0, 0, 105.0) == (
        request.is_counting, request.prompt_tokens_bound, request.max_output_tokens, request.deadline_s,
    )  # fmt: skip
    assert "/tokenize" == submission.path
    assert {"model": "m", "messages": HELLO} == json.loads(submission.render(0, 2))


async def test_it_is_no_later_than_the_request_itself() -> None:
    """An answer after its deadline helps nobody."""
    bench = Bench()
    await bench.answered(b'{"count":12}', asked=admitted(deadline_s=101.0))
    assert 101.0 == bench.dispatcher.submissions[0].request.deadline_s


# -- what is answered


async def test_media_stay_at_their_bound() -> None:
    """The counting route knows placeholders only."""
    message = {"role": "user", "content": [PIXEL, PIXEL]}
    assert 12 + 2 * IMAGE_TOKENS == await Bench().answered(b'{"count":12}', asked=admitted(messages=[message]))


async def test_both_words_for_the_number_are_read() -> None:
    """Anthropic's route says ``input_tokens``."""
    assert 7 == await Bench().answered(b'{"input_tokens":7}')


@pytest.mark.parametrize(
    ("body", "status", "end"),
    [
        (b'{"count":12}', 400, completed()),
        (b'{"count":12}', 200, End(outcome=Outcome.FAILED, cause="worker_lost")),
        (b'{"count":"12"}', 200, completed()),
        (b"{}", 200, completed()),
        (b"[12]", 200, completed()),
        (b"\xff", 200, completed()),
        (b"", 200, completed()),
    ],
)
async def test_an_answer_that_is_none_counts_nothing(body: bytes, status: int, end: End) -> None:
    """The bound stays: a wrong number would overspend."""
    assert await Bench().answered(body, status, end) is None


async def test_no_answer_in_time_counts_nothing_and_is_cancelled() -> None:
    """The refusal must not wait for a slow engine."""
    bench = Bench(timeout_s=0.02)
    assert await asyncio.wait_for(bench.begin(), 5) is None
    assert [("req-count", "counted")] == bench.dispatcher.closed


def answer(stream: Stream, count: int) -> None:
    stream.put_head(head(200, JSON))
    stream.put_body(b'{"count":%d}' % count)
    stream.put_end(completed())


async def test_a_tenant_asks_a_bounded_number_at_a_time() -> None:
    """Whoever is refused must not keep tokenizers busy; the others wait for their turn, and none is forgotten."""
    bench = Bench()
    tasks = [bench.begin() for _ in range(MAX_COUNTS_PER_TENANT + 3)]
    for number in range(len(tasks)):
        await settle_loop()
        assert len(bench.dispatcher.streams) == min(number + MAX_COUNTS_PER_TENANT, len(tasks))
        answer(bench.dispatcher.streams[number], number)
    assert list(range(len(tasks))) == await asyncio.gather(*tasks)


async def test_another_tenants_question_does_not_wait() -> None:
    """Turns are a tenant's own."""
    bench = Bench()
    tasks = [bench.begin() for _ in range(MAX_COUNTS_PER_TENANT)]
    other = admitted()
    other = replace(other, request=replace(other.request, tenant="beta"))
    tasks.append(bench.begin(other))
    await settle_loop()
    assert MAX_COUNTS_PER_TENANT + 1 == len(bench.dispatcher.streams)
    for stream in bench.dispatcher.streams:
        answer(stream, 1)
    await asyncio.gather(*tasks)


async def test_whoever_finds_too_many_waiting_is_not_counted() -> None:
    """The wait is bounded in number as in time."""
    bench = Bench(timeout_s=0.05)
    tasks = [bench.begin() for _ in range(MAX_ASKED_PER_TENANT)]
    await settle_loop()
    assert await asyncio.wait_for(bench.begin(), 0.02) is None
    assert {None} == set(await asyncio.gather(*tasks))
    assert 12 == await bench.answered(b'{"count":12}')


async def test_a_question_that_nobody_waits_for_is_cancelled() -> None:
    """The client left."""
    bench = Bench()
    task = bench.begin()
    await bench.dispatcher.stream()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [("req-count", "counted")] == bench.dispatcher.closed
