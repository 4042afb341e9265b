"""What `top` shows is what a snapshot says, in units that people read; what is not known is a dash and never a 0."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from scheduler.accounting.accounts import Accounts, WindowTotals, WorkerEnergy
from scheduler.commands import top_view
from scheduler.commands.output import console
from scheduler.core.budgets import Excess
from scheduler.snapshot import BandSnapshot, BudgetSnapshot, CreditSnapshot, Snapshot, WorkerSnapshot
from workers.types import EngineInfo, Grade, WorkerState, WorkerStatus

NOON_UNIX_S = 1_790_078_400.0


def worker(worker_id: str, *, phase: str = "connected", cause: str = "", **status: Any) -> WorkerSnapshot:
    said = WorkerStatus(
        worker_id=worker_id, state=WorkerState.READY, zone="hall-a", num_running=3, num_waiting=1, kv_used_tokens=250,
        grade=Grade.A, meter_up=True, power_watts=312.5,
        info=EngineInfo(
            engine="vllm", version="1", models=("m",), max_model_len_tokens=10, kv_tokens=1000, max_sequences=8,
            num_gpus=1,
        ),
    )  # fmt: skip
    return WorkerSnapshot(
        worker_id=worker_id, phase=phase, cause=cause, epoch=1, is_ready=phase == "connected", num_attempts=4,
        credit=CreditSnapshot(), status=msgspec.structs.replace(said, **status),
    )  # fmt: skip


def energy(worker_id: str, *, requests_mj: int, output_tokens: int) -> WorkerEnergy:
    return WorkerEnergy(
        worker_id=worker_id, meter_mj=0, requests_mj=requests_mj, idle_mj=0, overhead_mj=0, unattributed_mj=0,
        in_flight_mj=0, requests_gpu_us=0, output_tokens=output_tokens, windows=WindowTotals(),
    )  # fmt: skip


def budget(level: str, **values: Any) -> BudgetSnapshot:
    fields = {
        "measure": "energy_mj", "window": "1d", "limit": 10_000, "used": 7_000, "held": 1_500, "left": 1_500,
        "resets_unix_s": NOON_UNIX_S, **values,
    }  # fmt: skip
    return BudgetSnapshot(level=level, **fields)


def told(**values: Any) -> dict[str, Any]:
    """A digest of what the admin listener would send."""
    fields: dict[str, Any] = {
        "workers": (), "queue": (), "models": (), "ready_models": (), "num_open": 3, "num_running": 2, "submitted": 9,
        "dispatched": 8, "retried": 1, "bounced": 4, "preempted": 6, "lost_workers": 1, "rejected": {"queue_full": 2},
        "finished": {"completed": 1234, "failed": 1}, "balance": Accounts().balance(), "tenants": (),
        "worker_energy": (), "duplicate_records": 5, "bad_windows": 0, "open_attempts": 2, "budget_held": {},
        "budgets_near_limit": (), "budget_excess": Excess(), "is_draining": False, **values,
    }  # fmt: skip
    sent = msgspec.json.decode(msgspec.json.encode(Snapshot(**fields)))
    return top_view.digest(sent, at_unix_s=NOON_UNIX_S)


def drawn(capsys: pytest.CaptureFixture[str], digest: dict[str, Any], **options: str) -> list[str]:
    """Lines with single spaces."""
    console().print(top_view.screen(digest, **options))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_worker_shows_batch_kv_watts_and_joules_per_token(capsys: pytest.CaptureFixture[str]) -> None:
    """Joules of requests divided by output tokens; the sum of watts on top."""
    digest = told(
        workers=(worker("w-0"), worker("w-1", power_watts=100.0)),
        worker_energy=(
            energy("w-0", requests_mj=500_000, output_tokens=1000),
            energy("w-9", requests_mj=0, output_tokens=1000),
        ),
    )  # fmt: skip
    first, second = digest["workers"]
    assert {
        "state": "ready", "zone": "hall-a", "num_running": 3, "kv_used_ratio": 0.25, "power_watts": 312.5,
        "joules_per_token": 0.5, "models": ["m"], "grade": "A",
    }.items() <= first.items()  # fmt: skip
    assert second["joules_per_token"] is None
    assert (412.5, 0.25) == (digest["totals"]["power_watts"], digest["totals"]["joules_per_token"])
    lines = drawn(capsys, digest)
    assert "w-0 ready hall-a 3 1 25% 312.5 0.500 A" in lines
    assert "w-1 ready hall-a 3 1 25% 100.0 – A" in lines
    assert (
        "12:00:00 UTC · 2/2 workers ready · 3 open, 2 running · 1,235 finished, 2 rejected, 6 preempted · 412 W · "
        "0.250 J/token"
    ) == lines[0]


def test_a_worker_that_is_not_well_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """Health, cause, a lost link, a meter that is down; one that never spoke has dashes."""
    silent = WorkerSnapshot(
        worker_id="w-2", phase="connecting", cause="", epoch=0, is_ready=False, num_attempts=0,
        credit=CreditSnapshot(), status=None,
    )  # fmt: skip
    digest = told(
        workers=(
            worker("w-0", health=("xid 79",), meter_up=False, power_watts=None),
            worker("w-1", phase="lost", cause="silent", info=None),
            silent,
        )
    )
    lines = drawn(capsys, digest)
    assert "w-0 ready hall-a 3 1 25% – – A (down) xid 79" in lines
    assert "w-1 ready (lost) hall-a 3 1 – 312.5 – A silent" in lines
    assert "w-2 connecting – – – – – – –" in lines
    assert 312.5 == digest["totals"]["power_watts"]


def test_long_words_give_way_before_names_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """On one line, however narrow the screen is."""
    words = "curve_unknown: nobody measured this model on this device: it counts as its whole board power"
    lines = drawn(capsys, told(workers=(worker("w-0", health=(words,)),)))
    assert 1 == sum("w-0 ready hall-a 3 1 25% 312.5 – A" in line for line in lines)
    assert not any("board power" in line for line in lines)


def test_a_parked_worker_is_counted_and_nothing_is_wrong_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Why it is parked stands where complaints do; its watts are those of its device."""
    parked = worker("w-1", state=WorkerState.PARKED, cause="not needed for 40 s", power_watts=60.0)
    digest = told(workers=(worker("w-0"), replace(parked, is_ready=False)))
    lines = drawn(capsys, digest)
    assert "1/2 workers ready · 1 parked ·" in lines[0]
    assert "w-1 parked hall-a 3 1 25% 60.0 – A not needed for 40 s" in lines


def test_queues_are_shown_by_band_and_tenant(capsys: pytest.CaptureFixture[str]) -> None:
    """The longest first; the rest in one line."""
    tenants = tuple((f"t-{number:02d}", number + 1) for number in range(25))
    band = BandSnapshot(band="flex", num_requests=325, num_bytes=4096, retry_after_s=7, tenants=tenants)
    lines = drawn(capsys, told(queue=(band,)))
    begin = lines.index("flex 325 4,096 7 s")
    assert ["t-24 25", "t-23 24"] == lines[begin + 1 : begin + 3]
    assert "5 more tenants 15" in lines
    assert dict(tenants) == told(queue=(band,))["queue"][0]["tenants"]


def test_budgets_near_their_limit_are_shown_in_units_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    """And those that do not fit are counted."""
    many = tuple(budget(f"tenant t-{number:02d}") for number in range(12))
    digest = told(budgets_near_limit=(budget("key k", window="", measure="concurrency", resets_unix_s=None), *many))
    lines = drawn(capsys, digest)
    assert "key k concurrency at once 85% 10,000 7,000 1,500 1,500 –" in lines
    assert "tenant t-00 J 1d 85% 10 7 1.5 1.5 09-22 12:00" in lines
    assert "3 more" in lines
    assert 13 == len(digest["budgets"])
    assert told(budgets_near_limit=(budget("t", limit=0),))["budgets"][0]["full_ratio"] is None


def test_nothing_at_all_is_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    """A control plane that just began, or drains; a complaint comes before everything else."""
    lines = drawn(capsys, told(is_draining=True), complaint="what follows is old")
    assert lines[0].endswith("– W · – J/token · DRAINING")
    assert "what follows is old" == lines[1]


def test_a_ledger_that_cannot_be_written_is_seen_first(capsys: pytest.CaptureFixture[str]) -> None:
    """With its words; an older control plane, which says nothing of it, is shown as before."""
    digest = told(ledger_problem="LedgerError: database or disk is full")
    assert "LEDGER DOWN: LedgerError: database or disk is full" in drawn(capsys, digest)[1]
    assert not any("LEDGER" in line for line in drawn(capsys, told()))
