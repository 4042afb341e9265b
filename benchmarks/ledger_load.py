"""Requests as a control plane settles them, with no engine behind: for benchmarks of the ledger. Seeded; simulated.

Used by ``settlements.py``, ``recovery.py`` and the tests of large ledgers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from scheduler.accounting.rows import Charge, Hold
from scheduler.accounting.settlement import Settlement
from scheduler.api.exchange import new_request_id
from scheduler.core.request import Rates
from workers.types import EnergyPosting, Grade, Outcome, WindowRecord

WORKER_ID = "sim-0"
WINDOW_REQUESTS = 50
"""Requests whose energy one window measures."""
RATES = Rates(input_nano=200_000_000, cached_nano=50_000_000, output_nano=800_000_000, version="2026-11-01/0123abcd")


class Load:
    """Makes rows of whole requests, each window followed by the postings of its attempts."""

    def __init__(
        self,
        settlement: Settlement,
        *,
        seed: int = 0,
        num_tenants: int = 20,
        on_charge: Callable[[Charge], None] = lambda charge: None,
    ) -> None:
        self._settlement = settlement
        self._chance = random.Random(seed)
        self._num_tenants = num_tenants
        self._on_charge = on_charge
        self._num = 0
        self._windows = 0
        self._counter_mj = 0
        self._open: list[str] = []
        settlement.open_worker(WORKER_ID, incarnation=f"load-{seed}")

    def requests(self, num: int, *, at_unix_s: float | None = None) -> None:
        """So many requests, each with its hold and its charge, and the energy of those before them."""
        self.settle(self.drawn(num, at_unix_s=at_unix_s))

    def drawn(self, num: int, *, at_unix_s: float | None = None) -> list[tuple[Hold, Charge]]:
        """So many requests of which nothing is booked yet: what a measurement does not count to the ledger."""
        now_s = time.time() if at_unix_s is None else at_unix_s
        return [self._request(now_s) for _ in range(num)]

    def settle(self, requests: list[tuple[Hold, Charge]]) -> None:
        """They are booked, and the energy of those before them."""
        for hold, charge in requests:
            self._settlement.hold(hold)
            self._settlement.charge(charge)
            self._on_charge(charge)
            self._open.append(charge.attempt_id)
            if len(self._open) >= WINDOW_REQUESTS:
                self.window()

    def window(self) -> None:
        """What is open is measured and posted."""
        shares = tuple((attempt_id, self._chance.randint(1_000, 400_000), 20_000) for attempt_id in self._open)
        in_flight_mj = sum(energy_mj for _, energy_mj, _ in shares)
        self._windows += 1
        self._counter_mj += in_flight_mj + 5_000
        record = WindowRecord(
            window=self._windows,
            started_s=float(self._windows),
            ended_s=float(self._windows + 1),
            ended_unix_s=0.0,
            counter_mj=self._counter_mj,
            meter_mj=in_flight_mj + 5_000,
            idle_mj=5_000,
            overhead_mj=0,
            unattributed_mj=0,
            in_flight_mj=in_flight_mj,
            shares=shares,
            busy_gpu_us=20_000 * len(shares),
            overhead_gpu_us=0,
            predicted_mj=in_flight_mj,
            scale_ratio=1.0,
            grade=Grade.D,
            meter="simulated:load",
            num_steps=len(shares),
        )
        self._settlement.window(WORKER_ID, record, number=self._windows)
        for attempt_id, energy_mj, gpu_us in shares:
            posting = EnergyPosting(
                attempt_id=attempt_id, energy_mj=energy_mj, gpu_us=gpu_us, grade=Grade.D, policy="shapley"
            )
            self._settlement.post_energy(WORKER_ID, posting)
        self._open.clear()

    def _request(self, now_s: float) -> tuple[Hold, Charge]:
        chance = self._chance
        self._num += 1
        request_id = new_request_id(now_s, chance.randbytes)
        tenant = f"tenant-{self._num % self._num_tenants}"
        whose = {
            "tenant": tenant,
            "project": "default",
            "key_id": f"key-{self._num % self._num_tenants:010x}",
            "model": "chat",
            "arrived_us": int(now_s * 1_000_000),
            "rates": RATES,
        }
        input_tokens, output_tokens = chance.randint(20, 2_000), chance.randint(1, 400)
        cost_nano = RATES.cost_nano(input_tokens=input_tokens, cached_tokens=0, output_tokens=output_tokens)
        hold = Hold(
            request_id=request_id,
            input_tokens=2 * input_tokens,
            output_tokens=512,
            cost_nano=2 * cost_nano + 512_000,
            **whose,  # type: ignore[arg-type]
        )
        charge = Charge(
            request_id=request_id,
            attempt_id=f"{request_id}-1",
            worker_id=WORKER_ID,
            outcome=Outcome.COMPLETED,
            input_tokens=input_tokens,
            cached_tokens=0,
            output_tokens=output_tokens,
            cost_nano=cost_nano,
            grade=Grade.D,
            scheduled_tokens=input_tokens + output_tokens - 1,
            **whose,  # type: ignore[arg-type]
        )
        return hold, charge
