"""Budgets, tasks and idempotency keys as a client meets them, through everything but Ray, on simulated engines."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.request import CostPlus, Rates, Request
from scheduler.core.rules import Rules
from tests.asgi_client import Asked, ask
from tests.local_link import ADMIN_KEY, FAST_ENGINE, KEYS, MODEL, ControlPlane, control_plane, simulated_spec

COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
ALPHA = Level("tenant", "alpha")
HOUR, DAY = Window.parse("1h"), Window.parse("1d")


def rules(*budgets: Budget, **values: Any) -> Rules:
    return Rules(budgets={ALPHA: budgets}, **values)


def body(**fields: Any) -> dict[str, Any]:
    """A prompt of four tokens, an answer of four, unless told otherwise."""
    return {"model": MODEL, "prompt": "one two three 16", "max_tokens": 4, "ignore_eos": True, **fields}


async def asked(plane: ControlPlane, fields: dict[str, Any] | None = None, **how: Any) -> Asked:
    path = how.pop("path", COMPLETION)
    given = body() if fields is None else fields
    return await ask(plane.relay, path, given, **{"key": KEYS["alpha"], **how}).finished()


async def until(is_so: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.002)


def held(plane: ControlPlane) -> int:
    """On all budgets together."""
    return sum(plane.dispatcher.snapshot().budget_held.values())


async def test_tokens_are_never_overspent_and_the_loser_is_told_which_budget() -> None:
    """Sixteen at once for the tokens of five: five are answered, and what is left would not have been enough."""
    async with control_plane(rules=rules(Budget(Measure.TOKENS, 43, HOUR))) as plane:
        answers = await asyncio.gather(*(asked(plane) for _ in range(16)))
        served = [answer for answer in answers if answer.status == 200]
        assert {200, 429} == {answer.status for answer in answers}
        spent = sum(answer.json()["usage"]["total_tokens"] for answer in served)
        assert 43 - 8 < spent <= 43
        await until(lambda: held(plane) == 0)
        refusal = await asked(plane, body(max_tokens=64, prompt="x" * 200))
        error = refusal.json()["error"]
        assert ("tenant alpha", "tokens", "1h", 43) == tuple(
            error["budget"][key] for key in ("level", "measure", "window", "limit")
        )
        assert 43 - spent == error["budget"]["left"]


async def test_a_spent_quota_and_a_rate_are_told_apart() -> None:
    """Libraries repeat a rate by themselves, after the time that they are told; a quota they must not."""
    async with control_plane(rules=rules(Budget(Measure.REQUESTS, 1, HOUR))) as plane:
        assert 200 == (await asked(plane)).status
        rate = await asked(plane)
    async with control_plane(rules=rules(Budget(Measure.REQUESTS, 1, DAY))) as plane:
        assert 200 == (await asked(plane)).status
        quota = await asked(plane)
    assert (429, "rate_limit_exceeded", "requests") == (
        rate.status, (error := rate.json()["error"])["code"], error["type"],
    )  # fmt: skip
    assert 0 < int(rate.headers["retry-after"]) <= 3660
    assert "x-should-retry" not in rate.headers
    assert (429, "insufficient_quota", "insufficient_quota", "false") == (
        quota.status, (error := quota.json()["error"])["code"], error["type"], quota.headers["x-should-retry"],
    )  # fmt: skip
    assert error["budget"]["resets_unix_s"] > time.time()


async def test_the_headers_say_what_is_left_after_this_request() -> None:
    """They agree with what the next refusal counts; another tenant without budgets has none."""
    budgets = rules(Budget(Measure.TOKENS, 5000, HOUR), Budget(Measure.REQUESTS, 3, HOUR))
    async with control_plane(rules=budgets) as plane:
        first = await asked(plane)
        used = first.json()["usage"]["total_tokens"]
        assert ("5000", str(5000 - used), "3", "2") == tuple(
            first.headers[f"x-ratelimit-{name}"]
            for name in ("limit-tokens", "remaining-tokens", "limit-requests", "remaining-requests")
        )
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        other = await asked(plane, key=KEYS["beta"])
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]


async def test_an_answer_is_cut_to_what_is_left() -> None:
    """The engine itself ends the text, with ``length``."""
    async with control_plane(rules=rules(Budget(Measure.OUTPUT_TOKENS, 10, HOUR))) as plane:
        answer = (await asked(plane, body(max_tokens=60))).json()
        assert (10, "length") == (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"])
        assert 429 == (await asked(plane)).status


async def test_money_is_never_overspent() -> None:
    """By the prices of the model; the note says what it cost."""
    rates = Rates(input_nano=1_000_000_000, cached_nano=1_000_000_000, output_nano=2_000_000_000)
    async with control_plane(rules=rules(Budget(Measure.MONEY_NANO, 50_000, HOUR)), rates=rates) as plane:
        answers = await asyncio.gather(
            *(asked(plane, headers={"x-jouleway-metering": "1"}) for _ in range(16)),
        )
        paid = sum(answer.json()["jouleway"]["cost_nano"] for answer in answers if answer.status == 200)
        assert 0 < paid <= 50_000
        assert all("currency units" in answer.json()["error"]["message"] for answer in answers if answer.status == 429)
        assert any(answer.status == 429 for answer in answers)


async def test_energy_that_is_paid_for_is_charged_and_corrected_to_what_was_measured() -> None:
    """The budget and the accounts agree: tokens, and cost-plus of the joules and GPU-seconds that were booked."""
    rates = Rates(1_000_000_000, 0, 2_000_000_000, plus=CostPlus(10**9, 1_500_000, 10**6, 100_000))
    async with control_plane(rules=rules(Budget(Measure.MONEY_NANO, 10**9, HOUR)), rates=rates) as plane:
        answers = [await asked(plane, headers={"x-jouleway-metering": "1"}) for _ in range(3)]
        assert [200, 200, 200] == [answer.status for answer in answers]
        notes = [answer.json()["jouleway"] for answer in answers]
        await until(lambda: plane.settlement.num_open == 0 and held(plane) == 0)
        paid = plane.settlement.accounts.tokens_of("alpha").cost_nano
        tokens_nano, plus_nano = 0, 0
        for note in notes:
            details = plane.settlement.details(note["request_id"])
            assert details is not None
            (charge,), (posting,) = details.charges.values(), details.postings.values()
            tokens_nano += charge.cost_nano - charge.plus_nano
            plus_nano += rates.cost_plus_nano(
                energy_mj=posting.energy_mj, gpu_us=posting.gpu_us, most_nano=charge.most_plus_nano
            )
        assert plus_nano > 0
        assert tokens_nano + plus_nano == paid
        asked_of = Request(request_id="r", tenant="alpha", model=MODEL, prompt_tokens_bound=0, max_output_tokens=0,
                           arrival_s=0.0, arrival_unix_s=time.time())  # fmt: skip
        (state,) = plane.dispatcher._core.holds.budgets.states(asked_of)
        assert (paid, 0) == (state.used, state.held)


async def test_where_the_bound_is_too_large_the_engine_counts_the_prompt() -> None:
    """A chat's bound is over a thousand tokens; its prompt has a few, and those are what the budget is asked for."""
    async with control_plane(rules=rules(Budget(Measure.TOKENS, 100, HOUR))) as plane:
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        answer = await asked(plane, chat, path=CHAT)
        assert 200 == answer.status
        await until(lambda: plane.dispatcher.snapshot().num_running == 0)
        long = await asked(plane, {**chat, "messages": [{"role": "user", "content": "x" * 2000}]}, path=CHAT)
        assert 429 == long.status
        needed = long.json()["error"]["budget"]["needed"]
        assert 500 <= needed < 1000
        found = plane.dispatcher.snapshot()
        row = next(row for row in found.tenants if row.tenant == "alpha")
        usage = answer.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (row.input_tokens, row.output_tokens)
        assert 0 == held(plane)


async def test_calls_of_one_task_share_one_total() -> None:
    """Whatever else is left to their tenant; another task has its own."""
    limited = Rules(task_budgets={"alpha": (Budget(Measure.REQUESTS, 2, Window.parse("total")),)})
    async with control_plane(rules=limited) as plane:
        statuses = [
            (await asked(plane, headers={"x-jouleway-task": task} if task else {})).status
            for task in ("night", "night", "night", "day", "")
        ]
        assert [200, 200, 429, 200, 200] == statuses
        refusal = await asked(plane, headers={"x-jouleway-task": "night"})
        assert "task alpha/night" == refusal.json()["error"]["budget"]["level"]


async def test_a_refused_client_holds_nothing_and_may_leave_at_any_time() -> None:
    """Also one that hangs up while it waits: what it held comes back."""
    spec = simulated_spec(engine_args={**FAST_ENGINE, "fixed_step_s": 0.02})
    async with control_plane([spec], rules=rules(Budget(Measure.TOKENS, 300, HOUR))) as plane:
        leaving = [ask(plane.relay, COMPLETION, body(max_tokens=60), key=KEYS["alpha"]) for _ in range(6)]
        await until(lambda: held(plane) > 0)
        for each in leaving:
            each.hang_up()
        await asyncio.gather(*(each.finished() for each in leaving))
        await until(lambda: plane.dispatcher.snapshot().num_running == 0)
        assert 0 == held(plane)


async def test_a_key_that_ran_costs_nothing_again() -> None:
    """Neither tokens nor the budget: the second answer is the first one's usage and receipt."""
    async with control_plane(rules=rules(Budget(Measure.REQUESTS, 1, HOUR))) as plane:
        how = {"headers": {"idempotency-key": "job-1"}}
        first, again = await asked(plane, **how), await asked(plane, **how)
        assert (200, 200, "1") == (first.status, again.status, again.headers["x-jouleway-replayed"])
        assert first.json()["usage"]["total_tokens"] == again.json()["usage"]["total_tokens"]
        assert first.headers["x-request-id"] == again.json()["jouleway"]["request_id"]
        assert 1 == plane.dispatcher.snapshot().dispatched
        assert 422 == (await asked(plane, body(max_tokens=5), **how)).status
        assert 429 == (await asked(plane)).status


async def test_a_budget_that_refused_can_be_explained() -> None:
    """The life of a request says what was held and settled; an operator sees the budget near its limit."""
    async with control_plane(rules=rules(Budget(Measure.REQUESTS, 1, HOUR))) as plane:
        first = await asked(plane)
        story = await asked(plane, path=f"/v1/jouleway/requests/{first.headers['x-request-id']}", method="GET")
        assert [("tenant alpha", "requests", 1)] == [
            (each["level"], each["measure"], each["settled"]) for each in story.json()["budgets"]
        ]
        near = (await ask(plane.admin, "/v1/jouleway/budgets", key=ADMIN_KEY).finished()).json()["budgets"]
        assert [("tenant alpha", "requests", 0)] == [(each["level"], each["measure"], each["left"]) for each in near]


async def test_no_header_of_a_megabyte_costs_more_than_its_refusal() -> None:
    """Named, refused, forgotten: nothing of it is held or remembered."""
    async with control_plane(rules=rules(Budget(Measure.REQUESTS, 10, HOUR))) as plane:
        for name in ("x-jouleway-task", "idempotency-key", "x-jouleway-zones"):
            refusal = await asked(plane, headers={name: "x" * 1_000_000})
            assert (400, name) == (refusal.status, refusal.error()["param"])
            assert len(refusal.body) < 4096
        assert 0 == plane.dispatcher.snapshot().submitted
