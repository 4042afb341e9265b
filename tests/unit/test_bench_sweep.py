"""The runner: order, what is kept and when, going on, Ctrl-C; and one sweep against a metered server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from scheduler.bench import sweep as module
from scheduler.bench.client import Target, TargetError
from scheduler.bench.drive import Run
from scheduler.bench.report import Slo, energy
from scheduler.bench.session import EnergySource
from scheduler.bench.sweep import good_tokens_per_s, missing, run_sweep
from scheduler.bench.sweep_plan import NO_SLO, Point
from scheduler.bench.sweep_report import Document, Measured
from tests.sweep_words import accounts, report_of, sweep_of, variant, watts
from tests.unit.test_bench_energy import page
from tests.unit.test_bench_session import answer

QUICK: dict[str, Any] = {"idle_s": 0.0, "cooldown_s": 0.0, "warmup_s": 0.1, "duration_s": 0.4}
SWEEP = sweep_of(variant("a"), variant("b"), rates=(1.0, 2.0), repeats=2, **QUICK)


class Log:
    """What the runner told, and what it handed over to be kept."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.points: list[tuple[str, float, int]] = []
        self.states: list[str] = []
        self.totals: set[int] = set()

    @contextmanager
    def progress(self, point: Point, place: int, total: int) -> Iterator[Any]:
        self.points.append((point.variant.name, point.rate_rps, point.repeat))
        self.totals.add(total)
        yield self.states.append, lambda tally: None


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Measurements that take no time; what each was called with."""
    made: list[Any] = []

    async def measure(target: Any, load: Any, **others: Any) -> Any:
        made.append((target, load))
        return report_of(joules=accounts()), Run(warmup_s=0.1, duration_s=0.4)

    monkeypatch.setattr(module, "measure", measure)
    return made


async def run(log: Log, before: tuple[Measured, ...] = (), sweep: Any = SWEEP) -> tuple[Document, bool]:
    return await run_sweep(sweep, before=before, keep=log.documents.append, progress=log.progress)


def names(points: Any) -> list[tuple[str, float, int]]:
    return [(point.setting, point.rate_rps, point.repeat) for point in points]


PLANNED = [(point.variant.name, point.rate_rps, point.repeat) for point in SWEEP.points()]


async def test_every_point_is_measured_in_order_and_kept_at_once(loads: list[Any]) -> None:
    """A cut loses the point that was running, nothing else."""
    log = Log()
    document, interrupted = await run(log)
    assert (False, True) == (interrupted, document.is_complete)
    assert PLANNED == log.points == names(document.points)
    assert list(range(1, 9)) == [len(each.points) for each in log.documents]
    assert {8} == log.totals
    assert [point.load for point in SWEEP.points()] == [load for _, load in loads]
    assert list(range(8)) == [point.position for point in document.points]


async def test_a_cut_sweep_goes_on_where_it_was(loads: list[Any]) -> None:
    """What the file has is not measured again; places count in the whole."""
    whole = (await run(Log()))[0]
    log = Log()
    loads.clear()
    document, _ = await run(log, whole.points[:5])
    assert PLANNED[5:] == log.points
    assert 3 == len(loads)
    assert PLANNED == names(document.points)
    loads.clear()
    again, _ = await run(Log(), document.points)
    assert ([], document) == (loads, again)


async def test_ctrl_c_in_a_run_ends_the_sweep_and_drops_that_point(
    loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a steady window is none."""
    measure = module.measure

    async def cut(*arguments: Any, **others: Any) -> Any:
        report, run = await measure(*arguments, **others)
        run.interrupted = len(loads) == 3
        return report, run

    monkeypatch.setattr(module, "measure", cut)
    log = Log()
    document, interrupted = await run(log)
    assert (True, False) == (interrupted, document.is_complete)
    assert PLANNED[:2] == names(document.points)
    assert log.documents[-1] == document


async def test_a_server_that_goes_away_leaves_what_was_kept(loads: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command goes on when it is back."""
    measure = module.measure

    async def gone(*arguments: Any, **others: Any) -> Any:
        if len(loads) == 3:
            raise TargetError("nobody there")
        return await measure(*arguments, **others)

    monkeypatch.setattr(module, "measure", gone)
    log = Log()
    with pytest.raises(TargetError):
        await run(log)
    assert 3 == len(log.documents[-1].points)


async def test_points_cool_down_between_each_other(loads: list[Any]) -> None:
    """Not before the first: nothing ran yet."""
    log = Log()
    await run(log, sweep=sweep_of(rates=(1.0, 2.0), **{**QUICK, "cooldown_s": 0.01}))
    assert ["cooling down 0.01 s"] == log.states


# -- what a point says


def test_goodput_is_of_the_slo_or_of_what_arrived_in_the_window() -> None:
    """Without an SLO what came only in the drain is no throughput."""
    report = report_of(good_ratio=0.5, tokens_per_s=40)
    assert 20 == good_tokens_per_s(report, Slo(ttft_s=1))
    assert 40 == good_tokens_per_s(report, NO_SLO)


ATTRIBUTED = report_of(joules=accounts())
METERED = report_of(
    joules=energy(
        source="local meter", grade="A", span_s=1, output_tokens=1, good_output_tokens=1, accounts={"meter": 1}
    )
)


@pytest.mark.parametrize(
    ("spans", "report", "expected"),
    [
        ((watts(80), watts(40), watts(41)), ATTRIBUTED, []),
        ((None, None, None), report_of(), ["watts were not measured", "the server attributes none"]),
        ((watts(80), watts(40), watts(41)), METERED, ["attributes none, the meter is all there is"]),
        ((watts(80), None, None), ATTRIBUTED, ["idle watts were not measured: --idle-s 0"]),
        (
            (watts(80), watts(None, notes=("no counter moved twice",)), watts(41, notes=("not idle",))),
            ATTRIBUTED,
            ["idle before: no counter moved twice", "idle after: not idle"],
        ),
    ],
    ids=["all there", "a bare server", "a bare server beside a meter", "no idle", "a doubtful idle"],
)  # fmt: skip
def test_what_is_missing_is_said(spans: Any, report: Any, expected: list[str]) -> None:
    """Never a silent zero."""
    found = missing(*spans, report)
    assert len(expected) == len(found)
    assert all(words in said for words, said in zip(expected, found, strict=True))


# -- against a server


@asynccontextmanager
async def metered_server(window_s: float, idle_watts: float, busy_watts: float) -> AsyncIterator[tuple[str, list[Any]]]:
    """Streams answers, and books joules by window: more while a request is open."""
    loop = asyncio.get_running_loop()
    asked: list[Any] = []
    state = {"joules": 0.0, "busy": 0.0, "open": 0.0, "last_s": loop.time(), "booked": 0.0, "booked_busy": 0.0}

    def integrate() -> None:
        now_s = loop.time()
        state["joules"] += idle_watts * (now_s - state["last_s"])
        state["busy"] += busy_watts * (now_s - state["last_s"]) * (state["open"] > 0)
        state["last_s"] = now_s

    async def book() -> None:
        while True:
            await asyncio.sleep(window_s)
            integrate()
            state["booked"], state["booked_busy"] = state["joules"], state["busy"]

    async def complete(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        integrate()
        state["open"] += 1
        try:
            await asyncio.sleep(0.1)
            return await answer(request)
        finally:
            integrate()
            state["open"] -= 1

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(
            text=page(state["booked"] + state["booked_busy"], state["booked_busy"], idle=state["booked"])
        )

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/metrics", metrics)
    booking = asyncio.create_task(book())
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/"), asked
    booking.cancel()


async def test_a_metered_server_is_swept() -> None:
    """Idle watts, watts under load, goodput per watt and the balance are what the server really drew."""
    log = Log()
    async with metered_server(0.3, 100.0, 300.0) as (url, asked):
        a = variant(
            "a", target=Target(base_url=url, service_tier="flex"), source=EnergySource(metrics_url=url + "/metrics")
        )
        sweep = sweep_of(
            a, variant("bare", url=url), rates=(40.0,), idle_s=1.5, cooldown_s=0.0, warmup_s=0.5, duration_s=2.0
        )
        document, interrupted = await run(log, sweep=sweep)
    assert not interrupted
    point, bare = sorted(document.points, key=lambda each: each.setting)
    assert point.idle_before is not None
    assert point.idle_after is not None
    assert point.steady is not None
    assert 100 == pytest.approx(point.idle_before.watts, rel=0.25)
    assert 100 == pytest.approx(point.idle_after.watts, rel=0.25)
    assert 400 == pytest.approx(point.steady.watts, rel=0.25)
    assert point.steady.watts is not None
    assert point.good_tokens_per_s / point.steady.watts == point.good_tokens_per_joule
    assert point.report.energy is not None
    assert 0 == point.report.energy.difference_joules
    assert () == point.missing
    assert (None, None, None) == (bare.steady, bare.idle_before, bare.good_tokens_per_joule)
    assert {"flex", None} == {body.get("service_tier") for body in asked}
    texts = [body["messages"][0]["content"] for body in asked if len(body["messages"][0]["content"].split()) < 16]
    assert len(texts) == len(set(texts)) > 50
    assert "watching 1.5 s of idle before" in log.states
