"""Joules around a run: read from a metrics page, from answers, or from a meter; never guessed."""

from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from scheduler.bench import energy as module
from scheduler.bench.client import Exchange, TargetError
from scheduler.bench.energy import (
    Reading,
    from_answers,
    from_meter,
    from_metrics,
    reading,
    samples,
    scrape,
    settled,
    token_sums,
)
from scheduler.bench.report import Slo
from scheduler.bench.workload import Planned
from workers.types import Grade
from workers.windows import MeterReading


def exchange(*, output_tokens: int = 10, energy_joules: float | None = None, ttft_s: float = 0.1) -> Exchange:
    planned = Planned(index=0, due_s=0.0, input_tokens=1, output_tokens=output_tokens)
    seen = Exchange(planned=planned, due_s=0.0, output_tokens=output_tokens, energy_joules=energy_joules)
    seen.token_s.extend([ttft_s, ttft_s + 1])
    return seen


def page(meter: float, requests: float, *, idle: float = 0.0, in_flight: float = 0.0, worker: str = "w1") -> str:
    """A metrics page of one worker."""
    label = f'worker="{worker}",grade="D"'
    return (
        "# HELP jouleway_meter_joules_total x\n# TYPE jouleway_meter_joules_total counter\n"
        f"{module.METER_METRIC}{{{label}}} {meter}\n"
        f'{module.ACCOUNT_METRIC}{{account="requests",{label}}} {requests}\n'
        f'{module.ACCOUNT_METRIC}{{account="idle",{label}}} {idle}\n'
        f'{module.ACCOUNT_METRIC}{{account="overhead",{label}}} 0.0\n'
        f'{module.ACCOUNT_METRIC}{{account="unattributed",{label}}} 0.0\n'
        f'{module.IN_FLIGHT_METRIC}{{worker="{worker}"}} {in_flight}\n'
    )


# -- a metrics page


def test_samples_of_a_metrics_page() -> None:
    """Names, labels with escapes, values; comments and broken lines are skipped."""
    text = 'a 1\n# HELP b x\nb{x="1",y="q\\"z"} 2.5e3 1700000000\nbroken\nc{x="1"} word\nd{} +Inf\n'
    assert list(samples(text)) == [
        ("a", {}, 1.0),
        ("b", {"x": "1", "y": 'q\\"z'}, 2500.0),
        ("d", {}, float("inf")),
    ]


def test_accounts_are_summed_over_workers_and_the_worst_grade_holds() -> None:
    """Two workers, one of them modelled: the sum is grade D."""
    text = page(100, 60, idle=40) + page(11, 6, idle=5, worker="w2").replace('grade="D"', 'grade="A"')
    found = reading(text, at_s=1.0)
    assert found is not None
    assert found.accounts == {
        "meter": 111, "requests": 66, "idle": 45, "overhead": 0, "unattributed": 0, "in_flight": 0,
    }  # fmt: skip
    assert found.meter_by_worker == {"w1": 100, "w2": 11}
    assert found.grade == "D"


def test_a_page_without_a_meter_is_no_reading() -> None:
    """Somebody else's metrics are not taken for ours."""
    assert reading("vllm:num_requests_running 3\n", at_s=0.0) is None


def test_energy_between_two_readings_balances() -> None:
    """Differences of the accounts, tokens of everything sent in between."""
    before, after = reading(page(100, 50, idle=50), at_s=10.0), reading(page(180, 110, idle=70), at_s=25.0)
    assert before is not None
    assert after is not None
    found = from_metrics(before, after, [exchange(), exchange(ttft_s=3)], Slo(ttft_s=1))
    assert (found.meter_joules, found.requests_joules, found.idle_joules, found.difference_joules) == (80, 60, 20, 0)
    assert (found.output_tokens, found.good_output_tokens, found.span_s) == (20, 10, 15)
    assert (found.good_tokens_per_joule, found.good_tokens_per_meter_joule) == (pytest.approx(1 / 6), 0.125)
    assert found.notes == ()


def test_joules_still_in_flight_are_said() -> None:
    """A reading before the last window closed is not passed off as final."""
    before, after = reading(page(0, 0), at_s=0.0), reading(page(10, 7, in_flight=3), at_s=1.0)
    assert before is not None
    assert after is not None
    found = from_metrics(before, after, [exchange()], None)
    assert found.notes == ("3.000 J were still in flight at the last reading",)
    assert found.difference_joules == 0


@asynccontextmanager
async def metrics_server(pages: Iterator[web.Response]) -> Any:
    """A server whose metrics page is the next of ``pages`` each time."""
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return next(pages)

    app = web.Application()
    app.router.add_get("/metrics", handle)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield session, str(server.make_url("/metrics")), seen


async def test_scrape_sends_the_admin_key() -> None:
    """The admin listener wants its own key."""
    async with metrics_server(iter([web.Response(text=page(1, 1))])) as (session, url, seen):
        found = await scrape(session, url, "admin-1")
    assert found.accounts["meter"] == 1
    assert seen == ["Bearer admin-1"]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (web.Response(status=401), "JOULEWAY_ADMIN_KEY"),
        (web.Response(status=404), "answered 404"),
        (web.Response(text="up 1\n"), "no jouleway_meter_joules_total"),
    ],
)
async def test_a_page_that_cannot_be_used_is_a_clear_error(response: web.Response, message: str) -> None:
    """The run does not start without the joules that were asked for."""
    async with metrics_server(iter([response])) as (session, url, _):
        with pytest.raises(TargetError, match=message):
            await scrape(session, url, None)


async def test_nobody_at_the_metrics_address() -> None:
    """A closed port is named."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TargetError, match="cannot be reached"):
            await scrape(session, "http://127.0.0.1:1/metrics", None)


async def test_settling_waits_for_two_windows_of_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first window to close may have begun before the run's end; the second covers it."""
    monkeypatch.setattr(module, "POLL_S", 0.0)
    pages = [(10, 20), (10, 21), (11, 22), (11, 23), (12, 24), (99, 99)]
    texts = (web.Response(text=page(a, a) + page(b, b, worker="w2")) for a, b in pages)
    async with metrics_server(texts) as (session, url, seen):
        found = await settled(session, url, None, settle_s=30)
    assert found.meter_by_worker == {"w1": 12, "w2": 24}
    assert len(seen) == 5


async def test_settling_waits_until_nothing_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy whose request is not known to have ended is waited for."""
    monkeypatch.setattr(module, "POLL_S", 0.0)
    pages = [(1, 5.0), (2, 5.0), (3, 5.0), (4, 0.0), (99, 0.0)]
    texts = (web.Response(text=page(meter, 0, in_flight=open_joules)) for meter, open_joules in pages)
    async with metrics_server(texts) as (session, url, _):
        found = await settled(session, url, None, settle_s=30)
    assert found.accounts["meter"] == 4


async def test_settling_has_an_end() -> None:
    """A meter that stands still does not hold the benchmark."""
    async with metrics_server(iter([web.Response(text=page(1, 1))])) as (session, url, _):
        assert isinstance(await settled(session, url, None, settle_s=0), Reading)


# -- answers and local meters


def test_joules_stated_in_answers_are_summed() -> None:
    """Provisional, without idle; requests that state nothing are left out with their tokens."""
    seen = [exchange(energy_joules=2.0), exchange(energy_joules=3.0, output_tokens=15), exchange()]
    found = from_answers(seen, None, span_s=5)
    assert found is not None
    assert (found.requests_joules, found.output_tokens, found.tokens_per_joule) == (5.0, 25, 5.0)
    assert found.meter_joules is None
    assert found.notes == ("1 measured requests state no joules and are left out",)


def test_answers_without_joules_give_no_energy() -> None:
    """A plain OpenAI server has no figure, rather than a zero."""
    assert from_answers([exchange()], None, span_s=5) is None


def test_a_local_meter_counts_everything_between_two_readings() -> None:
    """Millijoules become joules, the worse grade and each fault are kept."""
    before = MeterReading(at_s=10.0, counter_mj=1_000, grade=Grade.A)
    after = MeterReading(at_s=20.0, counter_mj=41_000, grade=Grade.C, fault="counter stalled")
    found = from_meter("rapl:package-0", before, after, [exchange(output_tokens=80)], None)
    assert (found.meter_joules, found.tokens_per_meter_joule, found.span_s) == (40.0, 2.0, 10.0)
    assert (found.source, found.grade) == ("local meter rapl:package-0", "C")
    assert "meter: counter stalled" in found.notes
    assert found.requests_joules is None


def test_good_tokens_are_those_within_the_slo() -> None:
    """Without an SLO every completed request is good; failed ones never are."""
    failed = exchange()
    failed.reason = "timeout"
    seen = [exchange(), exchange(ttft_s=5), failed]
    assert token_sums(seen, None) == (30, 20)
    assert token_sums(seen, Slo(ttft_s=1)) == (30, 10)
