"""What others do, exactly: by turns, by fewest requests, by the less loaded of two."""

from collections import Counter

import pytest

from scheduler.simulation.baselines import Autoscale, Baseline, LeastRequests, PowerOfTwo, RoundRobin
from scheduler.simulation.fleet import Fleet, FleetWorker
from scheduler.simulation.results import Results
from scheduler.simulation.traces import Arrival
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
