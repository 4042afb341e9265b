"""What can be seen at one moment: workers by id, bands, models, accounts; frozen, and without a byte of any request."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from scheduler.accounting.settlement import Settlement
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.request import Band, Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.dispatcher import Dispatcher
from scheduler.streams import Stream, Submission
from tests.scripted_link import INFO, MODEL, ScriptedLink, posting_of, settle_loop, status_of, usage_of, window_of
from workers.errors import WorkerDead
from workers.types import WorkerState


@asynccontextmanager
async def opened() -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(scheduler=Scheduler(models=[MODEL, "configured"]), settlement=Settlement(), tick_s=60.0)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        for worker_id in [worker.worker_id for worker in dispatcher.snapshot().workers]:
            await dispatcher.remove_link(worker_id)
        await dispatcher.stop()


def submit(dispatcher: Dispatcher, number: int, **fields: object) -> Stream:
    values: dict[str, object] = {"model": MODEL, "body_bytes": 100, **fields}
    request = Request(
        request_id=f"req-{number}",
        tenant="alpha",
        prompt_tokens_bound=10,
        max_output_tokens=16,
        arrival_s=0.0,
        **values,  # type: ignore[arg-type]
    )
    return dispatcher.submit(Submission(request=request, path="/v1/x", render=lambda *caps: b"CANARY of a prompt"))


async def test_an_empty_house_is_seen_as_such() -> None:
    """Configured models are known, none is ready; every band is there."""
    async with opened() as dispatcher:
        found = dispatcher.snapshot()
        assert ((), ("configured", "m"), ()) == (found.workers, found.models, found.ready_models)
        assert ["priority", "default", "flex"] == [band.band for band in found.queue]
        assert (0, 0, 0, False) == (found.num_open, found.num_running, found.open_attempts, found.is_draining)
        assert ((), (), 0) == (found.tenants, found.worker_energy, found.balance.meter_mj)


async def test_workers_are_seen_by_id_with_link_state_and_credit() -> None:
    """One that serves, one that loads, one that is lost: each by its own words."""
    async with opened() as dispatcher:
        links = {name: ScriptedLink(name) for name in ("w-2", "w-0", "w-1")}
        for link in links.values():
            dispatcher.add_link(link)
        links["w-0"].ready()
        links["w-1"].say(status=status_of("w-1", WorkerState.STARTING, info=None, cause="loading"))
        links["w-2"].ready()
        links["w-2"].fail(WorkerDead("w-2", "died"))
        await settle_loop()
        submit(dispatcher, 1)
        found = {worker.worker_id: worker for worker in dispatcher.snapshot().workers}
        assert ["w-0", "w-1", "w-2"] == list(found)
        assert [("connected", True), ("connected", False), ("lost", False)] == [
            (worker.phase, worker.is_ready) for worker in found.values()
        ]
        assert ("worker_lost", WorkerState.STARTING) == (found["w-2"].cause, found["w-1"].status.state)  # type: ignore[union-attr]
        assert [(1, 1), (0, 0), (0, 0)] == [(worker.num_attempts, worker.credit.sequences) for worker in found.values()]
        assert found["w-0"].credit.kv_tokens > 10
        assert (("m",), 1) == (dispatcher.snapshot().ready_models, dispatcher.snapshot().lost_workers)
        assert all(worker.epoch > 0 for worker in found.values())


async def test_a_model_whose_engines_are_parked_is_served_all_the_same() -> None:
    """Whoever asks for readiness is told so; no worker of it takes work at this moment."""
    async with opened() as dispatcher:
        link = ScriptedLink()
        dispatcher.add_link(link)
        link.say(status=status_of(state=WorkerState.PARKED))
        await settle_loop()
        found = dispatcher.snapshot()
        assert (("m",), [False]) == (found.ready_models, [worker.is_ready for worker in found.workers])


async def test_the_queue_is_seen_by_band() -> None:
    """Requests, their bytes, and when a refused one may come again."""
    async with opened() as dispatcher:
        for number, band in enumerate((0, 2, 2)):
            submit(dispatcher, number, band=band)
        assert [("priority", 1, 100), ("default", 0, 0), ("flex", 2, 200)] == [
            (band.band, band.num_requests, band.num_bytes) for band in dispatcher.snapshot().queue
        ]
        assert all(band.retry_after_s >= 1 for band in dispatcher.snapshot().queue)


async def test_counters_and_accounts_are_those_of_this_moment() -> None:
    """What happens later is not in it; nothing in it can be changed."""
    async with opened() as dispatcher:
        link = ScriptedLink()
        dispatcher.add_link(link)
        link.ready()
        await settle_loop()
        submit(dispatcher, 1)
        submit(dispatcher, 2, model="nobody's")
        await settle_loop()
        before = dispatcher.snapshot()
        seen = dataclasses.asdict(dataclasses.replace(before, workers=()))
        link.say(records=(window_of(("req-1-1", 100, 10)), usage_of("req-1-1"), posting_of("req-1-1")))
        link.say(records=(window_of(meter_mj=1),))
        await settle_loop()
        after = dispatcher.snapshot()
        assert seen == dataclasses.asdict(dataclasses.replace(before, workers=()))
        assert (2, 1, {"model_not_found": 1}, {}) == (
            before.submitted, before.dispatched, before.rejected, before.finished
        )  # fmt: skip
        assert ({"completed": 1}, 1, 0) == (after.finished, after.bad_windows, after.open_attempts)
        assert [("alpha", 1, 100)] == [(row.tenant, row.requests, row.energy_mj) for row in after.tenants]
        assert (173, 173) == (after.balance.meter_mj, after.worker_energy[0].meter_mj)
        with pytest.raises(dataclasses.FrozenInstanceError):
            after.num_open = 7  # type: ignore[misc]


async def test_nothing_of_a_request_is_in_it() -> None:
    """Neither a prompt nor an answer can leave through the admin's door."""
    async with opened() as dispatcher:
        link = ScriptedLink()
        dispatcher.add_link(link)
        link.say(status=status_of(info=INFO))
        await settle_loop()
        submit(dispatcher, 1)
        await settle_loop()
        assert link.calls[0].body.startswith(b"CANARY")
        assert b"CANARY" not in msgspec.json.encode(dispatcher.snapshot())


async def test_budgets_that_are_nearly_used_up_are_seen_in_words() -> None:
    """26 of 30 tokens are held: whoever watches sees whose, of what, and until when."""
    budgets = {Level("tenant", "alpha"): (Budget(Measure.TOKENS, 30, Window.parse("total")),)}
    core = Scheduler(models=[MODEL], rules=Rules(budgets=budgets))
    dispatcher = Dispatcher(scheduler=core, settlement=Settlement(), tick_s=60.0)
    submit(dispatcher, 1)
    found = dispatcher.snapshot()
    assert (26, 0) == (found.budget_held["tokens"], found.budget_excess.num_posted)
    (budget,) = msgspec.to_builtins(found.budgets_near_limit)
    assert {
        "level": "tenant alpha", "measure": "tokens", "window": "total", "limit": 30, "used": 0, "held": 26, "left": 4,
        "resets_unix_s": None,
    } == budget  # fmt: skip


async def test_who_waits_is_seen_by_tenant() -> None:
    """In the order of names."""
    dispatcher = Dispatcher(scheduler=Scheduler(models=[MODEL]), settlement=Settlement(), tick_s=60.0)
    for number in (1, 2):
        submit(dispatcher, number, band=Band.FLEX)
    assert {"priority": (), "default": (), "flex": (("alpha", 2),)} == {
        band.band: band.tenants for band in dispatcher.snapshot().queue
    }
