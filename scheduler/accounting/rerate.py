"""A dry run: what charges of the past would have cost by another price book, beside what they did cost.

Called by the command that reads a ledger. Pure. It must never change a charge: corrections are new rows, and a price
never touches what was charged. It reads its charges once and keeps a total for each tenant and model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.accounting.prices import NoPrice, PriceBook
from scheduler.accounting.rows import OPERATOR, Charge, Energy, Row
from scheduler.core.request import Band, SpecialTokens


class PastCharge(NamedTuple):
    """What a tenant was charged for one attempt, and what decides its price. The operator's attempts cost nobody."""

    tenant: str
    model: str
    tier: int
    """A ``Band``: the one that it had, not the one that it asked for."""
    at_unix_s: float
    """Of its request's arrival."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    """With the difference of its energy posting."""
    currency: str = "USD"
    special: SpecialTokens | None = None
    energy_mj: int = 0
    """As measured."""
    gpu_us: int = 0


@dataclass(slots=True, kw_only=True)
class Rerated:
    """All charges of one tenant and model, in 10⁻⁹ currency units."""

    tenant: str
    model: str
    num_charges: int = 0
    was_nano: int = 0
    """What those with a price in the book did cost."""
    would_be_nano: int = 0
    """What the same would have cost, to the unit in which each would have been charged."""
    num_unpriced: int = 0
    """Charges that the book has no price for: their requests would have been refused."""
    unpriced_nano: int = 0
    """What these did cost."""


def past_charges(rows: Iterable[Row], *, from_us: int = 0, to_us: int | None = None) -> Iterator[PastCharge]:
    """What a ledger's rows charged to tenants in a period, by the arrival of each request, with what was measured."""
    unmeasured: dict[str, Charge] = {}
    for row in rows:
        if isinstance(row, Charge) and row.account != OPERATOR:
            if from_us <= row.arrived_us and (to_us is None or row.arrived_us < to_us):
                unmeasured[row.attempt_id] = row
        elif isinstance(row, Energy) and (charge := unmeasured.pop(row.attempt_id, None)) is not None:
            yield _past(charge, row)
    for charge in unmeasured.values():
        yield _past(charge, None)


def _past(charge: Charge, energy: Energy | None) -> PastCharge:
    return PastCharge(
        tenant=charge.tenant,
        model=charge.model,
        tier=Band[charge.tier.upper()],
        at_unix_s=charge.arrived_us / 1_000_000,
        input_tokens=charge.input_tokens,
        cached_tokens=charge.cached_tokens,
        output_tokens=charge.output_tokens,
        cost_nano=charge.cost_nano + (0 if energy is None else energy.cost_nano),
        currency=charge.rates.currency,
        special=charge.special,
        energy_mj=charge.provisional_mj if energy is None else energy.energy_mj,
        gpu_us=charge.provisional_gpu_us if energy is None else energy.gpu_us,
    )


def rerate(charges: Iterable[PastCharge], book: PriceBook) -> list[Rerated]:
    """Totals in order of tenant and model; ``num_charges`` contain the unpriced ones.

    Cost-plus is taken by the measured energy without the limit of a hold, which a book of other prices would have set
    otherwise. Raises: ValueError where a charge is in another currency than the book.
    """
    totals: dict[tuple[str, str], Rerated] = {}
    for charge in charges:
        if charge.currency != book.currency:
            raise ValueError(f"a charge in {charge.currency} cannot be compared with prices in {book.currency}")
        total = totals.get((charge.tenant, charge.model))
        if total is None:
            total = totals[charge.tenant, charge.model] = Rerated(tenant=charge.tenant, model=charge.model)
        total.num_charges += 1
        cost_nano = _cost_of(charge, book)
        if cost_nano is None:
            total.num_unpriced += 1
            total.unpriced_nano += charge.cost_nano
        else:
            total.was_nano += charge.cost_nano
            total.would_be_nano += cost_nano
    return [totals[key] for key in sorted(totals)]


def _cost_of(charge: PastCharge, book: PriceBook) -> int | None:
    """None where the book has no price for it."""
    try:
        rates = book.rates(charge.model, charge.tier, charge.at_unix_s)
    except NoPrice:
        return None
    tokens_nano = rates.cost_nano(
        input_tokens=charge.input_tokens,
        cached_tokens=charge.cached_tokens,
        output_tokens=charge.output_tokens,
        special=charge.special,
    )
    return tokens_nano + rates.cost_plus_nano(energy_mj=charge.energy_mj, gpu_us=charge.gpu_us)
