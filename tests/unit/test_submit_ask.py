"""One job is asked as often as that can help, never more; each end has its meaning, and no try runs it twice."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler.commands.submit_ask import Ending, Manner, Outcome, ask, body_of, idempotency_key
from scheduler.commands.submit_file import Job
from tests.canned_http import Asked, Told, serving

GOOD = Told(body={"choices": [], "usage": {"prompt_tokens": 2}}, headers={"x-request-id": "req-1"})
QUOTA = Told(status=429, body={"error": {"code": "insufficient_quota"}}, headers={"x-should-retry": "false"})


def job(body: bytes = b'{"model":"m"}', *, has_tier: bool = False) -> Job:
    return Job(number=1, custom_id="a", url="/v1/completions", model="m", body=body, has_tier=has_tier)


def busy(status: int = 429, *, after_s: str | None = None, code: str = "rate_limit_exceeded", **headers: str) -> Told:
    if after_s is not None:
        headers["retry-after"] = after_s
    return Told(status=status, body={"error": {"code": code}}, headers=headers)


class Asking:
    """Asks one job of a server that answers from a list, the last answer for ever; keeps what was waited."""

    def __init__(self, *told: Told | None) -> None:
        self.told = told
        self.waits: list[float] = []
        self.seen: list[Asked] = []

    async def outcome(self, *, pauses: int = 1000, the_job: Job | None = None, **manner: Any) -> Outcome:
        answers: Iterator[Told | None] = iter(self.told)

        async def pause(seconds: float) -> bool:
            self.waits.append(seconds)
            return len(self.waits) <= pauses

        with serving(lambda _: next(answers, self.told[-1]), seen=self.seen) as url:
            how = Manner(url=url, key="the-key", digest="d" * 64, **manner)
            return await ask(the_job or job(), how, pause=pause, rng=random.Random(0))


async def test_a_good_answer_is_kept_whole() -> None:
    """Status, id and body in the shape of batch output; the key, a word for idempotency and for joules are sent."""
    asking = Asking(GOOD)
    outcome = await asking.outcome(task="nightly")
    assert (Ending.DONE, 0, None) == (outcome.ending, outcome.num_retries, outcome.error)
    assert outcome.response is not None
    assert (200, "req-1", GOOD.body) == (
        outcome.response["status_code"], outcome.response["request_id"], json.loads(bytes(outcome.response["body"]))
    )  # fmt: skip
    assert outcome.answer is not None
    assert outcome.answer.usage is not None
    (asked,) = asking.seen
    assert ("POST", "/v1/completions", {"model": "m", "service_tier": "flex"}) == (
        asked.method, asked.path, json.loads(asked.body)
    )  # fmt: skip
    expected = {
        "authorization": "Bearer the-key",
        "idempotency-key": idempotency_key("d" * 64, "a"),
        "x-jouleway-metering": "1",
        "x-jouleway-task": "nightly",
    }
    assert expected.items() <= asked.headers.items()


def test_a_key_stands_for_one_line_of_one_input() -> None:
    """The same in each run, another one for another line or file; of characters that every server takes."""
    keys = {idempotency_key(digest, custom_id) for digest in ("1", "2") for custom_id in ("a", "b", "ä\n")}
    assert 6 == len(keys)
    assert all(key.isascii() and key.isprintable() and len(key) <= 64 for key in keys)


@pytest.mark.parametrize(
    ("body", "has_tier", "expected"),
    [
        (b'{"model":"m"}', False, {"model": "m", "service_tier": "default"}),
        (b'{"model":"m" } ', False, {"model": "m", "service_tier": "default"}),
        (b'{"model":"m","service_tier":null}', True, {"model": "m", "service_tier": None}),
    ],
)
def test_a_line_keeps_the_priority_that_it_names(body: bytes, has_tier: bool, expected: dict[str, object]) -> None:
    """Only where it names none it gets the command's."""
    assert expected == json.loads(body_of(job(body, has_tier=has_tier), "default"))


@pytest.mark.parametrize(
    ("told", "ending"),
    [
        (busy(400, code="bad"), Ending.FAILED),
        (busy(403, code="data_residency_mismatch"), Ending.FAILED),
        (busy(404, code="model_not_found"), Ending.FAILED),
        (busy(422, code="idempotency_key_reused"), Ending.FAILED),
        (busy(500, code="engine_error"), Ending.FAILED),
        (busy(503, **{"x-should-retry": "false"}), Ending.FAILED),
        (busy(504, code="deadline_infeasible", **{"x-should-retry": "false"}), Ending.FAILED),
        (busy(401, code="invalid_api_key"), Ending.KEY),
        (QUOTA, Ending.QUOTA),
        (busy(429, code="insufficient_quota", after_s="1"), Ending.QUOTA),
        (Told(body=b"<html>"), Ending.FAILED),
        (Told(body=b"[1]"), Ending.FAILED),
        (Told(body=b'{"a": "\xff"}'), Ending.FAILED),
        (Told(status=302, body={}), Ending.FAILED),
    ],
)
async def test_what_asking_again_cannot_help_is_asked_once(told: Told, ending: Ending) -> None:
    """Each with its meaning."""
    asking = Asking(told)
    outcome = await asking.outcome()
    assert (ending, 1, []) == (outcome.ending, len(asking.seen), asking.waits)
    assert (outcome.response is None) == (outcome.error is not None)


@pytest.mark.parametrize(
    "told",
    [busy(), busy(408), busy(409), busy(502), busy(503), busy(504), busy(500, **{"x-should-retry": "true"}), None],
)
async def test_what_passes_is_asked_again_with_the_same_key(told: Told | None) -> None:
    """Too much at once, an earlier try that still runs, a server that hangs up."""
    asking = Asking(told, told, GOOD)
    outcome = await asking.outcome()
    assert (Ending.DONE, 2, 3) == (outcome.ending, outcome.num_retries, len(asking.seen))
    assert 1 == len({asked.headers["idempotency-key"] for asked in asking.seen})


async def test_nobody_asks_earlier_than_the_server_says() -> None:
    """However often it says so: a rate limit of ten a minute is kept, not a reason to give up."""
    asking = Asking(*[busy(after_s="7")] * 30, GOOD)
    outcome = await asking.outcome()
    assert (Ending.DONE, 30) == (outcome.ending, outcome.num_retries)
    assert all(7 <= wait_s <= 8 for wait_s in asking.waits)
    assert len(set(asking.waits)) > 1, "not all at once"


async def test_without_its_word_the_waits_grow_and_end() -> None:
    """Doubled each time, eight tries."""
    asking = Asking(busy(503))
    outcome = await asking.outcome()
    assert (Ending.UNAVAILABLE, 8) == (outcome.ending, len(asking.seen))
    assert all(2**n / 4 <= wait_s <= 2**n / 2 for n, wait_s in enumerate(asking.waits))
    asking = Asking(None)
    outcome = await asking.outcome(max_blind_tries=2)
    assert (Ending.UNAVAILABLE, {"code": "unavailable"}.items() <= (outcome.error or {}).items()) == (
        outcome.ending, True
    )  # fmt: skip


@pytest.mark.parametrize(("said", "num_tries"), [("40", 3), ("101", 1), ("999999999", 1), ("soon", 8), ("-1", 8)])
async def test_patience_is_bounded(said: str, num_tries: int) -> None:
    """A wait that is longer than what is left of it is not begun; a word that is no number is none."""
    asking = Asking(busy(after_s=said))
    outcome = await asking.outcome(patience_s=100.0)
    assert (Ending.UNAVAILABLE, num_tries) == (outcome.ending, len(asking.seen))
    assert sum(asking.waits) <= 100.0


async def test_who_is_asked_to_stop_leaves_a_waiting_job() -> None:
    """It is no failure: the next run asks it."""
    asking = Asking(busy(after_s="5"))
    outcome = await asking.outcome(pauses=0)
    assert (Ending.LEFT, None, None) == (outcome.ending, outcome.response, outcome.error)


async def test_a_replayed_answer_ran_but_is_lost() -> None:
    """Its usage counts, its text is gone, and it is not asked again."""
    replayed = Told(body={"usage": {"prompt_tokens": 2}}, headers={"x-jouleway-replayed": "1"})
    outcome = await Asking(None, replayed).outcome()
    assert (Ending.LOST, "answer_lost") == (outcome.ending, (outcome.error or {})["code"])
    assert outcome.answer is not None
    assert outcome.answer.usage is not None


async def test_a_body_of_several_lines_becomes_one() -> None:
    """Or it would break the file; nothing else of it is touched."""
    outcome = await Asking(Told(body=b'{\n "a": "b\\n\xc3\xa4",\r\n "n": 1.10}')).outcome()
    assert outcome.response is not None
    body = bytes(outcome.response["body"])
    assert b"\n" not in body
    assert b"1.10" in body
    assert {"a": "b\nä", "n": 1.1} == json.loads(body)


async def test_a_server_that_never_answers_is_left() -> None:
    """After the time of one try."""

    async def sleep(_: Asked) -> Told:
        await asyncio.sleep(60)
        return GOOD

    async def pause(_: float) -> bool:
        return True

    with serving(sleep) as url:
        how = Manner(url=url, key="k", digest="d", timeout_s=0.05)
        outcome = await ask(job(), how, pause=pause, rng=random.Random(0))
    assert (Ending.FAILED, "timeout") == (outcome.ending, (outcome.error or {})["code"])


async def test_a_window_is_told_to_the_server_as_what_is_left_of_it() -> None:
    """Each try says less; and no try is given up before the window is over."""
    asking = Asking(busy(after_s="1"), GOOD)
    await asking.outcome(due_s=time.monotonic() + 100, timeout_s=0.001)
    first, second = (float(asked.headers["x-jouleway-deadline-s"]) for asked in asking.seen)
    assert 90 < second < first <= 100


async def test_after_its_window_a_line_is_refused_by_the_server() -> None:
    """A deadline of 0 would be no deadline: a thousandth of a second is sent."""
    asking = Asking(GOOD)
    await asking.outcome(due_s=time.monotonic() - 5)
    assert ["0.001"] == [asked.headers["x-jouleway-deadline-s"] for asked in asking.seen]


async def test_without_a_window_no_deadline_is_stated() -> None:
    """Then nothing waits for a price."""
    asking = Asking(GOOD)
    await asking.outcome()
    assert "x-jouleway-deadline-s" not in asking.seen[0].headers
