"""Rows of usage of several tenants, to ask questions of.

Used by tests of ``scheduler.api`` (``from tests.usage_rows import ROWS``). Every tenant has the same names for its
projects and tasks, so that a name alone never says whose a row is; every amount of a tenant is a multiple of its own
number, so that a sum says whose rows are in it.
"""

from __future__ import annotations

from scheduler.accounting.usage import DAY_US, MINUTE_US, TIERS, MemoryUsage, UsageRow
from scheduler.api.access import Caller
from scheduler.core.request import Band

START_S = 1_782_864_000
"""2026-07-01, midnight UTC."""
NOW_US = (START_S + 3 * 86_400) * 1_000_000 + 45_000_000
UNITS = {"alpha": 1, "beta": 1_000, "gamma": 1_000_000}
"""Tenant -> what each of its rows counts."""
MODELS = ("m", "n")


def caller(tenant: str) -> Caller:
    return Caller(tenant=tenant, project="p", key_id=f"key-{tenant}", best_band=Band.PRIORITY)


def _row(tenant: str, minute: int, index: int) -> UsageRow:
    unit = UNITS[tenant]
    return UsageRow(
        bucket_us=START_S * 1_000_000 + minute * MINUTE_US,
        tenant=tenant,
        project=("p", "q")[index % 2],
        key_id=f"key-{tenant}",
        model=MODELS[index % len(MODELS)],
        task=("", "nightly")[index // 2 % 2],
        tier=TIERS[index % len(TIERS)],
        requests=unit,
        attempts=unit,
        input_tokens=10 * unit,
        cached_tokens=2 * unit if index % 2 else 0,
        output_tokens=5 * unit,
        input_bytes=40 * unit,
        output_bytes=20 * unit,
        gpu_us=7 * unit,
        energy_mj=3 * unit,
        carbon_ug=unit,
        cost_nano=11 * unit,
        accepted=unit if index % 3 else 0,
        judged=unit if index % 3 else 0,
        currency="EUR",
    )


MINUTES = (0, 1, 59, 60, 1_439, 1_440, 2 * 1_440 + 5)
ROWS = [_row(tenant, minute, index) for tenant in UNITS for index, minute in enumerate(MINUTES)]
assert all(row.bucket_us < START_S * 1_000_000 + 3 * DAY_US for row in ROWS)


def memory() -> MemoryUsage:
    """All of them."""
    return MemoryUsage(ROWS)
