"""Who used what, summed by minute as rows are booked, and handed to the ledger with its next state.

Owned by ``scheduler.accounting.books``. Pure. It must never know a database: what was taken from it is flushed there.
"""

from __future__ import annotations

import threading
from operator import attrgetter

from scheduler.accounting.outcomes import Facts
from scheduler.accounting.rows import OPERATOR, Charge

GROUPS = ("tenant", "project", "key_id", "model", "task", "tier", "currency")
SUMS = (
    "requests",
    "attempts",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "image_tokens",
    "audio_tokens",
    "input_bytes",
    "output_bytes",
    "gpu_us",
    "energy_mj",
    "carbon_ug",
    "cost_nano",
    "accepted",
    "rejected",
    "judged",
)
MINUTE_US = 60_000_000
_PLACES = {name: place for place, name in enumerate(SUMS)}
_CHARGED = (*SUMS[2:10], "cost_nano")
_CHARGED_PLACES = tuple(_PLACES[name] for name in _CHARGED)
_charged_of = attrgetter(*_CHARGED)

Key = tuple[int, str, str, str, str, str, str, str]
"""Minute of the request's arrival, and ``GROUPS``."""


def usage_key(charge: Charge) -> Key:
    """Where a charge counts: with its request; work in vain with the operator, by model alone."""
    minute_us = (charge.arrived_us or max(charge.at_us, 0)) // MINUTE_US * MINUTE_US
    if charge.account == OPERATOR:
        return (minute_us, OPERATOR, "", "", charge.model, "", charge.tier, charge.rates.currency)
    return (
        minute_us,
        charge.tenant,
        charge.project,
        charge.key_id,
        charge.model,
        charge.task,
        charge.tier,
        charge.rates.currency,
    )


def key_of_facts(facts: Facts) -> Key:
    """Where an outcome counts."""
    return (
        facts.bucket_us,
        facts.tenant,
        facts.project,
        facts.key_id,
        facts.model,
        facts.task,
        facts.tier,
        facts.currency,
    )


class UsageBook:
    """Sums since they were last taken; as many as there are groups with traffic meanwhile.

    Changed on the event loop; read by any thread, which sees whole rows only.
    """

    def __init__(self) -> None:
        self._sums: dict[Key, list[int]] = {}
        self._lock = threading.Lock()
        self.num_taken = 0
        """Times that all was taken."""

    def add_charge(self, charge: Charge) -> None:
        """Tokens and money."""
        with self._lock:
            sums = self._of(usage_key(charge))
            sums[0] += charge.account != OPERATOR
            sums[1] += 1
            for place, amount in zip(_CHARGED_PLACES, _charged_of(charge), strict=True):
                sums[place] += amount

    def add_energy(self, key: Key, *, energy_mj: int, gpu_us: int, carbon_ug: int = 0, cost_nano: int = 0) -> None:
        """What was measured of a charged attempt, and what that changed of its price."""
        with self._lock:
            sums = self._of(key)
            for name, amount in (
                ("energy_mj", energy_mj), ("gpu_us", gpu_us), ("carbon_ug", carbon_ug), ("cost_nano", cost_nano)
            ):  # fmt: skip
                sums[_PLACES[name]] += amount

    def add_outcome(self, key: Key, *, accepted: int, rejected: int, judged: int) -> None:
        """Results that were judged; negative where a later word replaces an earlier one."""
        with self._lock:
            sums = self._of(key)
            for name, amount in (("accepted", accepted), ("rejected", rejected), ("judged", judged)):
                sums[_PLACES[name]] += amount

    def rows(self) -> list[tuple[object, ...]]:
        """Minute, groups, sums of each."""
        with self._lock:
            return [(*key, *sums) for key, sums in self._sums.items()]

    def take(self) -> list[tuple[object, ...]]:
        """All of them; what follows is counted from 0."""
        with self._lock:
            taken = [(*key, *sums) for key, sums in self._sums.items()]
            self._sums.clear()
            self.num_taken += 1
        return taken

    def _of(self, key: Key) -> list[int]:
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = [0] * len(SUMS)
        return sums
