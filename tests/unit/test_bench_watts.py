"""Watts of a span by hand: counters that move by window, several of them, resets, strangers, silence."""

import asyncio
from collections.abc import Sequence

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench import watts as module
from scheduler.bench.client import Target, TargetError
from scheduler.bench.session import EnergySource
from scheduler.bench.watts import Sample, Track, Watch, watching
from tests.unit.test_bench_energy import page


async def watched(readings: Sequence[tuple[float, Sample | TargetError]]) -> Watch:
    """A watch that read these at these moments."""
    now_s = 0.0
    coming = iter(readings)

    async def read() -> Sample:
        nonlocal now_s
        now_s, sample = next(coming)
        if isinstance(sample, TargetError):
            raise sample
        return sample

    watch = Watch(read, clock=lambda: now_s)
    for _ in readings:
        await watch.look()
    return watch


def counter(*joules: float, every_s: float = 1.0, name: str = "w", grade: str = "A") -> list[tuple[float, Sample]]:
    return [(index * every_s, Sample(joules={name: value}, grade=grade)) for index, value in enumerate(joules)]


async def test_watts_go_from_move_to_move() -> None:
    """A counter booked every 5 s moves at 2, 7 and 12: from 2 to 12 it took 1,000 J, whatever the span's edges are."""
    booked = [0, 0, 300, 300, 300, 300, 300, 800, 800, 800, 800, 800, 1300, 1300, 1300]
    found = (await watched(counter(*booked))).watts(0.5, 14.0)
    assert (100.0, 10.0, "A", ()) == (found.watts, found.span_s, found.grade, found.notes)


async def test_where_a_counter_stood_first_is_no_move() -> None:
    """It may have moved long before."""
    found = (await watched(counter(500, 500, 600, 700))).watts(0, 3)
    assert (100.0, 1.0) == (found.watts, found.span_s)


async def test_the_span_is_kept() -> None:
    """What was before and after it is somebody else's."""
    found = (await watched(counter(0, 1, 2, 3, 103, 203, 303, 304, 305))).watts(3, 6)
    assert 100.0 == found.watts


async def test_workers_are_summed_each_over_its_own_moves() -> None:
    """Windows of two workers end at other moments; the worst grade holds."""
    readings = [
        (index, Sample(joules={"fast": index * 10.0, "slow": (index // 3) * 60.0}, grade="A" if index else "D"))
        for index in range(10)
    ]
    found = (await watched(readings)).watts(1, 9)
    assert 30.0 == found.watts
    assert (6.0, "D") == (found.span_s, found.grade)


async def test_a_worker_that_stands_still_is_said() -> None:
    """Parked, or its window longer than the span: taken from edge to edge."""
    readings = [
        (index, Sample(joules={"w1": index * 10.0, "w2": 0.0 if index < 5 else 45.0}, grade="D")) for index in range(10)
    ]
    found = (await watched(readings)).watts(0, 9)
    assert 15.0 == pytest.approx(found.watts)
    assert ("w2: moved less than twice, taken from edge to edge (± one window)",) == found.notes


@pytest.mark.parametrize("joules", [[5, 5, 5, 5], [5, 5, 6, 6], []])
async def test_a_silent_counter_gives_no_figure(joules: list[float]) -> None:
    """Never a zero."""
    found = (await watched(counter(*joules))).watts(0, 3)
    assert found.watts is None
    assert "no counter moved twice in 3 s" in found.notes[0]


async def test_a_counter_that_began_anew_gives_no_figure() -> None:
    """Joules before and after a restart are of two counters."""
    found = (await watched(counter(500, 600, 0, 100, 200))).watts(0, 4)
    assert found.watts is None
    assert "went back" in found.notes[0]


async def test_a_reading_that_fails_is_said_and_the_rest_counts() -> None:
    """One lost scrape does not void an hour."""
    readings: list[tuple[float, Sample | TargetError]] = [*counter(0, 100, 200, 300, 400)]
    readings[2] = (2.0, TargetError("http://m cannot be reached"))
    found = (await watched(readings)).watts(0, 4)
    assert 100.0 == found.watts
    assert ("a reading failed: http://m cannot be reached",) == found.notes


@pytest.mark.parametrize(("requests", "notes"), [(0.0, 0), (5.0, 0), (30.0, 1)])
async def test_strangers_in_an_idle_span_are_said(requests: float, notes: int) -> None:
    """Their joules are more than two hundredths of all: the span was not idle."""
    readings = [
        (index, Sample(joules={"w": index * 100.0}, grade="D", requests_joules=requests * (index >= 3)))
        for index in range(6)
    ]
    watch = await watched(readings)
    found = watch.watts(0, 5, idle=True)
    assert 100.0 == found.watts
    assert notes == len(found.notes)
    assert all("not idle: 30 J of requests" in note for note in found.notes)
    assert () == watch.watts(0, 5).notes


@given(
    st.lists(st.floats(0.1, 50), min_size=4, max_size=60),
    st.floats(1, 1000),
    st.integers(1, 5),
)
def test_a_constant_draw_is_found_whatever_the_windows_are(gaps_s: list[float], watts: float, every: int) -> None:
    """Readings at any moments, booked every so many of them."""
    track, now_s = Track(), 0.0
    for index, gap_s in enumerate(gaps_s):
        now_s += gap_s
        if index % every == 0:
            booked = now_s * watts
        track.add(now_s, booked)
    found = track.between(0, now_s)
    if found is not None:
        assert watts == pytest.approx(found[0] / found[1], rel=1e-6)
    else:
        assert len(gaps_s) <= 2 * every


# -- the whole watch


async def test_a_metrics_page_is_watched_and_left() -> None:
    """With the admin key; 50 J every 50 ms are about a kilowatt; the task ends with the context."""
    loop = asyncio.get_running_loop()
    keys: set[str | None] = set()

    async def metrics(request: web.Request) -> web.Response:
        keys.add(request.headers.get("Authorization"))
        return web.Response(text=page(50.0 * int(loop.time() / 0.05), 0.0))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        url = str(server.make_url("/metrics"))
        source = EnergySource(metrics_url=url, admin_key="ak")
        async with watching(Target(base_url=url, api_key="sk"), source) as watch:
            assert watch is not None
            start_s = watch.clock()
            await asyncio.sleep(1.6)
            found = watch.watts(start_s, watch.clock(), idle=True)
        tasks = len(asyncio.all_tasks())
    assert 1000 == pytest.approx(found.watts, rel=0.2)
    assert ("D", ()) == (found.grade, found.notes)
    assert {"Bearer ak"} == keys
    assert tasks <= 2


async def test_a_page_that_is_not_there_stops_the_point_at_once() -> None:
    """Not after a minute of load."""
    source = EnergySource(metrics_url="http://127.0.0.1:1/metrics")
    with pytest.raises(TargetError, match="cannot be reached"):
        async with watching(Target(base_url="http://127.0.0.1:1"), source):
            raise AssertionError("nothing to watch")


async def test_a_local_meter_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """In joules, by the meter's name."""
    from tests.unit.test_bench_session import Meter

    meter = Meter()
    monkeypatch.setattr("workers.power.choose.open_meter", lambda spec, **others: (meter, ()))
    async with watching(Target(base_url="http://x"), EnergySource(local_meter="rapl")) as watch:
        assert watch is not None
        for _ in range(3):
            await watch.look()
        found = watch.watts(0, watch.clock() + 1)
    assert found.watts is not None
    assert "C" == found.grade
    assert meter.is_closed


async def test_without_a_source_there_is_no_watch() -> None:
    """And the point will say how to have one."""
    async with watching(Target(base_url="http://x"), EnergySource()) as watch:
        assert watch is None
    assert "--metrics-url" in module.NO_METER
    assert "--local-meter" in module.NO_METER
