"""The settlement guide's request is booked as it is printed: legs of every row, and what the accounts hold."""

import re
from pathlib import Path

from scheduler.accounting.books import Books
from scheduler.accounting.journal import Journal, State
from scheduler.accounting.rows import Charge, Hold, Row
from scheduler.accounting.settlement import Settlement
from scheduler.core.request import Rates
from workers.types import EnergyPosting, Grade, Outcome, WindowRecord

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "settlement.md").read_text(encoding="utf-8")
RATES = Rates(200_000_000, 50_000_000, 800_000_000)


class Kept:
    """A store that remembers."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, rows: list[Row], state: State | None) -> bool:
        self.rows += rows
        return False


def table(head: str) -> list[list[str]]:
    """Cells of the rows behind this head; numbers as Python writes them."""
    block = re.search(rf"^\| {re.escape(head)} \|\n\|[- :|]+\|\n((?:\|.*\n)+)", GUIDE, re.MULTILINE)
    assert block is not None, head
    return [
        [cell.strip().replace("−", "-").replace(",", "") for cell in line.strip("|").split("|")]
        for line in block[1].splitlines()
    ]


async def booked() -> tuple[list[Row], Books]:
    """The guide's request."""
    store = Kept()
    settlement = Settlement(journal=Journal(store))
    settlement.open_worker("w-0", incarnation="life-1")
    settlement.carbon_ug_per_mj = {"hall": 380 / 3600}
    settlement.hold(
        Hold(
            request_id="req-a", tenant="acme", model="m", arrived_us=0, input_tokens=1_200, output_tokens=200,
            cost_nano=RATES.most_nano(input_tokens=1_200, output_tokens=200), rates=RATES,
        )
    )  # fmt: skip
    tokens = {"input_tokens": 1_000, "cached_tokens": 600, "output_tokens": 150}
    settlement.charge(
        Charge(
            request_id="req-a", attempt_id="req-a-1", tenant="acme", model="m", worker_id="w-0", zone="hall",
            outcome=Outcome.COMPLETED, cost_nano=RATES.cost_nano(**tokens), rates=RATES, **tokens,
        )
    )  # fmt: skip
    settlement.window(
        "w-0",
        WindowRecord(
            window=1, started_s=0.0, ended_s=5.0, ended_unix_s=5.0, counter_mj=622_490, meter_mj=622_490,
            idle_mj=600_240, overhead_mj=2_250, unattributed_mj=0, in_flight_mj=20_000,
            shares=(("req-a-1", 20_000, 25_000),), busy_gpu_us=27_000, overhead_gpu_us=2_000, predicted_mj=22_250,
            scale_ratio=1.0, grade=Grade.A, meter="scripted", num_steps=3,
        ),
        number=1,
    )  # fmt: skip
    posting = EnergyPosting(attempt_id="req-a-1", energy_mj=20_000, gpu_us=25_000, grade=Grade.A, policy="shapley")
    settlement.post_energy("w-0", posting)
    await settlement.commit()
    return store.rows, settlement.books


async def test_the_request_in_numbers_is_what_is_booked() -> None:
    """Line by line, in order."""
    rows, books = await booked()
    legs = [[row.kind, account, unit, str(amount)] for row in rows for account, unit, amount in row.legs]
    assert legs == table("row | account | unit | amount")
    balances = [[account, unit, str(amount)] for (account, unit), amount in sorted(books.balances.items())]
    assert balances == table("account | unit | balance")


async def test_what_is_said_in_words_is_in_the_rows() -> None:
    rows, books = await booked()
    hold, charge = rows[0], rows[1]
    assert isinstance(hold, Hold)
    assert isinstance(charge, Charge)
    assert f"= {hold.cost_nano // 1_000} µUSD" in GUIDE
    assert f"= {charge.cost_nano // 1_000} µUSD" in GUIDE
    assert ["hold", "charge", "window", "energy"] == [row.kind for row in rows]
    assert (0, 0) == (books.total("held", "USD"), books.total("in_flight", "mJ"))
