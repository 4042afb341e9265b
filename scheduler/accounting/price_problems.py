"""What is wrong with price versions: each line names the version and the entries, and says how to mend it.

Called by ``scheduler.accounting.prices`` before a book is made. Pure. It must never know a request.

The rule is one: for each model of a version, each tier and each moment of the week exactly one entry holds, and between
the first version's beginning and the last one's end exactly one version. There is no precedence, so that nobody has to
know which of two prices wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scheduler.accounting.price_versions import RATE_FIELDS, TIERS, PriceEntry, PriceVersion, tier_name
from scheduler.accounting.tariffs import WEEK_MINUTES, joined, span_text, zone_of
from scheduler.core.budget_windows import SECOND_US, utc_text
from scheduler.core.request import PPM

Place = tuple[str, PriceEntry]
"""How an entry is called in a message, and the entry."""


def problems_of(versions: Sequence[PriceVersion], *, currency: str) -> list[str]:
    """One line each; empty where the versions can be a book. ``currency`` is that of every budget."""
    lines = []
    names = [version.name for version in versions]
    for name in sorted({name for name in names if names.count(name) > 1}):
        lines.append(f"version {name} is given twice: a version never changes, name the new one anew")
    for version in versions:
        lines += [f"version {version.name}: {words}" for words in _within(version, currency)]
    return lines + list(_between(versions))


# -- within a version


def _within(version: PriceVersion, currency: str) -> Iterator[str]:
    begin_s, end_s = version.effective_from_unix_s, version.effective_to_unix_s
    if begin_s is not None and end_s is not None and end_s <= begin_s:
        yield f"ends ({_moment(end_s)}) before it begins ({_moment(begin_s)})"
    if version.currency != currency:
        yield f"is in {version.currency}, and budgets are in {currency}: currencies are never mixed"
    if len(set(version.approved_by)) < len(version.approved_by):
        yield "somebody approved it twice: approvals are of different people"
    by_model: dict[str, list[Place]] = {}
    for entry in version.entries:
        places = by_model.setdefault(entry.model, [])
        tariff = "" if len(entry.tariff.spans) == 1 and entry.tariff.name == "always" else f" ({entry.tariff.name})"
        places.append((f"{entry.model}[{len(places)}]{tariff}", entry))
    for model, places in by_model.items():
        wrong = [words for place in places for words in _of_entry(place, version.currency)]
        yield from wrong
        if not wrong:
            yield from _of_weeks(model, places)


def _of_entry(place: Place, currency: str) -> Iterator[str]:
    name, entry = place
    rates, spans = entry.rates, entry.tariff.spans
    amounts = {field: getattr(rates, field) for field in RATE_FIELDS}
    if rates.plus is not None:
        amounts |= rates.plus._asdict()
    for field, amount in amounts.items():
        if amount is not None and amount < 0:
            yield f"{name}: {field} is negative: a price is 0 or more"
    if rates.plus is not None and rates.plus.pue_ppm < PPM:
        yield f"{name}: a PUE is 1 or more"
    if rates.currency != currency:
        yield f"{name} is in {rates.currency}, its version in {currency}: currencies are never mixed"
    if not entry.tiers or len(set(entry.tiers)) < len(entry.tiers):
        yield f"{name}: names no tier, or one twice"
    is_part = all(0 <= begin < end <= WEEK_MINUTES for begin, end in spans)
    if not spans or not is_part or joined(spans) != spans:
        yield f"{name}: its spans are no parts of a week, in order"
    try:
        zone_of(entry.tariff.time_zone)
    except ValueError as error:
        yield f"{name}: {error}"


def _of_weeks(model: str, places: list[Place]) -> Iterator[str]:
    """Of each tier; those with the same entries are told together."""
    tiers: dict[tuple[int, ...], list[str]] = {}
    for tier in TIERS:
        numbers = tuple(number for number, (_, entry) in enumerate(places) if tier in entry.tiers)
        tiers.setdefault(numbers, []).append(tier_name(tier))
    for numbers, names in tiers.items():
        yield from _of_week(model, ", ".join(names), [places[number] for number in numbers])


def _of_week(model: str, tier: str, places: list[Place]) -> Iterator[str]:
    """Two entries at once, or none."""
    if not places:
        yield f"no entry of {model} holds for tier {tier}: name it in one of them"
        return
    zones = {entry.tariff.time_zone: name for name, entry in reversed(places)}
    if len(zones) > 1:
        told = " and ".join(f"{name} in {zone}" for zone, name in sorted(zones.items(), key=lambda item: item[1]))
        yield f"tariffs of one model and tier share a time zone, for tier {tier} there are {told}"
        return
    (zone,) = zones
    spans = sorted((*span, name) for name, entry in places for span in entry.tariff.spans)
    until, owner = 0, ""
    for begin, end, name in [*spans, (WEEK_MINUTES, WEEK_MINUTES, "")]:
        if begin < until:
            told = f"{span_text((begin, min(end, until)))} {zone}"
            yield f"{owner} and {name} both hold for tier {tier} on {told}: keep one of them"
        elif begin > until:
            told = f"{span_text((until, begin))} {zone}"
            yield f"no entry of {model} holds for tier {tier} on {told}: add one, or widen a tariff"
        if end > until:
            until, owner = end, name


# -- between versions


def _between(versions: Sequence[PriceVersion]) -> Iterator[str]:
    """Two versions at once, or none."""
    ordered = in_order(versions)
    for number, version in enumerate(ordered[1:], start=1):
        before, begin_s = ordered[number - 1], version.effective_from_unix_s
        end_s = before.effective_to_unix_s
        if begin_s is None or begin_s == before.effective_from_unix_s:
            yield f"versions {before.name} and {version.name} begin at the same time: one of them can be in force"
        elif end_s is not None and end_s > begin_s:
            yield (
                f"versions {before.name} (to {_moment(end_s)}) and {version.name} (from {_moment(begin_s)}) overlap: "
                f"leave effective_to of {before.name} out, it ends where the next one begins"
            )
        elif end_s is not None and end_s < begin_s:
            yield (
                f"nothing is in force between {before.name} (to {_moment(end_s)}) and {version.name} "
                f"(from {_moment(begin_s)}): requests of that time would have no price"
            )


def in_order(versions: Sequence[PriceVersion]) -> list[PriceVersion]:
    """By their beginnings; one that holds ever since comes first."""
    return sorted(
        versions,
        key=lambda version: (version.effective_from_unix_s is not None, version.effective_from_unix_s or 0),
    )


def _moment(unix_s: int) -> str:
    return utc_text(unix_s * SECOND_US)
