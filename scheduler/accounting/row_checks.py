"""Whether a row of a request says what the rows before it make of it: price, payer, what was measured, what it moves.

Called by ``verify``, which sees every row, and by ``receipts``, which sees those of one request. Pure. Each function
answers with what is wrong, in words; empty where nothing is.
"""

from __future__ import annotations

from operator import attrgetter

from scheduler.accounting.postings import INPUT, OUTPUT, charge_legs, energy_legs
from scheduler.accounting.rows import BY_OPERATOR, HELD_FACTS, Charge, Energy, Hold, Leg, Void, request_id_of
from scheduler.core.request import FREE

NO_HOLD = "is paid by a tenant, and no hold of its request is open"
MEASURED_BEFORE = "is charged after its energy was measured: what it costs beyond that would never be put right"

_held_facts = attrgetter(*HELD_FACTS)


def fault_of_charge(charge: Charge, hold: Hold | None) -> str:
    """``hold``: the open one of its request; None where there is none, or it cannot be seen any more."""
    if request_id_of(charge.attempt_id) != charge.request_id:
        return f"is of {charge.request_id}, and its attempt of another request"
    if charge.payer is BY_OPERATOR:
        return "lets the operator pay money to itself" if charge.cost_nano else ""
    if hold is not None:
        if hold.rates != charge.rates:
            return "is charged at other rates than were pinned when it was admitted"
        if hold.tenant != charge.tenant:
            return f"is paid by {charge.tenant}, and what is held is {hold.tenant}'s"
        if _held_facts(hold) != _held_facts(charge):
            return "is of another project, key, task, model, tier, data class or time than what is held"
    if charge.cached_tokens > charge.input_tokens or charge.reasoning_tokens > charge.output_tokens:
        return "has more cached tokens than input, or more reasoning than output"
    if charge.cost_nano != _price(charge) + charge.plus_nano or (charge.plus_nano and charge.rates.plus is None):
        return "costs something else than its rates say"
    if charge.most_plus_nano is not None and charge.plus_nano > charge.most_plus_nano:
        return "costs more for its energy than was held for it"
    if charge.rates.plus is not None and charge.plus_nano != charge.rates.cost_plus_nano(
        energy_mj=charge.provisional_mj, gpu_us=charge.provisional_gpu_us, most_nano=charge.most_plus_nano
    ):
        return "costs something else for its energy than its estimate comes to"
    return ""


def fault_of_energy(row: Energy, account: str, charge: Charge | None) -> str:
    """``account``: who was charged for it; ``charge`` where its price waited for this measurement."""
    if row.account != account:
        return f"is paid by {row.account}, and its charge by {account}"
    if charge is not None and row.cost_nano and row.currency != charge.rates.currency:
        return f"costs {row.currency}, and its charge {charge.rates.currency}"
    cost_nano = 0 if charge is None else charge.difference_nano(energy_mj=row.energy_mj, gpu_us=row.gpu_us)
    return "" if row.cost_nano == cost_nano else "costs something else than what was measured"


def legs_of_charge(charge: Charge, hold: Hold | None) -> list[Leg]:
    """What a charge has to move: who pays as the operator draws on nobody's hold."""
    return charge_legs(charge, None if charge.payer is BY_OPERATOR else hold)


def legs_of_energy(row: Energy) -> list[Leg]:
    """What a posting has to move by its own facts."""
    return energy_legs(
        row.worker_id,
        row.account,
        energy_mj=row.energy_mj,
        gpu_us=row.gpu_us,
        carbon_ug=row.carbon_ug,
        cost_nano=row.cost_nano,
        currency=row.currency,
    )


def hold_in(row: Charge | Void) -> Hold | None:
    """What a row takes from a hold of its tenant that cannot be seen, by its legs; None where from none."""
    held = f"held/{row.tenant}"
    taken = {unit: -amount for account, unit, amount in row.legs if account == held}
    if (row.legs and not taken) or min(taken.values(), default=1) <= 0:
        return None
    currency = next((unit for unit in taken if unit not in (INPUT, OUTPUT)), FREE.currency)
    return Hold(
        request_id=row.request_id,
        tenant=row.tenant,
        model="",
        arrived_us=0,
        input_tokens=taken.get(INPUT, 0),
        output_tokens=taken.get(OUTPUT, 0),
        cost_nano=taken.get(currency, 0),
        rates=FREE._replace(currency=currency),
    )


def _price(charge: Charge) -> int:
    """Of its tokens, at its rates."""
    return charge.rates.cost_nano(
        input_tokens=charge.input_tokens,
        cached_tokens=charge.cached_tokens,
        output_tokens=charge.output_tokens,
        special=charge.special,
    )
