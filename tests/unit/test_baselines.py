"""What others do, exactly: by turns, by fewest requests, by the less loaded of two."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import pytest

from scheduler.simulation.baselines import (
    Autoscale,
    Baseline,
    ByModel,
    LeastRequests,
    PowerOfTwo,
    Prefix,
    RaceToIdle,
    RoundRobin,
)
from scheduler.simulation.fleet import Fleet, FleetWorker, Loss
from scheduler.simulation.results import Results
from scheduler.simulation.traces import MODEL, Arrival
from workers.engines.simulated_options import SimulatedOptions

OPTIONS = SimulatedOptions()


def ran_on(router: Baseline, arrivals: list[Arrival], *, num_workers: int = 3) -> list[int]:
    workers = [FleetWorker(worker_id=str(number), options=OPTIONS) for number in range(num_workers)]
    return [int(worker) for worker in Fleet(workers, arrivals, router).run().worker]


def arrival(at_s: float, *, output: int = 10, prompt: int = 10) -> Arrival:
    return Arrival(arrival_s=at_s, prompt_tokens=prompt, output_tokens=output, prompt_tokens_bound=4 * prompt)


def test_round_robin_takes_turns_whatever_runs() -> None:
    """The long one does not change the turn."""
    assert ran_on(RoundRobin(), [arrival(0.0, output=5_000), *[arrival(1.0 + n) for n in range(5)]]) == [0, 1, 2] * 2


def test_least_requests_goes_where_fewest_are() -> None:
    """The first of equals; what has ended does not count."""
    arrivals = [arrival(0.0, output=1_000), arrival(0.1, output=1_000), arrival(0.2), arrival(5.0), arrival(5.01)]
    assert ran_on(LeastRequests(), arrivals) == [0, 1, 2, 2, 0]


def test_power_of_two_is_repeatable_and_reaches_everybody() -> None:
    """Same seed, same choice; one worker alone gets all."""
    arrivals = [arrival(0.01 * number, output=50) for number in range(300)]
    one, same, other = (ran_on(PowerOfTwo(seed=seed), arrivals) for seed in (1, 1, 2))
    assert one == same != other
    counts = Counter(one)
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 60
    assert set(ran_on(PowerOfTwo(seed=1), arrivals[:20], num_workers=1)) == {0}


def test_power_of_two_avoids_the_loaded_one_of_its_pair() -> None:
    """With two workers the pair is everybody: it is least requests."""
    arrivals = [arrival(0.0, output=4_000), arrival(0.1), arrival(1.0), arrival(2.0)]
    first, *others = ran_on(PowerOfTwo(seed=3), arrivals, num_workers=2)
    assert others == [1 - first] * 3


def test_what_fits_nowhere_is_refused() -> None:
    """The engine says so, and it counts as nobody's load."""
    huge = arrival(0.0, prompt=OPTIONS.kv_tokens)
    router = LeastRequests()
    assert ran_on(router, [huge, arrival(0.1)]) == [-1, 0]
    assert router._num_open == [0, 0, 0]


# -- scaling by the arrival rate


def scaled(rates: list[tuple[float, float]], *, target_ratio: float = 0.5, output: int = 10) -> Results:
    """(seconds, requests a second), one span after the other, over four engines that take 2 a second each."""
    arrivals, at_s = [], 0.0
    for span_s, rate_per_s in rates:
        arrivals += [arrival(at_s + number / rate_per_s, output=output) for number in range(round(span_s * rate_per_s))]
        at_s += span_s
    router = Autoscale(target_ratio=target_ratio, limit_per_engine_per_s=2.0)
    workers = [FleetWorker(worker_id=str(number), options=OPTIONS) for number in range(4)]
    return Fleet(workers, arrivals, router).run()


def test_autoscaling_goes_down_after_five_minutes_of_too_many() -> None:
    """1.9 a second at 1 an engine: two of four are parked when fewer were wanted for 300 s from the first look on."""
    found = scaled([(400.0, 1.9)])
    assert found.loaded_s == pytest.approx(2 * found.span_s + 2 * 310.0, abs=1.0)
    assert 0 == found.num_wakes


def test_autoscaling_goes_up_at_once_and_waits_for_the_start() -> None:
    """To all four; the mean of a minute crosses its edges one by one."""
    found = scaled([(400.0, 0.9), (300.0, 3.9)], output=2_000)
    assert 3 == found.num_wakes
    assert 3 * 45.0 * 200.0 == pytest.approx(found.joules.starting)
    last = found.worker[found.arrival_s > 650.0]
    assert {0, 1, 2, 3} == set(last.tolist())


def test_a_short_lull_parks_nobody() -> None:
    """Fewer wanted for 299 s, then more again: the five minutes begin anew."""
    found = scaled([(60.0, 4.0), (250.0, 1.0), (60.0, 4.0), (250.0, 1.0)])
    assert 4 * found.span_s == pytest.approx(found.loaded_s)


def test_the_higher_the_target_the_fewer_engines() -> None:
    """At least one stays."""
    full, half, idle = (
        scaled([(700.0, rate)], target_ratio=ratio).loaded_s for rate, ratio in ((3.0, 0.75), (3.0, 0.5), (0.01, 0.5))
    )
    assert idle < full < half
    assert idle >= 600.0


# -- prefixes


def blocks_of(conversation: int, num: int) -> tuple[int, ...]:
    return tuple(1_000 * conversation + number for number in range(num))


def turn(at_s: float, conversation: int, num: int) -> Arrival:
    blocks = blocks_of(conversation, num)
    return Arrival(
        arrival_s=at_s, prompt_tokens=16 * num + 1, output_tokens=400, prompt_tokens_bound=100 * num, blocks=blocks,
        full_blocks=blocks,
    )  # fmt: skip


def test_a_conversation_stays_where_its_beginning_is() -> None:
    """However many run there; a stranger goes to whoever has fewest."""
    arrivals = [turn(0.0, 1, 10), turn(0.1, 1, 12), turn(0.2, 1, 14), turn(0.3, 2, 10), turn(0.4, 1, 15)]
    assert [0, 0, 0, 1, 0] == ran_on(Prefix(), arrivals)


def test_a_short_common_beginning_is_not_followed() -> None:
    """Three blocks of ten are not more than three tenths; four are."""
    first = turn(0.0, 1, 10)
    for num_common, expected in ((3, 1), (4, 0)):
        blocks = (*blocks_of(1, num_common), *blocks_of(7, 10 - num_common))
        other = Arrival(
            arrival_s=0.1,
            prompt_tokens=161,
            output_tokens=10,
            prompt_tokens_bound=999,
            blocks=blocks,
            full_blocks=blocks,
        )
        assert [0, expected] == ran_on(Prefix(), [first, other])


def test_out_of_balance_nobody_sticks() -> None:
    """With 65 more at one than at the least loaded the next one goes there, and is known there from then on."""
    arrivals = [turn(0.001 * number, 1, 10) for number in range(67)]
    found = ran_on(Prefix(), arrivals)
    assert [0] * 65 == found[:65]
    assert 1 == found[65]


def test_what_was_forgotten_is_not_followed() -> None:
    """An engine with room for 64 blocks forgets the first conversation over two others."""
    options = SimulatedOptions(kv_tokens=1_024)
    fleet = [FleetWorker(worker_id=str(number), options=options) for number in range(2)]
    short = {"output_tokens": 10}
    arrivals = [
        dataclasses.replace(turn(float(number), conversation, 30), **short)
        for number, conversation in enumerate((1, 2, 3, 4, 5))
    ]
    router = Prefix()
    Fleet(fleet, arrivals, router).run()
    assert 64 == sum(len(sent) for sent in router._sent[:1])
    assert 0 == router._num_hits(0, blocks_of(1, 30))
    assert 30 == router._num_hits(0, blocks_of(5, 30))


# -- race to idle


def race(arrivals: list[Arrival], *, max_sequences: int = 4, num: int = 3) -> Results:
    options = SimulatedOptions(max_sequences=max_sequences)
    fleet = [FleetWorker(worker_id=str(number), options=options) for number in range(num)]
    return Fleet(fleet, arrivals, RaceToIdle()).run()


def test_one_engine_does_it_all_while_it_has_room() -> None:
    """The others are parked at the first tick, and nobody wakes them."""
    found = race([arrival(0.5 + 0.01 * number) for number in range(4)])
    assert [0] * 4 == found.worker.tolist()
    assert 0 == found.num_wakes
    assert found.span_s + 2 * 0.1 == pytest.approx(found.loaded_s)


def test_a_full_engine_wakes_one_other_and_takes_what_comes_meanwhile() -> None:
    """One at a time; who was woken is used as soon as it is loaded."""
    found = race([arrival(0.5 + number, output=20_000) for number in range(60)])
    assert 2 == found.num_wakes
    assert {0} == set(found.worker[found.arrival_s < 45.0].tolist())
    assert {1} == set(found.worker[(found.arrival_s > 51.0) & (found.arrival_s < 54.0)].tolist())


# -- several models, and engines that die


def test_models_keep_to_their_engines() -> None:
    """Each by turns over its own."""
    fleet = [FleetWorker(worker_id=str(number), options=OPTIONS, model="ab"[number % 2]) for number in range(4)]
    arrivals = [dataclasses.replace(arrival(0.1 * number), model="aab"[number % 3]) for number in range(12)]
    router = ByModel({"a": RoundRobin(), "b": RoundRobin()})
    assert [0, 2, 1, 0, 2, 3, 0, 2, 1, 0, 2, 3] == Fleet(fleet, arrivals, router).run().worker.tolist()


@pytest.mark.parametrize("make", [RoundRobin, LeastRequests, Prefix, RaceToIdle, lambda: PowerOfTwo(seed=1)])
def test_what_a_lost_engine_had_begun_is_lost_and_the_rest_is_tried_again(make: Callable[[], Baseline]) -> None:
    """One answer under way, one prompt that was never looked at: there was one place."""
    options = SimulatedOptions(max_sequences=1)
    fleet = [FleetWorker(worker_id="0", options=options)]
    arrivals = [arrival(0.0, output=2_000), arrival(0.1, output=5)]
    found = Fleet(fleet, arrivals, make(), losses=[Loss(2.0, 0)]).run()
    assert [-1, 0] == found.worker.tolist()
    assert math.isnan(found.ended_s[0])
    assert found.ended_s[1] == pytest.approx(47.0, abs=0.5)
    assert (1, 0) == (found.num_losses, found.num_wakes)


def test_nobody_is_sent_to_an_engine_that_starts_again() -> None:
    """Its turn goes to the others until it is loaded."""
    fleet = [FleetWorker(worker_id=str(number), options=OPTIONS) for number in range(3)]
    arrivals = [arrival(float(number)) for number in range(100)]
    found = Fleet(fleet, arrivals, ByModel({MODEL: RoundRobin()}), losses=[Loss(10.5, 1)]).run()
    away = (found.arrival_s > 10.5) & (found.arrival_s < 55.5)
    assert {0, 2} == set(found.worker[away].tolist())
    assert {0, 1, 2} == set(found.worker[found.arrival_s > 55.5].tolist())
