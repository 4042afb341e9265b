"""The picture and the table: drawn from a report for every kind of run, and legible without colour."""

import random
import struct
from array import array
from pathlib import Path

import msgspec
import pytest

from scheduler.bench import screen
from scheduler.bench.client import Exchange
from scheduler.bench.drive import Run, Tally
from scheduler.bench.plot import draw
from scheduler.bench.report import Energy, Finding, Report, Slo, Verdict, energy, figures
from scheduler.bench.verdict import judge
from scheduler.bench.workload import Planned

ACCOUNTS = {"meter": 210.0, "requests": 120.0, "idle": 60.0, "overhead": 25.0, "unattributed": 5.0, "in_flight": 0.0}


def exchanges(count: int, *, failed_every: int = 0) -> list[Exchange]:
    generator = random.Random(4)
    made = []
    for index in range(count):
        due_s = index * 20 / count
        stamps = [due_s + generator.uniform(0.05, 0.4) + i * 0.03 for i in range(generator.randint(1, 30))]
        made.append(
            Exchange(
                planned=Planned(index=index, due_s=due_s, input_tokens=10, output_tokens=len(stamps)),
                due_s=due_s,
                sent_s=due_s,
                ended_s=stamps[-1],
                token_s=array("d", stamps),
                reason="timeout" if failed_every and index % failed_every == 0 else None,
                input_tokens=10,
                output_tokens=len(stamps),
                counted_by_server=True,
            )
        )
    return made


def report_of(run: Run, *, slo: Slo | None = None, joules: Energy | None = None) -> Report:
    found = figures(run, slo)
    return Report(
        target={"base_url": "http://x", "model": "tiny", "endpoint": "chat", "exact_output": True},
        workload={"summary": "Poisson 5 requests/s"},
        started_utc="2026-01-01T00:00:00+00:00",
        warmup_s=run.warmup_s,
        duration_s=run.duration_s,
        requests=found.requests,
        tokens=found.tokens,
        rates=found.rates,
        ttft=found.ttft,
        tpot=found.tpot,
        itl=found.itl,
        e2e=found.e2e,
        goodput=found.goodput,
        energy=joules,
        client=found.client,
        halves=found.halves,
        verdict=judge(found, duration_s=run.duration_s, exact_output=True, interrupted=False),
    )


def joules(accounts: dict[str, float]) -> Energy:
    return energy(
        source="server metrics", grade="D", span_s=20, output_tokens=840, good_output_tokens=420, accounts=accounts
    )


def run_of(count: int, **options: int) -> Run:
    return Run(exchanges=exchanges(count, **options), warmup_s=2.0, duration_s=18.0, ended_s=21.0)


@pytest.mark.parametrize(
    ("run", "slo", "accounts"),
    [
        (run_of(200), Slo(ttft_s=0.2, tpot_s=0.05), ACCOUNTS),
        (run_of(200, failed_every=3), Slo(e2e_s=1.0), {"requests": 12.0}),
        (run_of(1), Slo(), {"meter": 5.0}),
        (run_of(0), None, ACCOUNTS),
    ],
    ids=["accounts", "failures", "one request", "nothing"],
)
def test_every_kind_of_run_can_be_drawn(
    tmp_path: Path, run: Run, slo: Slo | None, accounts: dict[str, float] | None
) -> None:
    """A picture of readable size, whatever happened."""
    path = tmp_path / "run.png"
    draw(report_of(run, slo=slo, joules=joules(accounts) if accounts else None), run, path)
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG")
    assert (width, height) == (1320, 836)


def test_a_picture_that_cannot_be_written_raises(tmp_path: Path) -> None:
    """The caller says so and shows the table."""
    run = run_of(3, failed_every=1)
    with pytest.raises(OSError, match="absent"):
        draw(report_of(run), run, tmp_path / "absent" / "run.png")


# -- the table


def test_the_table_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """Latencies in ms, rates, goodput and joules, and the balance of the meter."""
    run = run_of(200)
    screen.show(report_of(run, slo=Slo(ttft_s=0.2), joules=joules(ACCOUNTS)), to_stderr=False)
    shown = capsys.readouterr().out
    for word in ("TTFT", "TPOT", "ITL", "E2E", "p99", "requests", "tokens", "rates", "goodput", "energy", "verdict"):
        assert word in shown
    assert "7 tokens/J of requests" in shown
    assert "4 tokens/J of the meter (idle included)" in " ".join(shown.split())
    assert "meter − accounts = 0 J" in " ".join(shown.split())


def test_a_void_run_says_so_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Colour is not needed to see that figures must not be quoted."""
    finding = Finding(reason="client_bound", message="the client [used] 99% of a core")
    report = msgspec.structs.replace(report_of(run_of(3)), verdict=Verdict(valid=False, findings=(finding,)))
    screen.show(report, to_stderr=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "INVALID: do not quote these figures" in captured.err
    assert "✗ client_bound: the client [used] 99% of a core" in captured.err


def test_few_samples_show_a_dash_for_p99(capsys: pytest.CaptureFixture[str]) -> None:
    """A figure that is not reported is not invented in the table either."""
    screen.show(report_of(run_of(20)), to_stderr=False)
    ttft = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("TTFT"))
    assert "–" in ttft


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets a line now and then, on standard error, without control characters."""
    with screen.progress(10.0) as (on_state, on_change):
        on_state("probing")
        on_change(Tally(num_sent=5, num_done=2, num_failed=1, now_s=3.0))
        on_change(Tally(num_sent=6, num_done=2, num_failed=1, now_s=3.1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["probing", "running 3/10 s: 5 sent, 3 open, 1 failed"]
