"""What requests cost, in random price books: the product's money against fractions, from the operator's words on.

Called by people (``python benchmarks/prices.py``) and, in short, by ``tests/unit/test_prices.py``. No engine, no clock.

Each seed draws a section ``prices`` as an operator writes it (versions, tariffs in time zones, tiers, classes,
cost-plus, approvals) and requests around its edges: the first and last second of versions and tariffs, nights in which
clocks change, tokens of every class. The yardstick reads the same words with an implementation of its own: it tries
every entry, keeps money as fractions of currency units, and rounds up at the very end.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.accounting.prices import NoPrice
from scheduler.config_prices import PricesConfig, book_of
from scheduler.core.request import Band, SpecialTokens

NUM_BOOKS = 10_000
REQUESTS_PER_BOOK = 20
MODELS = ("chat", "embed", "see")
UNKNOWN = "unheard-of"
TIERS = ("priority", "default", "flex")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Auckland")
PEOPLE = ("ada", "bob", "eve")
CLOCK_CHANGES = ("2026-03-29T01:00", "2026-10-25T01:00", "2026-03-08T07:00", "2026-11-01T06:00", "2026-04-04T15:00")
"""UTC, in Berlin, New York and Lord Howe."""
NANO = 10**9
DAY_MINUTES = 24 * 60
Words = dict[str, Any]


@dataclass(kw_only=True)
class Checked:
    """One book and its requests. ``difference_nano``, ``disagreements`` and ``beyond_hold`` are 0 where all is well."""

    seed: int
    requests: int = 0
    priced: int = 0
    unpriced: int = 0
    on_edges: int = 0
    """At most a second from where a version or a tariff begins or ends, or in a night in which clocks change."""
    paid: int = 0
    """With a cost above 0."""
    cost_plus: int = 0
    difference_nano: int = 0
    disagreements: int = 0
    """One has a price where the other has none, or from another version."""
    beyond_hold: int = 0
    """Cost more than the worst case that budgets would have held."""

    @property
    def is_right(self) -> bool:
        """Nothing differs."""
        return not (self.difference_nano or self.disagreements or self.beyond_hold)


@dataclass(kw_only=True)
class Asked:
    """What is to be priced."""

    model: str
    tier: str
    at_unix_s: float
    is_on_edge: bool
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    special: SpecialTokens | None
    energy_mj: int
    gpu_us: int


def check(seed: int, *, num_requests: int = REQUESTS_PER_BOOK) -> Checked:
    """One random book, priced twice."""
    chance = random.Random(seed)
    words = drawn_section(chance)
    book = book_of(PricesConfig.model_validate(words), {}, currency="EUR")
    found = Checked(seed=seed)
    for _ in range(num_requests):
        asked = drawn_request(chance, words)
        expected = yardstick(words, asked)
        found.requests += 1
        found.on_edges += asked.is_on_edge
        try:
            rates = book.rates(asked.model, Band[asked.tier.upper()], asked.at_unix_s)
        except NoPrice:
            found.unpriced += 1
            found.disagreements += expected is not None
            continue
        found.priced += 1
        if expected is None or rates.version.partition("/")[0] != expected[0] or rates.currency != "EUR":
            found.disagreements += 1
            continue
        cost_nano = rates.cost_nano(
            input_tokens=asked.input_tokens,
            cached_tokens=asked.cached_tokens,
            output_tokens=asked.output_tokens,
            special=asked.special,
        ) + rates.cost_plus_nano(energy_mj=asked.energy_mj, gpu_us=asked.gpu_us)
        found.difference_nano += abs(cost_nano - expected[1])
        found.paid += cost_nano > 0
        found.cost_plus += rates.plus is not None
        most_nano = rates.most_nano(
            input_tokens=asked.input_tokens,
            output_tokens=asked.output_tokens,
            energy_mj=asked.energy_mj,
            gpu_us=asked.gpu_us,
        )
        found.beyond_hold += cost_nano > most_nano
    return found


# -- what an operator may write


def drawn_section(chance: random.Random) -> Words:
    """A section of prices without mistakes."""
    begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=chance.randrange(60 * 24 * 300))
    versions: list[Words] = []
    for number in range(chance.randint(1, 4)):
        version: Words = {"name": f"v{number}", "approved_by": chance.sample(PEOPLE, chance.randint(0, 3))}
        if number or chance.random() < 0.7:
            version["effective_from"] = _moment_words(chance, begin)
            if versions and chance.random() < 0.3:
                versions[-1]["effective_to"] = _moment_words(chance, begin)
        begin += timedelta(minutes=chance.randint(1, 60 * 24 * chance.choice((1, 9, 90))))
        version["tariffs"], schemes = _tariffs(chance)
        models = chance.sample(MODELS, chance.randint(1, len(MODELS)))
        version["models"] = {model: _entries(chance, schemes) for model in models}
        versions.append(version)
    if chance.random() < 0.3:
        versions[-1]["effective_to"] = _moment_words(chance, begin)
    chance.shuffle(versions)
    section: Words = {"versions": versions, "approvals": chance.choice((0, 0, 0, 1, 2))}
    if (missing := chance.choice((None, "refuse", "free"))) is not None:
        section["missing"] = missing
    return section


def _moment_words(chance: random.Random, moment: datetime) -> str:
    offset = timedelta(minutes=chance.choice((0, 0, 60, -300, 330)))
    text = (moment + offset).replace(tzinfo=None).isoformat()
    sign, minutes = ("-" if offset < timedelta() else "+"), abs(offset) // timedelta(minutes=1)
    return f"{text}{sign}{minutes // 60:02}:{minutes % 60:02}" if minutes else text + chance.choice(("", "Z"))


def _tariffs(chance: random.Random) -> tuple[Words, list[list[str]]]:
    """Tariffs, and which of them together are every moment of the week."""
    tariffs: Words = {}
    schemes = [["always"]]
    for scheme in range(chance.randint(0, 2)):
        zone, num_tariffs = chance.choice(ZONES), chance.randint(1, 3)
        first = chance.choice((0, 0, 6 * 60, 22 * 60 + 30))
        spans: list[list[Words]] = [[] for _ in range(num_tariffs)]
        for day in DAYS:
            inner = sorted(chance.sample(range(15, DAY_MINUTES, 15), chance.randint(1, 3)))
            cuts = [first, *(first + cut for cut in inner), first + DAY_MINUTES]
            for begin, end in pairwise(cuts):
                # A stretch that begins after midnight is written on the day that it belongs to.
                on = DAYS[(DAYS.index(day) + begin // DAY_MINUTES) % 7]
                hours = f"{_hour(begin % DAY_MINUTES)}-{_hour(end % DAY_MINUTES)}"
                spans[chance.randrange(num_tariffs)].append({"days": [on], "hours": hours})
        named = {f"t{scheme}-{number}": each for number, each in enumerate(spans) if each}
        tariffs |= {name: {"time_zone": zone, "spans": each} for name, each in named.items()}
        schemes.append(list(named))
    return tariffs, schemes


def _hour(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _entries(chance: random.Random, schemes: list[list[str]]) -> list[Words]:
    """Every tier and every moment once."""
    tiers = chance.sample(TIERS, 3)
    cuts = sorted(chance.sample((1, 2), chance.randint(0, 2)))
    entries = []
    for begin, end in zip([0, *cuts], [*cuts, 3], strict=True):
        group: object = tiers[begin:end]
        for tariff in chance.choice(schemes):
            entries.append({"tiers": "all" if group == tiers else group, "tariff": tariff, "price": _price(chance)})
    chance.shuffle(entries)
    return entries


def _price(chance: random.Random) -> Words:
    price = {name: _decimal(chance, 1000) for name in ("input", "output") if chance.random() < 0.95}
    for name in ("cached_input", "reasoning", "image_input", "audio_input"):
        if chance.random() < 0.4:
            price[name] = _decimal(chance, 1000)
    if chance.random() < 0.4:
        price["cost_plus"] = {
            "per_kwh": _decimal(chance, 2),
            "pue": _decimal(chance, 2, least=1, places=6),
            "per_gpu_second": _decimal(chance, 1),
            "margin": _decimal(chance, 1, places=6),
        }
    return price


def _decimal(chance: random.Random, most: int, *, least: int = 0, places: int = 9) -> object:
    """As text, or as a number where YAML would give one."""
    places = chance.randint(0, places)
    whole = chance.choice((least * 10**places, chance.randint(least * 10**places, most * 10**places)))
    text = f"{whole // 10**places}.{whole % 10**places:0{places}}" if places else str(whole)
    return int(text) if not places and chance.random() < 0.5 else text


# -- who asks


def drawn_request(chance: random.Random, words: Words) -> Asked:
    """Often where something begins or ends."""
    at_unix_s, is_on_edge = _arrival(chance, words)
    size = chance.choice((10, 1_000, 10**6, 10**9))
    cached, image, audio, text = (chance.choice((0, chance.randint(0, size))) for _ in range(4))
    output = chance.randint(0, size)
    special = SpecialTokens(chance.randint(0, output), image, audio)
    return Asked(
        model=chance.choice((*MODELS, *MODELS, UNKNOWN)),
        tier=chance.choice(TIERS),
        at_unix_s=at_unix_s,
        is_on_edge=is_on_edge,
        input_tokens=text + cached + image + audio,
        cached_tokens=cached,
        output_tokens=output,
        special=special if any(special) or chance.random() < 0.5 else None,
        energy_mj=chance.randint(0, 10 * size),
        gpu_us=chance.randint(0, 10 * size),
    )


def _arrival(chance: random.Random, words: Words) -> tuple[float, bool]:
    kind = chance.random()
    version = chance.choice(words["versions"])
    edges = [version[name] for name in ("effective_from", "effective_to") if name in version]
    if kind < 0.25 and edges:
        moment = _instant(chance.choice(edges))
    elif kind < 0.5 and version["tariffs"]:
        moment = _tariff_edge(chance, chance.choice(list(version["tariffs"].values())))
    elif kind < 0.75:
        moment = datetime.fromisoformat(chance.choice(CLOCK_CHANGES)).replace(tzinfo=UTC)
        return moment.timestamp() + chance.uniform(-7200, 7200), True
    else:
        return datetime(2025, 10, 1, tzinfo=UTC).timestamp() + chance.uniform(0, 2 * 365 * 86_400), False
    return moment.timestamp() + chance.choice((-1, -0.5, -1e-6, 0, 0, 0.5, 1)), True


def _tariff_edge(chance: random.Random, tariff: Words) -> datetime:
    span = chance.choice(tariff["spans"])
    day = datetime(2026, 1, 5) + timedelta(weeks=chance.randrange(60), days=DAYS.index(span["days"][0]))
    local = day + timedelta(minutes=_minute(span["hours"].split("-")[chance.randrange(2)]))
    return local.replace(tzinfo=ZoneInfo(tariff["time_zone"]), fold=chance.randrange(2)).astimezone(UTC)


# -- the yardstick: every entry is tried, money is a fraction


def yardstick(words: Words, asked: Asked) -> tuple[str, int] | None:
    """The version's name (empty where the request is free) and what the request costs; None where it has no price."""
    version = _in_force(words, Fraction(asked.at_unix_s))
    entries = [] if version is None else version["models"].get(asked.model, [])
    holding = [entry for entry in entries if version is not None and _holds(version, entry, asked)]
    assert len(holding) <= 1, "the section has a mistake"
    if holding and version is not None:
        return version["name"], _cost(holding[0]["price"], asked)
    return ("", 0) if words.get("missing") == "free" else None


def _in_force(words: Words, at_unix_s: Fraction) -> Words | None:
    approved = [each for each in words["versions"] if len(each["approved_by"]) >= words["approvals"]]
    begun = [each for each in approved if "effective_from" not in each or _unix_s(each["effective_from"]) <= at_unix_s]
    if not begun:
        return None
    last = max(begun, key=lambda each: _unix_s(each["effective_from"]) if "effective_from" in each else -(10**18))
    return None if "effective_to" in last and _unix_s(last["effective_to"]) <= at_unix_s else last


def _holds(version: Words, entry: Words, asked: Asked) -> bool:
    if entry["tiers"] != "all" and asked.tier not in entry["tiers"]:
        return False
    if entry["tariff"] == "always":
        return True
    tariff = version["tariffs"][entry["tariff"]]
    whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=floor(Fraction(asked.at_unix_s)))
    local = whole.astimezone(ZoneInfo(tariff["time_zone"]))
    today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
    minute = local.hour * 60 + local.minute
    for span in tariff["spans"]:
        begin, end = (_minute(text) for text in span["hours"].split("-"))
        if begin < end and today in span["days"] and begin <= minute < end:
            return True
        is_late = today in span["days"] and minute >= begin
        is_early = yesterday in span["days"] and minute < end
        if end <= begin and (is_late or is_early):
            return True
    return False


def _cost(price: Words, asked: Asked) -> int:
    """Tokens by the million and, apart from them, what it took; each rounded up to a nano-unit."""
    special = asked.special or SpecialTokens()
    text_tokens = asked.input_tokens - asked.cached_tokens - special.image_tokens - special.audio_tokens
    per_input, per_output = Fraction(price.get("input", 0)), Fraction(price.get("output", 0))
    amounts = [
        (text_tokens, per_input),
        (asked.cached_tokens, Fraction(price.get("cached_input", per_input))),
        (special.image_tokens, Fraction(price.get("image_input", per_input))),
        (special.audio_tokens, Fraction(price.get("audio_input", per_input))),
        (asked.output_tokens - special.reasoning_tokens, per_output),
        (special.reasoning_tokens, Fraction(price.get("reasoning", per_output))),
    ]
    tokens = sum((count * each / 10**6 for count, each in amounts), Fraction(0))
    took = Fraction(0)
    if plus := price.get("cost_plus"):
        kwh = Fraction(asked.energy_mj, 1000) / 3_600_000
        energy = kwh * Fraction(plus["pue"]) * Fraction(plus["per_kwh"])
        gpu = Fraction(asked.gpu_us, 10**6) * Fraction(plus["per_gpu_second"])
        took = (energy + gpu) * (1 + Fraction(plus["margin"]))
    return ceil(tokens * NANO) + ceil(took * NANO)


def _instant(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _unix_s(text: str) -> Fraction:
    return Fraction((_instant(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1))


def _minute(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


# -- the whole run


def run(num_books: int, *, first_seed: int = 0, progress_every: int = 0) -> Iterator[Checked]:
    """Book by book."""
    for number in range(num_books):
        yield check(first_seed + number)
        if progress_every and (number + 1) % progress_every == 0:
            print(f"{number + 1} books", file=sys.stderr)


def main() -> int:
    """Run, record, and fail where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=int, default=NUM_BOOKS)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--name", default="prices")
    arguments = parser.parse_args()
    began_s = time.perf_counter()
    totals: dict[str, int] = {}
    bad_seeds = []
    for found in run(arguments.books, first_seed=arguments.first_seed, progress_every=1_000):
        fields = asdict(found)
        if not found.is_right:
            bad_seeds.append(fields["seed"])
        del fields["seed"]
        totals = {name: totals.get(name, 0) + amount for name, amount in fields.items()}
    path = record(
        arguments.name,
        {
            "pass": not bad_seeds,
            "books": arguments.books,
            "first_seed": arguments.first_seed,
            **totals,
            "bad_seeds": bad_seeds[:20],
            "seconds": round(time.perf_counter() - began_s, 1),
        },
        what="random price books in an operator's words x requests around their edges: the product's money against an "
        "independent implementation with fractions; differences summed absolutely, in 1e-9 currency units",
    )
    print(path.relative_to(ROOT), "pass" if not bad_seeds else f"BAD: seeds {bad_seeds[:20]}")
    return 0 if not bad_seeds else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
