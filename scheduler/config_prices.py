"""The section of prices: versions, tariffs, who approved them; and the book that they make.

Called by ``scheduler.config``, which reads the file, and by ``scheduler.policies``. It must never read a file or an
environment variable; a time zone's name is looked up in the system's database.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from scheduler.accounting.budget_terms import NANO_PLACES, ledger_amount
from scheduler.accounting.price_versions import TIERS, PriceEntry, PriceVersion
from scheduler.accounting.prices import PriceBook
from scheduler.accounting.tariffs import ALWAYS, DAYS, WHOLE_DAY, Tariff, joined, spans_of, zone_of
from scheduler.config_sections import (
    PPM_PLACES,
    CostPlusConfig,
    ModelConfig,
    Name,
    PriceConfig,
    Section,
    Tier,
)
from scheduler.core.request import Band, CostPlus, Rates

SIMPLE_VERSION = "models"
"""Name of the version that ``models.NAME.price`` makes."""

Person = Annotated[str, Field(pattern=r"^\S(.{0,62}\S)?$")]


def unix_s_of(value: object) -> int:
    """A date or a time as whole unix seconds; one without a zone is UTC. Raises: ValueError."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime(moment.year, moment.month, moment.day)
        if isinstance(moment, datetime) and not moment.microsecond:
            return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())
    except ValueError:
        pass
    raise ValueError(
        "is a date or a time in whole seconds, as 2026-11-01 or 2026-11-01T00:00:00Z (there are no leap seconds)"
    )


def _as_text(value: object) -> object:
    """YAML makes a date of what looks like one; a name may."""
    return value.isoformat() if isinstance(value, date) and not isinstance(value, datetime) else value


def _listed(value: object) -> object:
    """``mon-fri`` is a list of one; so is a single entry."""
    return [value] if isinstance(value, str | dict) else value


def _all_tiers(value: object) -> object:
    return [tier.name.lower() for tier in TIERS] if value == "all" else _listed(value)


Moment = Annotated[int, BeforeValidator(unix_s_of)]


class SpanConfig(Section):
    """Some hours of some days."""

    days: Annotated[tuple[str, ...], BeforeValidator(_listed)] = DAYS
    """``[mon-fri]``, ``[sat, sun]``."""
    hours: str = WHOLE_DAY
    """``"22:00-06:00"`` ends on the next day."""

    @model_validator(mode="after")
    def _check(self) -> SpanConfig:
        spans_of(self.days, self.hours)
        return self


class TariffConfig(Section):
    """A named part of the week, on the wall clock of a time zone."""

    time_zone: str = "UTC"
    spans: Annotated[tuple[SpanConfig, ...], Field(min_length=1)]

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        zone_of(name)
        return name


class EntryConfig(Section):
    """What a model costs in some tiers while a tariff holds."""

    tiers: Annotated[tuple[Tier, ...], Field(min_length=1), BeforeValidator(_all_tiers)] = (
        "priority",
        "default",
        "flex",
    )
    """``all``, or those that cost this."""
    tariff: str = ALWAYS.name
    price: PriceConfig


Entries = Annotated[tuple[EntryConfig, ...], Field(min_length=1), BeforeValidator(_listed)]


class VersionConfig(Section):
    """Prices that hold for a time. A version never changes: other prices are another version."""

    name: Annotated[Name, BeforeValidator(_as_text)] = ""
    """Left out: the date on which it begins."""
    effective_from: Moment | None = None
    """None = ever since."""
    effective_to: Moment | None = None
    """The first second in which it no longer holds; None = until the next version begins, or for ever."""
    currency: str | None = None
    """None = that of the configuration; another one is an error."""
    approved_by: tuple[Person, ...] = ()
    """Names of people, for ``approvals``."""
    tariffs: dict[Name, TariffConfig] = {}
    models: dict[str, Entries] = {}

    @model_validator(mode="after")
    def _check(self) -> VersionConfig:
        if not self.version_name:
            raise ValueError("has neither a name nor effective_from: give one of them")
        if ALWAYS.name in self.tariffs:
            raise ValueError(f"tariffs.{ALWAYS.name}: is there already and means every moment; choose another name")
        for model, entries in self.models.items():
            for place, entry in enumerate(entries):
                if entry.tariff not in (ALWAYS.name, *self.tariffs):
                    known = ", ".join([ALWAYS.name, *sorted(self.tariffs)])
                    raise ValueError(f"models.{model}[{place}].tariff: {entry.tariff!r} is not among tariffs ({known})")
        return self

    @property
    def version_name(self) -> str:
        """The name, or the date."""
        if self.name or self.effective_from is None:
            return self.name
        return datetime.fromtimestamp(self.effective_from, UTC).date().isoformat()


class PricesConfig(Section):
    """The price book, here or in a file of its own (``prices: prices.yaml``)."""

    missing: Literal["refuse", "free"] | None = None
    """What becomes of a request that nothing has a price for; None = refused as soon as anything has a price."""
    approvals: Annotated[int, Field(ge=0, le=10)] = 0
    """People who must have approved a version before it counts."""
    versions: tuple[VersionConfig, ...] = ()


def book_of(prices: PricesConfig, models: Mapping[str, ModelConfig], *, currency: str) -> PriceBook:
    """The book of the versions, or of one version made of what is written at the models.

    Raises: ValueError, which names versions and entries.
    """
    simple = [name for name, model in models.items() if model.price is not None]
    if simple and prices.versions:
        raise ValueError(f"models.{simple[0]}.price: prices.versions say what models cost; keep one of the two")
    if simple and prices.approvals:
        raise ValueError(f"models.{simple[0]}.price: cannot be approved; write it as one of prices.versions")
    versions = [_version_of(version, currency) for version in prices.versions]
    if simple:
        entries = tuple(
            PriceEntry(model=name, rates=rates_of(model.price, currency=currency))
            for name, model in models.items()
            if model.price is not None
        )
        versions = [PriceVersion(name=SIMPLE_VERSION, currency=currency, entries=entries)]
    return PriceBook(
        versions,
        currency=currency,
        approvals=prices.approvals,
        is_free_where_missing=prices.missing == "free" or (prices.missing is None and not versions),
    )


def rates_of(price: PriceConfig, *, currency: str) -> Rates:
    """A price in the ledger's integers."""
    return Rates(
        input_nano=_nano(price.input),
        cached_nano=_nano(price.input if price.cached_input is None else price.cached_input),
        output_nano=_nano(price.output),
        currency=currency,
        reasoning_nano=None if price.reasoning is None else _nano(price.reasoning),
        image_nano=None if price.image_input is None else _nano(price.image_input),
        audio_nano=None if price.audio_input is None else _nano(price.audio_input),
        plus=None if price.cost_plus is None else _cost_plus(price.cost_plus),
    )


def _version_of(version: VersionConfig, currency: str) -> PriceVersion:
    tariffs = {ALWAYS.name: ALWAYS}
    for name, tariff in version.tariffs.items():
        spans = [span for part in tariff.spans for span in spans_of(part.days, part.hours)]
        tariffs[name] = Tariff(name=name, time_zone=tariff.time_zone, spans=joined(spans))
    own_currency = version.currency or currency
    return PriceVersion(
        name=version.version_name,
        effective_from_unix_s=version.effective_from,
        effective_to_unix_s=version.effective_to,
        currency=own_currency,
        entries=tuple(
            PriceEntry(
                model=model,
                tiers=tuple(Band.of_service_tier(tier) for tier in entry.tiers),
                tariff=tariffs[entry.tariff],
                rates=rates_of(entry.price, currency=own_currency),
            )
            for model, entries in version.models.items()
            for entry in entries
        ),
        approved_by=version.approved_by,
    )


def _cost_plus(plus: CostPlusConfig) -> CostPlus:
    return CostPlus(
        energy_nano_per_kwh=_nano(plus.per_kwh),
        pue_ppm=ledger_amount(plus.pue, PPM_PLACES),
        gpu_nano_per_s=_nano(plus.per_gpu_second),
        margin_ppm=ledger_amount(plus.margin, PPM_PLACES),
    )


def _nano(value: Decimal) -> int:
    return ledger_amount(value, NANO_PLACES)
