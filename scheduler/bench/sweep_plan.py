"""Plans an energy sweep: which points there are, in which order they are measured, and what tells two of them apart.

Called by ``scheduler.bench.sweep`` and its command. It must never know HTTP or a clock: the same seed gives the same
order, and a point's conditions say all that decides its figures.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import msgspec

from scheduler.addresses import root_of
from scheduler.bench.client import Target
from scheduler.bench.report import Slo
from scheduler.bench.session import EnergySource, Load, MeterKind
from scheduler.bench.workload import Lengths

Order = Literal["random", "ascending"]
Condition = str | int | float | bool | None
MAX_POINTS = 10_000
NO_SLO = Slo()
_T = TypeVar("_T")


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One named variant: what it does otherwise than the command line's options. None = as the options say."""

    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    """Name of the environment variable that holds this server's key."""
    service_tier: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    length_spread: float | None = None
    cv: float | None = None
    max_in_flight: int | None = None
    """Most open requests: the concurrency limit."""
    exact_output: bool | None = None
    metrics_url: str | None = None
    """``none``: this server has no such page, whatever the options say."""
    admin_key_env: str | None = None
    """Name of the environment variable that holds the key of another server's metrics page."""
    local_meter: MeterKind | Literal["none"] | None = None
    gpu: str | None = None
    """UUIDs for ``local_meter=nvml``, several joined by ``+``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One server under one set of options: a curve of the sweep."""

    name: str
    target: Target
    lengths: Lengths
    cv: float
    max_in_flight: int
    source: EnergySource

    def __post_init__(self) -> None:
        if not self.cv > 0:
            raise ValueError(f"setting {self.name}: cv must be above 0, not {self.cv:g}")
        if self.max_in_flight < 1:
            raise ValueError(f"setting {self.name}: max_in_flight must be at least 1, not {self.max_in_flight}")

    def conditions(self) -> dict[str, Condition]:
        """Everything that decides its figures, without any key."""
        target, source = self.target, self.source
        meter = "server metrics" if source.metrics_url else source.local_meter
        return {
            "setting": self.name,
            "base_url": target.base_url,
            "model": target.model,
            "endpoint": target.endpoint,
            "service_tier": target.service_tier,
            "exact_output": target.exact_output,
            "temperature": target.temperature,
            "timeout_s": target.timeout_s,
            "input_tokens": self.lengths.input_tokens,
            "output_tokens": self.lengths.output_tokens,
            "length_spread_ratio": self.lengths.spread_ratio,
            "cv": self.cv,
            "max_in_flight": self.max_in_flight,
            "meter": meter,
            "gpus": ",".join(source.gpu_uuids) or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement of a sweep: a variant at a rate, for the so-manieth time (``repeat`` from 0)."""

    variant: Variant
    rate_rps: float
    repeat: int
    load: Load
    conditions: dict[str, Condition]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All that is asked for. ``rates`` are requests a second, ascending and each once."""

    variants: tuple[Variant, ...]
    rates: tuple[float, ...]
    repeats: int = 1
    order: Order = "random"
    seed: int = 0
    warmup_s: float = 10.0
    duration_s: float = 60.0
    idle_s: float = 20.0
    cooldown_s: float = 10.0
    slo: Slo = NO_SLO
    attainment_ratio: float = 0.99
    """Share of requests that must be good for a rate to count as within the SLO."""

    def __post_init__(self) -> None:
        if not self.variants or not self.rates or list(self.rates) != sorted(set(self.rates)) or self.rates[0] <= 0:
            raise ValueError("a sweep needs a setting, and rates above 0, each once")
        if len({variant.name for variant in self.variants}) < len(self.variants):
            raise ValueError("two settings have one name")
        if self.repeats < 1 or self.idle_s < 0 or self.cooldown_s < 0 or not 0 < self.attainment_ratio <= 1:
            raise ValueError("repeats are at least 1, idle and cool-down not negative, the attainment in (0, 1]")
        if self.size() > MAX_POINTS:
            raise ValueError(f"{self.size()} points; at most {MAX_POINTS}")

    def size(self) -> int:
        """How many points there are."""
        return len(self.variants) * len(self.rates) * self.repeats

    def seconds_at_least(self) -> float:
        """What all points take, without drains and waits for metering windows."""
        return self.size() * (2 * self.idle_s + self.warmup_s + self.duration_s + self.cooldown_s)

    def points(self) -> list[Point]:
        """Every point, in the order in which it is measured.

        Each repeat visits every rate once: in a random order of its own, so that a machine that warms or slows down
        meanwhile bends no curve, or ascending. At a rate all settings follow each other, forwards and backwards in
        turns (A B, then B A), with the same arrivals and lengths: neighbours in time make a pair.
        """
        generator = random.Random(f"{self.seed} order")
        found: list[Point] = []
        for repeat in range(self.repeats):
            indices = list(range(len(self.rates)))
            if self.order == "random":
                generator.shuffle(indices)
            for index in indices:
                turn = list(self.variants)
                if (repeat + index) % 2:
                    turn.reverse()
                found += [self._point(variant, self.rates[index], repeat) for variant in turn]
        return found

    def _point(self, variant: Variant, rate_rps: float, repeat: int) -> Point:
        load = Load(
            rate_rps=rate_rps,
            cv=variant.cv,
            lengths=variant.lengths,
            warmup_s=self.warmup_s,
            duration_s=self.duration_s,
            seed=self.seed + repeat,
            texts=self._texts(variant, rate_rps),
            max_in_flight=variant.max_in_flight,
        )
        conditions: dict[str, Condition] = {
            **variant.conditions(),
            "rate_rps": rate_rps,
            "repeat": repeat,
            "seed": load.seed,
            "warmup_s": self.warmup_s,
            "duration_s": self.duration_s,
            "idle_s": self.idle_s,
            "cooldown_s": self.cooldown_s,
            "slo_ttft_s": self.slo.ttft_s,
            "slo_tpot_s": self.slo.tpot_s,
            "slo_e2e_s": self.slo.e2e_s,
        }
        return Point(variant=variant, rate_rps=rate_rps, repeat=repeat, load=load, conditions=conditions)

    def _texts(self, variant: Variant, rate_rps: float) -> str:
        """No server sees a prompt twice, or its prefix cache would answer; two servers see the same ones."""
        before = self.variants[: self.variants.index(variant)]
        same = sum(each.target.base_url == variant.target.base_url for each in before)
        return f"{rate_rps:g}/s {same}"


def parse_rates(text: str) -> tuple[float, ...]:
    """``0.5,1,2`` as rates, ascending. Raises: ValueError, which names what is no rate."""
    rates = []
    for word in text.split(","):
        try:
            rate = float(word)
        except ValueError:
            rate = 0.0
        if not 0 < rate < float("inf"):
            raise ValueError(f"--rates: {word.strip()!r} is no rate above 0 (as in 0.5,1,2)")
        rates.append(rate)
    return tuple(sorted(set(rates)))


def parse_setting(text: str) -> tuple[str, Setting]:
    """``NAME:key=value,key=value`` (or ``NAME`` alone). Raises: ValueError, which names the key and what it may be."""
    name, _, rest = text.partition(":")
    if not name.strip() or "=" in name or "," in name:
        raise ValueError(f"--setting {text!r}: begin with a name, as in short:output_tokens=16,max_in_flight=4")
    fields: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ValueError(f"--setting {name}: {part!r} is no key=value")
        if key not in Setting.__struct_fields__:
            raise ValueError(f"--setting {name}: no key {key!r}; there are {', '.join(Setting.__struct_fields__)}")
        if key in fields:
            raise ValueError(f"--setting {name}: {key} is there twice")
        fields[key] = value
    try:
        return name.strip(), msgspec.convert(fields, Setting, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"--setting {name}: {error}") from error


def variant_of(name: str, setting: Setting, base: Variant, environment: dict[str, str]) -> Variant:
    """The options with what a setting changes. Raises: ValueError for a bad address, length or absent key."""
    target, lengths = base.target, base.lengths
    for key in filter(None, (setting.api_key_env, setting.admin_key_env)):
        if key not in environment:
            raise ValueError(f"--setting {name}: the environment has no {key}")
    is_other_server = setting.url is not None and root_of(setting.url) != target.base_url
    # A key is never shown to a server that it was not given for.
    api_key = None if is_other_server else target.api_key
    if setting.api_key_env is not None:
        api_key = environment[setting.api_key_env]
    return Variant(
        name=name,
        target=replace(
            target,
            base_url=target.base_url if setting.url is None else root_of(setting.url),
            model=_or(setting.model, "" if is_other_server else target.model),
            api_key=api_key,
            service_tier=_or(setting.service_tier, target.service_tier),
            exact_output=_or(setting.exact_output, target.exact_output),
        ),
        lengths=Lengths(
            input_tokens=_or(setting.input_tokens, lengths.input_tokens),
            output_tokens=_or(setting.output_tokens, lengths.output_tokens),
            spread_ratio=_or(setting.length_spread, lengths.spread_ratio),
        ),
        cv=_or(setting.cv, base.cv),
        max_in_flight=_or(setting.max_in_flight, base.max_in_flight),
        source=_source(setting, EnergySource() if is_other_server else base.source, environment),
    )


def _source(setting: Setting, source: EnergySource, environment: dict[str, str]) -> EnergySource:
    """Begins with nothing for another server: one server's joules are never taken for another's."""
    if setting.metrics_url is not None:
        source = replace(source, metrics_url=None if setting.metrics_url == "none" else setting.metrics_url)
    if setting.admin_key_env is not None:
        source = replace(source, admin_key=environment[setting.admin_key_env])
    if setting.local_meter is not None:
        source = replace(source, local_meter=None if setting.local_meter == "none" else setting.local_meter)
    if setting.gpu is not None:
        source = replace(source, gpu_uuids=tuple(setting.gpu.split("+")))
    return source


def _or(wish: _T | None, default: _T) -> _T:
    return default if wish is None else wish
