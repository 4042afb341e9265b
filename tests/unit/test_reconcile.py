"""Ledger, engine counters and meter: every difference has a source; what has none is found, and nothing explains it."""

from __future__ import annotations

from dataclasses import fields
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.journal import Journal, State
from scheduler.accounting.reconcile import WorkerFigures, reconcile
from scheduler.accounting.rows import Charge, Daily, Energy, Row, Window, decode, encode
from scheduler.accounting.settlement import Settlement
from scheduler.core.actions import Payer
from tests.scripted_link import posting_of
from workers.types import Grade, Outcome, WindowRecord

SECOND_US = 1_000_000
ABORTED = {"outcome": Outcome.ABORTED, "output_tokens": 0}
FOUR = {"num_sequences": 4, "output_tokens": 40, "computed_prompt_tokens": 400}
TENANT_TOKENS = {"input_tokens": 100, "cached_tokens": 0, "computed_prompt_tokens": 100, "output_tokens": 10}


class ListStore:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, rows: list[Row], state: State | None) -> bool:
        self.rows += [decode(encode(row)) for row in rows]
        return False


class House:
    """A settlement that books what workers of the test say, and the rows that it wrote."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.settlement = Settlement(journal=Journal(ListStore(), unix_clock=lambda: self.now_s))
        for worker in ("w-0", "w-1"):
            self.settlement.open_worker(worker, incarnation="life")
        self.counters_mj: dict[str, int] = {}
        self.numbers: dict[str, int] = {}

    @property
    def rows(self) -> list[Row]:
        return [decode(encode(row)) for row in self.settlement.journal._pending]

    def window(
        self, *shares: tuple[str, int], worker: str = "w-0", by_mj: int | None = None, causes: Any = (), **parts: int
    ) -> None:
        """The counter goes on by what was metered; ``by_mj``: to another place. Parts: idle, overhead, unattributed."""
        in_flight_mj = sum(energy_mj for _, energy_mj in shares)
        meter_mj = in_flight_mj + sum(parts.values())
        counter_mj = self.counters_mj.get(worker, 5_000) + (meter_mj if by_mj is None else by_mj)
        self.counters_mj[worker] = counter_mj
        self.numbers[worker] = number = self.numbers.get(worker, 0) + 1
        record = WindowRecord(
            window=number, started_s=0.0, ended_s=1.0, ended_unix_s=1.0, counter_mj=counter_mj, meter_mj=meter_mj,
            idle_mj=parts.get("idle", 0), overhead_mj=parts.get("overhead", 0), in_flight_mj=in_flight_mj,
            unattributed_mj=parts.get("unattributed", 0), shares=tuple((name, mj, 0) for name, mj in shares),
            busy_gpu_us=0, overhead_gpu_us=0, predicted_mj=0, scale_ratio=1.0, grade=Grade.A, meter="m", num_steps=1,
            causes=tuple(causes),
        )  # fmt: skip
        self.settlement.window(worker, record, number=number)

    def charge(self, attempt_id: str, *, worker: str = "w-0", num_sequences: int = 1, **facts: Any) -> None:
        """Of an attempt that was counted on both sides, unless told otherwise; scheduled as the identity has it."""
        values: dict[str, Any] = {"outcome": Outcome.COMPLETED, **TENANT_TOKENS, **facts}
        values.setdefault("num_generating", num_sequences if values["output_tokens"] else 0)
        never_billed = sum(values.get(name, 0) for name in ("recomputed_tokens", "rejected_tokens", "overrun_tokens"))
        scheduled = values["computed_prompt_tokens"] + values["output_tokens"] - values["num_generating"] + never_billed
        values.setdefault("scheduled_tokens", scheduled)
        charge = Charge(
            request_id=attempt_id.rpartition("-")[0], attempt_id=attempt_id, tenant="t", model="m", worker_id=worker,
            **values,
        )  # fmt: skip
        assert self.settlement.charge(charge)

    def post(self, attempt_id: str, *, worker: str = "w-0") -> None:
        assert self.settlement.post_energy(worker, posting_of(attempt_id, 0))

    def figures(self, **period: Any) -> WorkerFigures:
        (found,) = reconcile(self.rows, **period)
        return found


def told(figures: WorkerFigures, *names: str) -> tuple[int, ...]:
    return tuple(getattr(figures, name) for name in names)


# -- tokens


@pytest.mark.parametrize(
    ("facts", "sources"),
    [
        ({}, {"last_tokens": 1}),
        ({"cached_tokens": 60, "computed_prompt_tokens": 40}, {"cached_tokens": 60, "last_tokens": 1}),
        (FOUR, {"last_tokens": 4, "repeated_prompt_tokens": 300}),
        ({**ABORTED, "computed_prompt_tokens": 32}, {"uncomputed_prompt_tokens": 68}),
        ({**ABORTED, "computed_prompt_tokens": 0}, {"uncomputed_prompt_tokens": 100}),
        ({"recomputed_tokens": 57}, {"recomputed_tokens": 57, "last_tokens": 1}),
        ({"rejected_tokens": 9}, {"rejected_tokens": 9, "last_tokens": 1}),
        ({"overrun_tokens": 3}, {"overrun_tokens": 3, "last_tokens": 1}),
        ({"payer": Payer.OPERATOR, "outcome": Outcome.FAILED}, {"in_vain_tokens": 109, "last_tokens": 1}),
        ({"scheduled_tokens": None}, {"num_inexact": 1}),
        ({"is_exact": False, "scheduled_tokens": 7}, {"num_inexact": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_every_difference_of_tokens_has_its_source(facts: dict[str, Any], sources: dict[str, int]) -> None:
    """And no other source says anything."""
    house = House()
    house.charge("req-a-1", **facts)
    figures = house.figures()
    names = (
        "cached_tokens", "last_tokens", "repeated_prompt_tokens", "uncomputed_prompt_tokens", "recomputed_tokens",
        "rejected_tokens", "overrun_tokens", "in_vain_tokens", "num_inexact",
    )  # fmt: skip
    assert {name: sources.get(name, 0) for name in names} == dict(zip(names, told(figures, *names), strict=True))
    assert figures.is_explained


@pytest.mark.parametrize("name", ["scheduled_tokens", "output_tokens", "recomputed_tokens", "num_generating"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_token_too_many_is_unexplained(name: str, by: int) -> None:
    """Billed beyond what was scheduled, or scheduled and never named."""
    house = House()
    house.charge("req-a-1", recomputed_tokens=5)
    (charge,) = house.rows
    setattr(charge, name, getattr(charge, name) + by)
    (figures,) = reconcile([charge])
    assert (1, False) == (abs(figures.unexplained_tokens), figures.is_explained)


def test_tokens_of_steps_that_were_never_metered_are_told() -> None:
    """They are no difference of the bill: the split of energy missed them."""
    house = House()
    house.charge("req-a-1")
    house.window(("req-a-1", 100))
    house.settlement.post_energy("w-0", posting_of("req-a-1", 100, computed_tokens=100))
    figures = house.figures()
    assert (9, True) == (abs(figures.unmetered_tokens), figures.is_explained)


# -- energy


def test_every_part_of_the_meter_is_shown() -> None:
    """Idle, overhead, what has no payer by its cause, tenants, the operator, in flight."""
    house = House()
    house.window(("req-a-1", 70), ("req-b-1", 30), idle=10, overhead=5, unattributed=2, causes=[("steps_late", 2)])
    house.charge("req-a-1")
    house.charge("req-b-1", payer=Payer.OPERATOR)
    house.post("req-a-1")
    house.window(("req-c-1", 9))
    figures = house.figures()
    assert (126, 70, 0, 10, 5, 2, 39) == told(
        figures, "metered_mj", "requests_mj", "operator_mj", "idle_mj", "overhead_mj", "unattributed_mj", "in_flight_mj"
    )
    house.post("req-b-1")
    figures = house.figures()
    assert (30, 9, {"steps_late": 2}) == (figures.operator_mj, figures.in_flight_mj, dict(figures.causes))
    assert figures.is_explained


def test_what_arrives_after_the_posting_follows_to_whoever_paid() -> None:
    """It is in no account twice, and nothing stays in flight."""
    house = House()
    house.window(("req-a-1", 70), ("req-b-1", 10))
    for name, payer in (("req-a-1", Payer.REQUEST), ("req-b-1", Payer.OPERATOR)):
        house.charge(name, payer=payer)
        house.post(name)
    house.window(("req-a-1", 5), ("req-b-1", 3))
    figures = house.figures()
    assert (75, 13, 0) == told(figures, "requests_mj", "operator_mj", "in_flight_mj")
    assert figures.is_explained


@pytest.mark.parametrize("cause", ["worker_lost", "outbox_overflow", "meter_lost", "meter_back"])
def test_what_nobody_could_be_asked_about_is_unattributed_with_its_cause(cause: str) -> None:
    """A worker that died, an outbox that was full, a meter that was gone: the counter goes on, and is followed."""
    house = House()
    house.window(idle=10)
    house.window(unattributed=400, causes=[(cause, 400)])
    house.window(idle=10)
    figures = house.figures()
    assert (420, 400, {cause: 400}) == (figures.metered_mj, figures.unattributed_mj, dict(figures.causes))
    assert figures.is_explained


def test_a_counter_that_fell_is_followed() -> None:
    """By how much it fell is told; what it counted before its end nobody can know."""
    house = House()
    house.window(idle=1_000)
    house.window(idle=40, by_mj=40 - 6_000, causes=[("counter_reset", 0)])
    house.window(idle=60)
    figures = house.figures()
    assert (5_000, 100, 6_000, 1_100) == told(figures, "first_counter_mj", "last_counter_mj", "reset_mj", "metered_mj")
    assert figures.is_explained


def test_a_counter_that_fell_while_the_outbox_was_full_is_followed() -> None:
    """The next window that finds room has both causes, and all that was carried."""
    house = House()
    house.window(idle=1_000)
    carried = 300 + 50  # before it fell, and after
    causes = [("outbox_overflow", carried), ("counter_reset", 0)]
    house.window(idle=30, unattributed=carried, by_mj=80 - 6_000, causes=causes)
    figures = house.figures()
    assert (1_000 + 30 + carried, True) == (figures.metered_mj, figures.is_explained)


def test_a_meter_that_was_down_from_the_start_is_found() -> None:
    """Where it stood is no energy of this worker."""
    house = House()
    house.counters_mj["w-0"] = 0
    house.window(unattributed=0, causes=[("meter_lost", 0)])
    house.window(by_mj=9_000_000, causes=[("meter_found", 0)])
    house.window(idle=50)
    figures = house.figures()
    assert (9_000_000, 50, True) == (figures.found_mj, figures.metered_mj, figures.is_explained)


@pytest.mark.parametrize(("by_mj", "restarted_mj"), [(40 - 6_000, -6_000), (900_000, 899_960), (40, 0)])
def test_a_new_process_may_begin_at_another_reading(by_mj: int, restarted_mj: int) -> None:
    """A modelled counter at 0, a device's where it stands now, or one that goes on; the jump has a name of its own."""
    house = House()
    house.window(idle=1_000)
    house.settlement.open_worker("w-0", incarnation="next life")
    house.window(idle=40, by_mj=by_mj)
    house.window(idle=60)
    figures = house.figures()
    assert (1, restarted_mj, 0, 1_100) == told(
        figures, "num_restarts", "restarted_mj", "unexplained_counter_mj", "metered_mj"
    )
    assert figures.is_explained


def test_a_new_process_that_follows_the_counter_leaves_no_jump() -> None:
    """What was counted while nobody lived is metered, and fell where the counter began anew."""
    house = House()
    for cause, by_mj in (("worker_lost", 500), ("counter_reset", 500 - 6_500)):
        house.window(idle=1_000)
        house.settlement.open_worker("w-0", incarnation=cause)
        house.window(unattributed=500, by_mj=by_mj, causes=[(cause, 500)])
    figures = house.figures()
    assert (2, 0, True) == (figures.num_restarts, figures.restarted_mj, figures.is_explained)


def test_a_gap_within_one_life_stays_unexplained_beside_a_restart() -> None:
    """The jump of a restart hides nothing else."""
    house = House()
    house.window(idle=100)
    house.settlement.open_worker("w-0", incarnation="next life")
    house.window(idle=40, by_mj=40 - 5_100)
    house.window(idle=100, by_mj=107)
    figures = house.figures()
    assert (-5_100, 7, False) == (figures.restarted_mj, figures.unexplained_counter_mj, figures.is_explained)


@pytest.mark.parametrize("by_mj", [99, 101, -6_000])
def test_a_counter_that_moved_beside_its_windows_is_unexplained(by_mj: int) -> None:
    """Energy that nobody metered, or metered twice, or a fall without a cause."""
    house = House()
    house.window(idle=100)
    house.window(idle=100, by_mj=by_mj)
    figures = house.figures()
    assert (by_mj - 100, False) == (figures.unexplained_counter_mj, figures.is_explained)


def test_a_window_that_is_missing_is_unexplained() -> None:
    """Its row was taken away."""
    house = House()
    for _ in range(3):
        house.window(idle=100)
    rows = house.rows
    (figures,) = reconcile([rows[0], rows[2]])
    assert 100 == figures.unexplained_counter_mj


def test_a_window_that_does_not_add_up_is_unexplained() -> None:
    """The settlement refuses it; a row may be forged."""
    house = House()
    house.window(("req-a-1", 70), idle=100)
    (row,) = house.rows
    assert isinstance(row, Window)
    row.window = msgspec.structs.replace(row.window, idle_mj=98)
    (figures,) = reconcile([row])
    assert (2, False) == (figures.unexplained_mj, figures.is_explained)


def test_a_posting_beyond_what_windows_put_in_flight_is_unexplained() -> None:
    """From the first row on; later, or where older rows are compacted, an earlier window may have put it there."""
    house = House()
    house.window(("req-a-1", 70), idle=10)
    house.charge("req-a-1")
    house.post("req-a-1")
    window, charge, energy = house.rows
    assert isinstance(energy, Energy)
    energy.energy_mj += 7
    rows = [window, charge, energy]
    (figures,) = reconcile(rows)
    assert (-7, -7, False) == (figures.in_flight_mj, figures.unexplained_mj, figures.is_explained)
    daily = Daily(from_seq=0, to_seq=9, day="2026-11-01", num_rows=9, legs=[])
    for partly in (reconcile([*rows, daily]), reconcile(rows, from_us=1)):
        assert (-7, 0, True) == (partly[0].in_flight_mj, partly[0].unexplained_mj, partly[0].is_explained)


# -- periods and workers


def test_a_period_may_cut_an_attempt() -> None:
    """What was put in flight before it and posted in it is below 0 there, and above 0 in the one before."""
    house = House()
    house.window(("req-a-1", 70), idle=10)
    house.now_s += 10
    edge_us = int(house.now_s * SECOND_US)
    house.window(("req-a-1", 20))
    house.charge("req-a-1")
    house.post("req-a-1")
    before, after = house.figures(to_us=edge_us), house.figures(from_us=edge_us)
    assert (70, 0) == told(before, "in_flight_mj", "requests_mj")
    assert (-70, 90) == told(after, "in_flight_mj", "requests_mj")
    assert before.is_explained
    assert after.is_explained
    assert before.last_counter_mj == after.first_counter_mj


def test_a_period_that_begins_with_a_reset_begins_there() -> None:
    """What the counter was before is not its."""
    house = House()
    house.window(idle=1_000)
    house.now_s += 10
    house.window(idle=40, by_mj=40 - 6_000, causes=[("counter_reset", 0)])
    figures = house.figures(from_us=int(house.now_s * SECOND_US))
    assert (0, 40, True) == (figures.reset_mj, figures.metered_mj, figures.is_explained)


def test_workers_are_told_apart() -> None:
    """In the order of their names."""
    house = House()
    house.window(idle=5, worker="w-1")
    house.window(idle=7)
    assert [("w-0", 7), ("w-1", 5)] == [(each.worker_id, each.idle_mj) for each in reconcile(house.rows)]
    assert [] == reconcile([])


def random_history(chance: Random) -> House:
    """What two workers may soundly say, in any order: attempts, stragglers, resets, gaps, full outboxes."""
    house, attempts, posted = House(), [], []
    for number in range(chance.randint(1, 60)):
        house.now_s += chance.choice([0, 1])
        worker = chance.choice(["w-0", "w-1"])
        mine = [name for name, of in attempts if of == worker]
        late = [name for name, of in posted if of == worker]
        match chance.choice(["window", "window", "charge", "post", "reset", "overflow", "restart"]):
            case "window":
                names = chance.sample(mine + late, chance.randint(0, len(mine + late)))
                shares = [(name, chance.randint(0, 999)) for name in names]
                parts = {part: chance.randint(0, 99) for part in ("idle", "overhead")}
                house.window(*shares, worker=worker, unattributed=chance.randint(-50, 50), **parts)
            case "charge":
                name, prompt = f"req-{number}-1", chance.randint(1, 200)
                cached, num = chance.randint(0, prompt), chance.randint(1, 4)
                house.charge(
                    name, worker=worker, input_tokens=prompt, cached_tokens=cached, num_sequences=num,
                    output_tokens=chance.choice([0, num, 10 * num]),
                    computed_prompt_tokens=chance.randint(0, num * prompt),
                    payer=chance.choice([Payer.REQUEST, Payer.OPERATOR]), overrun_tokens=chance.randint(0, 3),
                    recomputed_tokens=chance.randint(0, 50), rejected_tokens=chance.randint(0, 9),
                )  # fmt: skip
                attempts.append((name, worker))
            case "post" if mine:
                house.post(mine[0], worker=worker)
                attempts.remove((mine[0], worker))
                posted.append((mine[0], worker))
            case "reset":
                shown = chance.randint(0, 400)
                standing = house.counters_mj.get(worker, 5_000)
                house.window(worker=worker, idle=shown, by_mj=shown - standing, causes=[("counter_reset", 0)])
            case "restart":
                posted += [(name, of) for name, of in attempts if of == worker]
                attempts = [(name, of) for name, of in attempts if of != worker]
                house.settlement.open_worker(worker, incarnation=f"life {number}")
                house.counters_mj[worker] = chance.choice([0, 9_999])
            case "overflow":
                house.window(worker=worker, unattributed=777, causes=[("outbox_overflow", 777)])
    return house


@given(st.integers(0, 1 << 32))
def test_random_sound_histories_are_explained_and_their_periods_add_up(seed: int) -> None:
    """Whole, and cut at any two moments: nothing is unexplained, and the parts sum to the whole."""
    chance = Random(seed)
    house = random_history(chance)
    rows = house.rows
    edges_us = sorted(int((1_000 + chance.randint(0, 60)) * SECOND_US) for _ in range(2))
    whole = reconcile(rows)
    parts = [
        reconcile(rows, from_us=start, to_us=end)
        for start, end in zip([0, *edges_us], [*edges_us, None], strict=True)  # type: ignore[list-item]
    ]
    assert all(figures.is_explained for found in (whole, *parts) for figures in found)
    summed = [each.name for each in fields(WorkerFigures) if each.name.endswith(("_tokens", "num_windows"))]
    summed += ["metered_mj", "idle_mj", "unattributed_mj", "requests_mj", "operator_mj", "in_flight_mj"]
    for figures in whole:
        of_worker = [each for found in parts for each in found if each.worker_id == figures.worker_id]
        for name in summed:
            assert getattr(figures, name) == sum(getattr(each, name) for each in of_worker), name
    open_mj = house.settlement.books.total("in_flight", "mJ")
    assert open_mj == sum(figures.in_flight_mj for figures in whole)
    paid_mj = house.settlement.books.total("requests", "mJ")
    assert paid_mj == sum(figures.requests_mj + figures.operator_mj for figures in whole)
