"""The points of a sweep: their order, their pairs, their seeds, and what settings may say."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench.client import Target
from scheduler.bench.session import EnergySource
from scheduler.bench.sweep_plan import Setting, Sweep, parse_rates, parse_setting, variant_of
from tests.sweep_words import sweep_of, variant


def places(sweep: Sweep) -> list[tuple[str, float, int]]:
    return [(point.variant.name, point.rate_rps, point.repeat) for point in sweep.points()]


# -- order


def test_two_settings_alternate() -> None:
    """A B, B A, A B over the rates; the other way round in the next repeat."""
    sweep = sweep_of(variant("a"), variant("b"), rates=(1.0, 2.0, 4.0), repeats=2, order="ascending")
    assert "abbaab" + "baabba" == "".join(name for name, _, _ in places(sweep))
    assert [1, 1, 2, 2, 4, 4] * 2 == [rate for _, rate, _ in places(sweep)]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_every_point_is_there_once_and_settings_stay_together(
    num_rates: int, repeats: int, num_settings: int, seed: int
) -> None:
    """In random order too: at each rate all settings follow each other, and who is first changes with each repeat."""
    names = "abcd"[:num_settings]
    rates = tuple(float(rate) for rate in range(1, num_rates + 1))
    sweep = sweep_of(*map(variant, names), rates=rates, repeats=repeats, seed=seed)
    found = places(sweep)
    assert {(name, rate, repeat) for name in names for rate in rates for repeat in range(repeats)} == set(found)
    assert sweep.size() == len(found)
    turns = [found[start : start + num_settings] for start in range(0, len(found), num_settings)]
    assert all(1 == len({(rate, repeat) for _, rate, repeat in turn}) for turn in turns)
    for rate in rates if num_settings > 1 else ():
        firsts = Counter(turn[0][0] for turn in turns if turn[0][1] == rate)
        assert 1 >= abs(firsts[names[0]] - firsts[names[-1]])


def test_a_random_order_is_the_seeds_own_and_differs_between_repeats() -> None:
    """So that drift of the machine is no trend over the rates, and the plan can be told again."""
    rates = tuple(float(rate) for rate in range(1, 9))
    sweep = sweep_of(rates=rates, repeats=2, seed=3)
    assert places(sweep) == places(sweep_of(rates=rates, repeats=2, seed=3))
    assert places(sweep) != places(sweep_of(rates=rates, repeats=2, seed=4))
    order = [rate for _, rate, _ in places(sweep)]
    assert list(rates) != order[:8] != order[8:]


# -- workload


def test_a_pair_has_the_same_arrivals_and_a_server_sees_no_prompt_twice() -> None:
    """Two settings of one server get other words; two servers the same ones; each rate and repeat its own."""
    sweep = sweep_of(variant("a"), variant("b"), variant("c", url="http://two"), repeats=2)
    by_place = {(point.variant.name, point.rate_rps, point.repeat): point.load for point in sweep.points()}
    one, other, elsewhere = (by_place[name, 2.0, 0] for name in "abc")
    assert one.seed == other.seed == elsewhere.seed
    assert one.texts != other.texts
    assert one.texts == elsewhere.texts
    seen = Counter((point.variant.target.base_url, point.load.seed, point.load.texts) for point in sweep.points())
    assert {1} == set(seen.values())


def test_conditions_tell_everything_but_keys() -> None:
    """They are written into a file."""
    secret = variant(
        target=Target(base_url="http://one", api_key="sk-secret"),
        source=EnergySource(metrics_url="http://m", admin_key="ak-secret"),
    )
    point = sweep_of(secret, duration_s=33.0).points()[0]
    assert "secret" not in str(point.conditions)
    assert ("server metrics", 33.0) == (point.conditions["meter"], point.conditions["duration_s"])


def test_the_least_time_is_told() -> None:
    """Two idle spans, warm-up, window and pause, six times."""
    sweep = sweep_of(repeats=2, idle_s=10, warmup_s=5, duration_s=30, cooldown_s=5)
    assert 6 * 60 == sweep.seconds_at_least()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": ()}, "rates above 0"),
        ({"rates": (2.0, 1.0)}, "rates above 0"),
        ({"rates": (0.0, 1.0)}, "rates above 0"),
        ({"variants": ()}, "needs a setting"),
        ({"variants": (variant("a"), variant("a"))}, "two settings have one name"),
        ({"repeats": 0}, "repeats are at least 1"),
        ({"idle_s": -1.0}, "not negative"),
        ({"attainment_ratio": 0.0}, "attainment"),
        ({"repeats": 5_000}, "at most 10000"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match=message):
        Sweep(**{"variants": (variant(),), "rates": (1.0, 2.0, 4.0), **options})


# -- words of the command line


def test_rates_are_sorted_and_each_there_once() -> None:
    """As people write them."""
    assert (0.5, 1.0, 2.0) == parse_rates("2, 0.5,1,2")


@pytest.mark.parametrize("text", ["", "1,,2", "1,x", "0", "-1", "nan", "inf", "1;2"])
def test_what_is_no_rate_is_named(text: str) -> None:
    """With an example."""
    with pytest.raises(ValueError, match=r"is no rate above 0 \(as in 0\.5,1,2\)"):
        parse_rates(text)


def test_a_setting_is_a_name_and_what_it_changes() -> None:
    """Addresses have colons of their own."""
    assert ("plain", Setting()) == parse_setting("plain")
    name, setting = parse_setting("bare:url=http://127.0.0.1:8002/v1,output_tokens=16,cv=2.5,exact_output=false")
    assert "bare" == name
    assert ("http://127.0.0.1:8002/v1", 16, 2.5, False) == (
        setting.url, setting.output_tokens, setting.cv, setting.exact_output
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begin with a name"),
        (":cv=1", "begin with a name"),
        ("cv=1", "begin with a name"),
        ("a:cv", "'cv' is no key=value"),
        ("a:concurrency=1", "no key 'concurrency'; there are url, model"),
        ("a:cv=1,cv=2", "cv is there twice"),
        ("a:cv=fast", r"--setting a: Expected `float.*\$\.cv"),
        ("a:local_meter=wattmeter", r"--setting a: Invalid enum value 'wattmeter'"),
    ],
)
def test_a_setting_that_cannot_be_read_names_the_key(text: str, message: str) -> None:
    """And what there is."""
    with pytest.raises(ValueError, match=message):
        parse_setting(text)


BASE = variant(
    target=Target(base_url="http://one", model="m", api_key="sk-one"),
    source=EnergySource(metrics_url="http://m", admin_key="ak-one", local_meter="nvml", gpu_uuids=("GPU-1",)),
)


def test_a_setting_changes_only_what_it_names() -> None:
    """The rest is as the options say."""
    assert variant_of("default", Setting(), BASE, {}).conditions() == {**BASE.conditions(), "setting": "default"}
    made = variant_of("x", Setting(service_tier="flex", max_in_flight=2, input_tokens=7), BASE, {})
    changed = {key for key, value in made.conditions().items() if value != BASE.conditions()[key]}
    assert {"setting", "service_tier", "max_in_flight", "input_tokens"} == changed
    assert ("sk-one", "ak-one") == (made.target.api_key, made.source.admin_key)


def test_another_server_gets_no_key_and_no_joules_of_this_one() -> None:
    """A key is not shown to whom it was not given for; one server's page says nothing of another."""
    made = variant_of("x", Setting(url="http://two/v1"), BASE, {})
    assert Target(base_url="http://two", model="") == made.target
    assert EnergySource() == made.source
    same = variant_of("x", Setting(url="http://one/v1/"), BASE, {})
    assert (BASE.target, BASE.source) == (same.target, same.source)


def test_another_servers_keys_and_meter_are_named() -> None:
    """Keys by the environment, never by the command line."""
    setting = Setting(
        url="http://two", api_key_env="TWO", metrics_url="http://m2", admin_key_env="TWO_ADMIN", local_meter="nvml",
        gpu="GPU-2+GPU-3",
    )  # fmt: skip
    made = variant_of("x", setting, BASE, {"TWO": "sk-two", "TWO_ADMIN": "ak-two"})
    assert "sk-two" == made.target.api_key
    assert made.source == EnergySource(
        metrics_url="http://m2", admin_key="ak-two", local_meter="nvml", gpu_uuids=("GPU-2", "GPU-3")
    )
    with pytest.raises(ValueError, match="the environment has no TWO"):
        variant_of("x", setting, BASE, {})


def test_none_takes_a_meter_away() -> None:
    """To measure the same server without it."""
    made = variant_of("x", Setting(metrics_url="none", local_meter="none"), BASE, {})
    assert (None, None) == (made.source.metrics_url, made.source.local_meter)


@pytest.mark.parametrize("setting", [Setting(url="two"), Setting(input_tokens=0), Setting(length_spread=2.0)])
def test_a_setting_out_of_bounds_is_refused(setting: Setting) -> None:
    """By the same rules as the options."""
    with pytest.raises(ValueError, match=r"no http|at least 1|between 0 and 1"):
        variant_of("x", setting, BASE, {})
