"""A whole benchmark against a server in this process, and what its options refuse."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from scheduler.bench import session as module
from scheduler.bench.client import Target, TargetError
from scheduler.bench.report import Slo
from scheduler.bench.session import EnergySource, Load, make_plan, measure
from scheduler.bench.workload import Lengths
from scheduler.trace_files import TraceError
from workers.types import Grade
from workers.windows import MeterReading

SHORT = Lengths(input_tokens=20, output_tokens=4)


class Meter:
    """A counter of this machine: 2 J more with every reading."""

    name = "rapl:package-0"
    counter_mj = 0
    is_closed = False

    def read(self) -> MeterReading:
        self.counter_mj += 2_000
        return MeterReading(at_s=self.counter_mj / 1000, counter_mj=self.counter_mj, grade=Grade.C)

    def close(self) -> None:
        self.is_closed = True


async def answer(request: web.Request) -> web.StreamResponse:
    """Streams as many words as asked, with usage and joules."""
    asked = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(asked["max_completion_tokens"]):
        await response.write(b'data: {"choices":[{"delta":{"content":" a"}}]}\n\n')
        await asyncio.sleep(0)
    counts = {
        "prompt_tokens": len(asked["messages"][0]["content"].split()) + 5,
        "completion_tokens": asked["max_completion_tokens"],
    }
    last = {"choices": [], "usage": counts, "jouleway": {"energy_joules": 0.5, "gpu_seconds": 0.1}}
    await response.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
    return response


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """The base URL of a server on loopback."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as running:
        yield str(running.make_url("")).rstrip("/")


# -- loads


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate_rps": 1.0, "concurrency": 2},
        {"rate_rps": 1.0, "trace": Path("x")},
        {"concurrency": 0},
        {"rate_rps": 1.0, "duration_s": 0},
        {"rate_rps": 1.0, "warmup_s": -1},
        {"rate_rps": 1.0, "max_in_flight": 0},
    ],
)
def test_a_load_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    """Exactly one way to send, and spans that exist."""
    with pytest.raises(ValueError, match=r"exactly one|positive|at least 1"):
        Load(**options)  # type: ignore[arg-type]


def test_an_open_plan_covers_warm_up_and_measurement() -> None:
    """The warm-up is the same load, not another one."""
    plan, notes = make_plan(Load(rate_rps=50, duration_s=4, warmup_s=2))
    assert 4 < max(planned.due_s or 0 for planned in plan) < 6
    assert notes == ()


def test_other_texts_are_asked_at_the_same_moments() -> None:
    """So that a sweep can send the same load to one server twice and meet no prefix cache."""
    plans = [make_plan(Load(rate_rps=60, lengths=SHORT, texts=texts)) for texts in ("", "1/s 0", "1/s 1")]
    assert plans[0] == plans[1] == plans[2]


def test_a_cut_trace_is_noted(tmp_path: Path) -> None:
    """The verdict will say that lengths were cut."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 900, "output_length": 5, "hash_ids": [1, 2]}\n')
    plan, notes = make_plan(Load(trace=path, duration_s=4, warmup_s=0, max_input_tokens=100))
    assert plan[0].input_tokens == 100
    assert notes == ("1 of 1 requests of the trace were cut to the limits",)
    with pytest.raises(TraceError):
        make_plan(Load(trace=path, duration_s=4, warmup_s=0, skip_s=9))


@pytest.mark.parametrize(
    ("load", "summary"),
    [
        (Load(rate_rps=2.5), "Poisson 2.5 requests/s, 128 in / 64 out"),
        (Load(rate_rps=2.5, cv=3), "gamma cv 3 2.5 requests/s, 128 in / 64 out"),
        (Load(concurrency=8), "closed loop, 8 at once, 128 in / 64 out"),
        (Load(trace=Path("a/b.csv"), speed=2), "trace b.csv × 2"),
    ],
)
def test_a_load_describes_itself_without_paths(load: Load, summary: str) -> None:
    """What is written into a result names no folder of this machine."""
    assert load.summary() == summary
    assert "a/" not in json.dumps(load.describe())


# -- whole runs


async def test_an_open_run_end_to_end() -> None:
    """Every planned request is answered, counted and priced; a run this short is void and says so."""
    states: list[str] = []
    async with server() as url:
        report, run = await measure(
            Target(base_url=url),
            Load(rate_rps=100, duration_s=0.4, warmup_s=0.1, lengths=SHORT),
            slo=Slo(ttft_s=5.0),
            on_state=states.append,
        )
    assert report.target["model"] == "tiny"
    assert report.requests.completed == report.requests.measured > 10
    assert report.tokens.output == 4 * report.requests.completed
    assert report.tokens.input == report.tokens.planned_input
    assert report.goodput is not None
    assert report.goodput.good_ratio == 1.0
    assert report.energy is not None
    assert report.energy.tokens_per_joule == pytest.approx(8.0)
    assert "too_short" in [finding.reason for finding in report.verdict.findings]
    assert states == ["planning", "asking for the model", "probing", "running"]
    assert len(run.exchanges) == report.requests.measured + report.requests.warmup


async def test_a_closed_run_end_to_end() -> None:
    """Two at once until the span is over."""
    async with server() as url:
        report, run = await measure(
            Target(base_url=url, model="tiny"), Load(concurrency=2, duration_s=0.3, warmup_s=0.0, lengths=SHORT)
        )
    assert report.requests.failed == 0
    assert 0 < report.rates.num_open_max <= 2
    assert report.goodput is None
    assert report.workload["concurrency"] == 2
    assert run.num_unsent == 0


async def test_ctrl_c_ends_the_run_and_keeps_its_figures() -> None:
    """SIGINT stops sending; what was measured is reported, and void."""

    async def interrupt() -> None:
        """Not before the run handles the signal: until then it would end this process."""
        while signal.getsignal(signal.SIGINT) is before:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    async with server() as url:
        interrupting = asyncio.create_task(interrupt())
        report, run = await measure(
            Target(base_url=url, model="tiny"), Load(rate_rps=50, duration_s=600, warmup_s=0, lengths=SHORT)
        )
        await interrupting
    assert run.interrupted
    assert report.requests.completed > 0
    assert report.requests.unsent > 1000
    assert "interrupted" in [finding.reason for finding in report.verdict.findings]


async def test_a_local_meter_is_read_around_the_run_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings, one before and one after; the device is released."""

    meter = Meter()
    asked: list[tuple[str, tuple[str, ...]]] = []

    def open_meter(spec: object, *, gpu_uuids: tuple[str, ...], **others: object) -> tuple[Meter, tuple[str, ...]]:
        asked.append((spec.kind, gpu_uuids))  # type: ignore[attr-defined]
        return meter, ()

    import workers.power.choose

    monkeypatch.setattr(workers.power.choose, "open_meter", open_meter)
    async with server() as url:
        report, _ = await measure(
            Target(base_url=url, model="tiny"),
            Load(rate_rps=50, duration_s=0.2, warmup_s=0, lengths=SHORT),
            source=EnergySource(local_meter="rapl", gpu_uuids=("GPU-1",)),
        )
    assert asked == [("rapl", ("GPU-1",))]
    assert meter.is_closed
    assert report.energy is not None
    assert (report.energy.meter_joules, report.energy.grade) == (2.0, "C")


async def test_metrics_that_were_asked_for_and_are_not_there_stop_the_run() -> None:
    """No run without the joules it was to measure."""
    async with server() as url:
        with pytest.raises(TargetError, match="cannot be reached"):
            await measure(
                Target(base_url=url, model="tiny"),
                Load(rate_rps=50, duration_s=0.2, lengths=SHORT),
                source=EnergySource(metrics_url="http://127.0.0.1:1/metrics"),
            )


def test_a_server_without_token_counts_is_noted() -> None:
    """The prompt's length is then in words."""
    assert module._fit_notes(module.TokenFit()) != ()
    assert module._fit_notes(module.TokenFit(measured=True)) == ()
