"""What a price version says: for each model, service tier and tariff the rates, and since when; as one canonical text.

Called by ``scheduler.accounting.prices``, by the configuration, and by whoever reads a version back from a ledger.
Pure. It must never know which version is in force.

The text is JSON with sorted keys, no blanks and integers only, so that one version has one text and one SHA-256. It
leaves out who approved it: what is approved does not change by being approved.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from scheduler.accounting.tariffs import ALWAYS, Tariff
from scheduler.core.request import Band, CostPlus, Rates

ID_DIGITS = 8
TIERS = tuple(Band)
RATE_FIELDS = ("input_nano", "cached_nano", "output_nano", "reasoning_nano", "image_nano", "audio_nano")


def tier_name(tier: int) -> str:
    """OpenAI's word: ``flex``, ``default``, ``priority``."""
    return Band(tier).name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceEntry:
    """What one model costs in some tiers while a tariff holds."""

    model: str
    tiers: tuple[Band, ...] = TIERS
    tariff: Tariff = ALWAYS
    rates: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceVersion:
    """Everything that is priced alike for a time: from the first second on, up to and without the last one (UTC)."""

    name: str
    effective_from_unix_s: int | None = None
    """None = ever since."""
    effective_to_unix_s: int | None = None
    """None = until the next version begins, or for ever."""
    currency: str
    entries: tuple[PriceEntry, ...]
    approved_by: tuple[str, ...] = ()

    def text(self) -> str:
        """The canonical JSON; entries in order of model, tiers and tariff, however they were written."""
        ordered = sorted(self.entries, key=lambda entry: (entry.model, sorted(entry.tiers), entry.tariff.name))
        return json.dumps(
            {
                "currency": self.currency,
                "effective_from_unix_s": self.effective_from_unix_s,
                "effective_to_unix_s": self.effective_to_unix_s,
                "entries": [_entry_fields(entry) for entry in ordered],
                "name": self.name,
            },
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        )

    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal digits."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def version_id(self) -> str:
        """Name and the digest's first digits, ``2026-11-01/3f9a2c1b``: what rates, rows and receipts carry."""
        return f"{self.name}/{self.digest()[:ID_DIGITS]}"


def version_of(text: str) -> PriceVersion:
    """A version from its canonical text. Raises: ValueError where the text is not exactly that."""
    try:
        fields = json.loads(text, parse_float=_refuse, parse_constant=_refuse)
        version = PriceVersion(
            name=fields["name"],
            effective_from_unix_s=fields["effective_from_unix_s"],
            effective_to_unix_s=fields["effective_to_unix_s"],
            currency=fields["currency"],
            entries=tuple(_entry_of(entry, fields["currency"]) for entry in fields["entries"]),
        )
        is_canonical = version.text() == text
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        is_canonical = False
    if not is_canonical:
        raise ValueError("this is no canonical text of a price version")
    return version


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no integer")


def _entry_fields(entry: PriceEntry) -> dict[str, Any]:
    rates, tariff = entry.rates, entry.tariff
    return {
        "model": entry.model,
        "rates": {
            **{name: getattr(rates, name) for name in RATE_FIELDS},
            "plus": None if rates.plus is None else rates.plus._asdict(),
        },
        "tariff": {"name": tariff.name, "spans": [list(span) for span in tariff.spans], "time_zone": tariff.time_zone},
        "tiers": sorted(tier_name(tier) for tier in entry.tiers),
    }


def _entry_of(fields: dict[str, Any], currency: str) -> PriceEntry:
    rates, tariff = dict(fields["rates"]), fields["tariff"]
    plus = rates.pop("plus")
    return PriceEntry(
        model=fields["model"],
        tiers=tuple(sorted(Band.of_service_tier(tier) for tier in fields["tiers"])),
        tariff=Tariff(
            name=tariff["name"],
            time_zone=tariff["time_zone"],
            spans=tuple((begin, end) for begin, end in tariff["spans"]),
        ),
        rates=Rates(**rates, currency=currency, plus=None if plus is None else CostPlus(**plus)),
    )
