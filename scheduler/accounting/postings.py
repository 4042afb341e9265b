"""Double entry: which accounts a fact moves, by how much. Integers; the legs of every row sum to 0 in each unit.

Called by ``scheduler.accounting.settlement`` as it writes rows. Pure. It must never know a balance.

Tokens and money of a payer T (a tenant, or the operator): ``drawn/T`` is where they come from and goes negative by all
that was ever drawn, ``held/T`` returns to 0 when nothing runs, ``used/T`` is the bill. Energy and GPU-time of a worker
W: ``meter/W`` goes negative by all that was metered, ``idle/W``, ``overhead/W``, ``unattributed/W`` keep their share,
``in_flight/W`` returns to 0, ``requests/W/T`` is what was attributed. Carbon comes from ``grid/W``. What a worker took
to calibrate is ``calibration/W``.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.accounting.rows import Charge, Hold, Leg
from workers.types import WindowRecord

INPUT, CACHED, OUTPUT = "input_tokens", "cached_tokens", "output_tokens"
MILLIJOULES, GPU_MICROSECONDS, CARBON = "mJ", "gpu_us", "ugCO2e"


def hold_legs(hold: Hold) -> list[Leg]:
    """The worst case is drawn and held."""
    drawn, held, unit = f"drawn/{hold.tenant}", f"held/{hold.tenant}", hold.rates.currency
    input_tokens, output_tokens, cost_nano = hold.input_tokens, hold.output_tokens, hold.cost_nano
    legs = [
        (drawn, INPUT, -input_tokens),
        (held, INPUT, input_tokens),
        (drawn, OUTPUT, -output_tokens),
        (held, OUTPUT, output_tokens),
        (drawn, unit, -cost_nano),
        (held, unit, cost_nano),
    ]
    return legs if input_tokens and output_tokens and cost_nano else [leg for leg in legs if leg[2]]


def void_legs(hold: Hold) -> list[Leg]:
    """All of it goes back."""
    return [(account, unit, -amount) for account, unit, amount in hold_legs(hold)]


def charge_legs(charge: Charge, hold: Hold | None) -> list[Leg]:
    """The hold becomes use as far as it was used, the rest goes back. Without one (the operator pays, or it was the
    hold of an earlier control plane) what was used is drawn directly.
    """
    payer = charge.account
    drawn, held, used = f"drawn/{payer}", f"held/{payer}", f"used/{payer}"
    held_input, held_output, held_nano = (hold.input_tokens, hold.output_tokens, hold.cost_nano) if hold else (0, 0, 0)
    legs = _move(drawn, used, CACHED, charge.cached_tokens)
    for unit, amount, held_amount in (
        (INPUT, charge.input_tokens, held_input),
        (OUTPUT, charge.output_tokens, held_output),
        (charge.rates.currency, charge.cost_nano, held_nano),
    ):
        if held_amount:
            legs.append((held, unit, -held_amount))
        if amount:
            legs.append((used, unit, amount))
        if held_amount != amount:
            legs.append((drawn, unit, held_amount - amount))
    return legs


def energy_legs(
    worker_id: str,
    account: str,
    *,
    energy_mj: int,
    gpu_us: int,
    carbon_ug: int = 0,
    cost_nano: int = 0,
    currency: str = "USD",
) -> list[Leg]:
    """In flight -> the payer's; and the one difference of a cost-plus price."""
    source, target = f"in_flight/{worker_id}", f"requests/{worker_id}/{account}"
    legs = [*_move(source, target, MILLIJOULES, energy_mj), *_move(source, target, GPU_MICROSECONDS, gpu_us)]
    if carbon_ug:
        legs += _move(f"grid/{worker_id}", target, CARBON, carbon_ug)
    if cost_nano:
        legs += _move(f"drawn/{account}", f"used/{account}", currency, cost_nano)
    return legs


def window_legs(worker_id: str, record: WindowRecord, *, is_calibration: bool) -> list[Leg]:
    """Meter -> everything that the window says it was."""
    meter = f"meter/{worker_id}"
    if is_calibration:
        target = f"calibration/{worker_id}"
        return [
            *_move(meter, target, MILLIJOULES, record.meter_mj),
            *_move(meter, target, GPU_MICROSECONDS, record.busy_gpu_us),
        ]
    parts = {
        "idle": (record.idle_mj, 0),
        "overhead": (record.overhead_mj, record.overhead_gpu_us),
        "unattributed": (record.unattributed_mj, 0),
        "in_flight": (record.in_flight_mj, sum(gpu_us for _, _, gpu_us in record.shares)),
    }
    legs: list[Leg] = []
    for unit, place, total in ((MILLIJOULES, 0, record.meter_mj), (GPU_MICROSECONDS, 1, record.busy_gpu_us)):
        amounts = [(f"{name}/{worker_id}", part[place]) for name, part in parts.items()]
        legs += [(account, unit, amount) for account, amount in ((meter, -total), *amounts) if amount]
    return legs


def differences(legs: Iterable[Leg]) -> dict[str, int]:
    """Units in which legs do not sum to 0, and by how much; empty, or there is a bug."""
    sums: dict[str, int] = {}
    for _, unit, amount in legs:
        sums[unit] = sums.get(unit, 0) + amount
    return {unit: total for unit, total in sums.items() if total}


def _move(source: str, target: str, unit: str, amount: int) -> list[Leg]:
    return [(source, unit, -amount), (target, unit, amount)] if amount else []
