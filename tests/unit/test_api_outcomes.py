"""Outcomes arrive once, late or again; one's own only; and no answer leaves before they are durable."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.errors import LedgerError
from scheduler.accounting.outcomes import MAX_OUTCOMES, Facts, Tally, Verdict
from scheduler.api import outcomes
from scheduler.api.access import Caller, Hosts, unauthorized
from scheduler.api.app import RelayApp
from scheduler.api.errors import ApiError
from scheduler.api.limits import RelayLimits
from scheduler.api.outcomes import OUTCOMES_PATH, OutcomeDesk, read
from scheduler.metrics import Metrics
from tests.asgi_client import Asked, ask
from tests.fake_dispatcher import FakeDispatcher
from tests.local_link import KEYS, caller_keys
from tests.outcome_log import MemoryOutcomes
from tests.usage_rows import caller

IDS = {name: f"req-{name:x>26}" for name in (*KEYS, "none")}
REQUESTS = {IDS[tenant]: Facts(tenant=tenant, model="m", bucket_us=60_000_000) for tenant in KEYS}
TASKS = {("alpha", "nightly"): Facts(tenant="alpha", task="nightly", model="n", requests=12)}
GOOD = {"request_id": IDS["alpha"], "accepted": True}
CANARY = "CANARY-of-a-prompt"


def log() -> MemoryOutcomes:
    return MemoryOutcomes(REQUESTS, TASKS)


def relay(kept: MemoryOutcomes | None) -> RelayApp:
    return RelayApp(
        dispatcher=FakeDispatcher(),  # type: ignore[arg-type]
        keys=caller_keys(), hosts=Hosts(), models={}, limits=RelayLimits(), metrics=Metrics(),
        outcomes=None if kept is None else OutcomeDesk(kept, unix_clock=lambda: 1_000.5),
    )  # fmt: skip


async def post(kept: MemoryOutcomes | None, body: object, *, tenant: str = "alpha") -> Asked:
    return await ask(relay(kept), OUTCOMES_PATH, body, key=KEYS[tenant]).finished()


async def refused(kept: MemoryOutcomes, body: object, **how: Any) -> tuple[int, str, str | None]:
    asked = await post(kept, body, **how)
    error = asked.error()
    return asked.status, error["code"], error["param"]


# -- what is kept


async def test_an_outcome_is_kept_and_told() -> None:
    """With its id, for whoever wants to name it."""
    kept = log()
    asked = await post(kept, {**GOOD, "score": 0.25, "label": "wrong-tone"})
    (outcome,) = kept.rows
    expected = Verdict(request_id=IDS["alpha"], accepted=True, score_ppm=250_000, label="wrong-tone")
    assert (expected, REQUESTS[IDS["alpha"]], 1_000_500_000) == (outcome.verdict, outcome.facts, outcome.at_us)
    assert (200, "no-store") == (asked.status, asked.headers["cache-control"])
    assert {
        "object": "jouleway.outcome", "id": outcome.outcome_id, "request_id": IDS["alpha"], "task": None,
        "accepted": True, "score": 0.25, "label": "wrong-tone", "created_unix_s": 1_000, "replaces": None,
        "is_new": True,
    } == asked.json()  # fmt: skip


async def test_a_task_is_judged_as_a_whole() -> None:
    """One result of all its requests."""
    kept = log()
    asked = await post(kept, {"task": "nightly", "accepted": True})
    assert ("nightly", None) == (asked.json()["task"], asked.json()["request_id"])
    assert {("alpha", "n"): Tally(1, 0, 12)} == kept.sums


@pytest.mark.parametrize("given_id", [{}, {"id": "job/7"}])
async def test_a_repeat_gets_the_first_answer(given_id: dict[str, str]) -> None:
    """And is not counted twice."""
    kept = log()
    first, again = [(await post(kept, {**GOOD, **given_id})).json() for _ in range(2)]
    assert ({**first, "is_new": False}, 1) == (again, len(kept.rows))
    assert {("alpha", "m"): Tally(1, 0, 1)} == kept.sums


async def test_a_correction_is_a_row_that_names_what_it_replaces() -> None:
    """The latest counts."""
    kept = log()
    first = (await post(kept, GOOD)).json()
    second = (await post(kept, {**GOOD, "accepted": False})).json()
    assert (first["id"], 2, {("alpha", "m"): Tally(0, 1, 1)}) == (second["replaces"], len(kept.rows), kept.sums)


async def test_an_id_stands_for_one_verdict() -> None:
    """Of one tenant: another's equal id is another."""
    kept = log()
    await post(kept, {**GOOD, "id": "a"})
    assert (422, "outcome_id_reused", "id") == await refused(kept, {**GOOD, "accepted": False, "id": "a"})
    other = await post(kept, {"request_id": IDS["beta"], "accepted": False, "id": "a"}, tenant="beta")
    assert (200, 2) == (other.status, len(kept.rows))


async def test_corrections_have_a_bound() -> None:
    """A hundred and no more."""
    kept = log()
    for number in range(MAX_OUTCOMES):
        await post(kept, {**GOOD, "accepted": bool(number % 2)})
    assert (409, "too_many_outcomes", None) == await refused(kept, {**GOOD, "accepted": False})
    assert MAX_OUTCOMES == len(kept.rows)


async def test_one_outcome_that_comes_many_times_at_once_is_kept_once() -> None:
    """All of them get the same answer."""
    kept = log()
    app = relay(kept)
    asked = [ask(app, OUTCOMES_PATH, GOOD, key=KEYS["alpha"]) for _ in range(20)]
    answers = [(await each.finished()).json() for each in asked]
    assert (1, 1, 1) == (len(kept.rows), len({each["id"] for each in answers}), sum(each["is_new"] for each in answers))


# -- whose it is


async def test_not_yours_and_not_there_are_one_answer() -> None:
    """Byte for byte, after one look-up each; nothing is kept."""
    kept = log()
    bodies = [{**GOOD, "request_id": request_id} for request_id in (IDS["beta"], IDS["none"])]
    bodies += [{"task": "nightly", "accepted": True}, {"task": "none", "accepted": True}]
    foreign, unknown, foreign_task, unknown_task = [
        await post(kept, body, tenant=tenant)
        for body, tenant in zip(bodies, ("alpha", "alpha", "beta", "beta"), strict=True)
    ]
    assert {404} == {each.status for each in (foreign, unknown, foreign_task, unknown_task)}
    assert 1 == len({each.body for each in (foreign, unknown, foreign_task, unknown_task)})
    assert ([], 4) == (kept.rows, kept.num_looked_up)


@pytest.mark.parametrize("name", ["req", "r", IDS["alpha"][:-1], IDS["alpha"] + "-1", IDS["alpha"].upper()])
async def test_what_can_be_no_requests_id_is_not_there(name: str) -> None:
    """The beginning of one, or an attempt's: nothing is read for it, and the words are those of any other."""
    kept = log()
    kept.requests[name] = REQUESTS[IDS["alpha"]]
    unknown = await post(kept, {**GOOD, "request_id": IDS["none"]})
    asked = await post(kept, {**GOOD, "request_id": name})
    assert (404, unknown.body, 1, []) == (asked.status, asked.body, kept.num_looked_up, kept.rows)


@given(
    posts=st.lists(
        st.tuples(
            st.sampled_from(sorted(KEYS)),
            st.sampled_from((*REQUESTS, IDS["none"])),
            st.booleans(),
            st.sampled_from("ab"),
        ),
        max_size=12,
    )
)
def test_no_post_reaches_anothers_request(posts: list[tuple[str, str, bool, str]]) -> None:
    """Whatever was posted before, under whichever id."""

    async def run() -> None:
        kept = log()
        desk = OutcomeDesk(kept, unix_clock=lambda: 1.0)
        for tenant, request_id, accepted, given_id in posts:
            body = json.dumps({"request_id": request_id, "accepted": accepted, "id": given_id}).encode()
            try:
                told = json.loads(await desk.take(body, lambda tenant=tenant: caller(tenant)))
            except ApiError as error:
                told = {"request_id": request_id, "status": error.status}
            is_own = request_id == IDS[tenant]
            assert (request_id, True) == (told["request_id"], told.get("status") in ((None, 422) if is_own else (404,)))
        assert all(row.verdict.request_id == IDS[row.facts.tenant] for row in kept.rows)

    asyncio.run(run())


async def test_without_a_ledger_there_is_no_such_route() -> None:
    """As of any route that is not there."""
    asked = await post(None, GOOD)
    assert (404, "route_not_found") == (asked.status, asked.error()["code"])


async def test_outcomes_are_posted_with_a_key() -> None:
    """And only posted."""
    app = relay(log())
    assert 401 == (await ask(app, OUTCOMES_PATH, GOOD, key="none-0123456789").finished()).status
    assert 405 == (await ask(app, OUTCOMES_PATH, key=KEYS["alpha"]).finished()).status


# -- durable


@pytest.mark.parametrize("is_repeat", [False, True])
async def test_no_answer_before_the_disk(is_repeat: bool) -> None:
    """Of a repeat neither: the first may still be on its way."""
    kept = log()
    app = relay(kept)
    kept.may_commit.clear()
    asked = [ask(app, OUTCOMES_PATH, GOOD, key=KEYS["alpha"]) for _ in range(1 + is_repeat)]
    while len(kept.rows) < 1 or kept.num_looked_up < len(asked):
        await asyncio.sleep(0)
    assert [None] * len(asked) == [each.status for each in asked]
    kept.may_commit.set()
    assert {200} == {(await each.finished()).status for each in asked}
    assert 1 == kept.durable


async def test_open_posts_are_bounded() -> None:
    """One tenant leaves room for others; then everything is free again."""
    kept = log()
    kept.may_commit.clear()
    desk = OutcomeDesk(kept)
    body = json.dumps(GOOD).encode()
    waiting = [
        asyncio.create_task(desk.take(body, lambda: caller("alpha"))) for _ in range(outcomes.MAX_OPEN_PER_TENANT)
    ]
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as caught:
        await desk.take(body, lambda: caller("alpha"))
    assert (503, "outcomes_busy", 1) == (caught.value.status, caught.value.code, caught.value.retry_after_s)
    other = json.dumps({"request_id": IDS["beta"], "accepted": True}).encode()
    waiting.append(asyncio.create_task(desk.take(other, lambda: caller("beta"))))
    await asyncio.sleep(0)
    kept.may_commit.set()
    await asyncio.gather(*waiting)
    await desk.take(body, lambda: caller("alpha"))


async def test_a_disk_that_fails_is_no_answer() -> None:
    """The sender posts again, with the same id."""
    kept = log()

    async def fail() -> None:
        raise OSError("disk full")

    kept.commit = fail  # type: ignore[method-assign]
    desk = OutcomeDesk(kept)
    for _ in range(outcomes.MAX_OPEN_PER_TENANT + 1):
        with pytest.raises(OSError, match="disk full"):
            await desk.take(json.dumps(GOOD).encode(), lambda: caller("alpha"))
    assert 1 == len(kept.rows)


async def test_a_ledger_that_is_away_is_said_without_its_words() -> None:
    """Whether it cannot be read or not be written; the sender posts again, with the same id."""

    def unreadable(request_id: str) -> Facts | None:
        raise LedgerError("postgresql://CANARY: connection refused")

    async def unwritable() -> None:
        raise LedgerError("postgresql://CANARY: connection refused")

    for name, failing in (("find", unreadable), ("commit", unwritable)):
        kept = log()
        setattr(kept, name, failing)
        asked = await post(kept, GOOD)
        assert (503, "ledger_unavailable", "5") == (asked.status, asked.error()["code"], asked.headers["retry-after"])
        assert b"CANARY" not in asked.body


async def test_a_key_that_is_taken_away_while_its_request_is_looked_up_books_nothing() -> None:
    """Or belongs to somebody else meanwhile."""
    for later in (None, "beta"):
        kept, looks = log(), iter(["alpha", "alpha", later])

        def now(looks: Iterator[str | None] = looks) -> Caller:
            tenant = next(looks)
            if tenant is None:
                raise unauthorized("Incorrect API key provided.")
            return caller(tenant)

        with pytest.raises(ApiError) as caught:
            await OutcomeDesk(kept).take(json.dumps(GOOD).encode(), now)
        assert (401 if later is None else 404, []) == (caught.value.status, kept.rows)


# -- bad input


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"request_id": "r"}, "accepted"), ({**GOOD, "accepted": 1}, "accepted"),
        ({**GOOD, "accepted": None}, "accepted"),
        ({"accepted": True}, "request_id"), ({**GOOD, "task": "nightly"}, "request_id"),
        ({**GOOD, "request_id": ""}, "request_id"), ({**GOOD, "request_id": "a b"}, "request_id"),
        ({**GOOD, "request_id": "x" * 129}, "request_id"), ({**GOOD, "request_id": "a\n"}, "request_id"),
        ({"accepted": True, "task": "-x"}, "task"), ({"accepted": True, "task": "x" * 129}, "task"),
        ({**GOOD, "score": 1.1}, "score"), ({**GOOD, "score": -0.1}, "score"), ({**GOOD, "score": "1"}, "score"),
        ({**GOOD, "score": True}, "score"), ({**GOOD, "label": CANARY + " it said"}, "label"),
        ({**GOOD, "label": "x" * 65}, "label"), ({**GOOD, "label": "x\n"}, "label"), ({**GOOD, "id": ""}, "id"),
        ({**GOOD, "id": "a b"}, "id"), ({**GOOD, "id": "é"}, "id"), ({**GOOD, "id": 7}, "id"),
        ({**GOOD, CANARY: 1}, None), ([GOOD], None), (CANARY, None),
    ],
)  # fmt: skip
def test_what_is_no_outcome_is_refused_by_its_field(body: object, param: str | None) -> None:
    """And nothing that was sent is said again."""
    with pytest.raises(ApiError) as caught:
        read(json.dumps(body).encode())
    assert (400, param) == (caught.value.status, caught.value.param)
    assert CANARY not in caught.value.message


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"), (b"{", "invalid_json"), (b"\xff", "invalid_json"), (b"[" * 2_000, "invalid_value"),
        (b'{"request_id": "\xff", "accepted": true}', "invalid_json"),
        (b'{"accepted": true, "accepted": false, "request_id": "r"}', "duplicate_key"),
        (b'{"accepted": NaN, "request_id": "r"}', "invalid_json"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(body: bytes, code: str) -> None:
    """Whatever it is."""
    with pytest.raises(ApiError) as caught:
        read(body)
    assert (400, code) == (caught.value.status, caught.value.code)


async def test_a_body_of_an_outcome_is_short() -> None:
    """No place for an answer's text."""
    assert 413 == (await post(log(), {**GOOD, "label": "x" * 4096})).status


async def test_no_text_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Not of a good post and not of a bad one."""
    caplog.set_level(logging.DEBUG)
    await post(log(), {**GOOD, "label": CANARY})
    await post(log(), {**GOOD, CANARY: CANARY})
    assert CANARY not in caplog.text


@pytest.mark.parametrize(("score", "ppm"), [(0, 0), (1, 1_000_000), (0.1, 100_000), (0.123_456_7, 123_457), (1e-9, 0)])
def test_a_score_is_kept_in_millionths(score: float, ppm: int) -> None:
    """Whole numbers, as everything in a ledger."""
    verdict, given_id = read(json.dumps({**GOOD, "score": score}).encode())
    assert (ppm, None) == (verdict.score_ppm, given_id)
