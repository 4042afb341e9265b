"""`jouleway rerate`: a ledger's past by other prices; each charge once, with what was measured, by its arrival."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ledger_load import RATES, Load
from benchmarks.recovery import core
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import sqlite_url
from scheduler.accounting.recovery import recover
from scheduler.accounting.rerate import past_charges
from scheduler.accounting.rows import Charge, Energy
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.rerate import run
from scheduler.core.actions import Payer
from scheduler.core.request import Band, CostPlus, Rates
from workers.types import Grade, Outcome

CONFIG = """
state_dir: state
models: {{{model}: {{normalizer: none, price: {{input: {input}, cached_input: {cached}, output: {output}}}}}}}
workers: [{{name: w, engine: simulated, model: {model}}}]
currency: {currency}
prices: {{missing: refuse}}
tenants: [{{name: t}}]
generate_keys: true
"""
DAY_UNIX_S = 1_793_491_200.0
"""2026-11-01."""


def config_of(folder: Path, **values: Any) -> Path:
    fields = {"model": "chat", "input": "0.2", "cached": "0.05", "output": "0.8", "currency": "USD", **values}
    path = folder / "prices.yaml"
    path.write_text(CONFIG.format(**fields))
    return path


async def ledger_of(path: Path) -> list[Charge]:
    """Fifty requests of each of two days."""
    charges: list[Charge] = []
    ledger = Ledger(sqlite_url(path), seed=b"\x01" * 32)
    settlement, _ = recover(ledger, core(), statement="s", version="v")
    load = Load(settlement, num_tenants=2, on_charge=charges.append)
    for day in range(2):
        load.requests(50, at_unix_s=DAY_UNIX_S + 86_400 * day)
    await settlement.commit()
    ledger.close()
    return charges


def rows_told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return list(json.loads(capsys.readouterr().out)["rows"])


# -- the command


async def test_the_same_prices_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By tenant and model, to the unit; the ledger stays as it is."""
    path = tmp_path / "ledger.db"
    charges = await ledger_of(path)
    before = path.read_bytes()
    config = config_of(tmp_path)
    assert ExitCode.OK == run(str(path), config=config, from_text=None, to_text=None, as_json=True)
    rows = rows_told(capsys)
    assert [("tenant-0", 50), ("tenant-1", 50)] == [(row["tenant"], row["num_charges"]) for row in rows]
    assert all(row["was_nano"] == row["would_be_nano"] > 0 for row in rows)
    assert sum(charge.cost_nano for charge in charges) == sum(row["was_nano"] for row in rows)
    assert ExitCode.OK == run(str(path), config=config, from_text=None, to_text=None, as_json=False)
    assert "what it would have cost, USD" in capsys.readouterr().out
    assert before == path.read_bytes()


async def test_other_prices_of_one_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the price is twice the money, of requests that arrived in the period."""
    path = tmp_path / "ledger.db"
    charges = await ledger_of(path)
    config = config_of(tmp_path, input="0.4", cached="0.1", output="1.6")
    period = {"from_text": "2026-11-02T00:00:00Z", "to_text": None}
    assert ExitCode.OK == run(str(path), config=config, **period, as_json=True)
    rows = rows_told(capsys)
    second = [charge for charge in charges if charge.arrived_us > DAY_UNIX_S * 1_000_000]
    assert (50, sum(charge.cost_nano for charge in second)) == (
        sum(row["num_charges"] for row in rows), sum(row["was_nano"] for row in rows)
    )  # fmt: skip
    assert 2 * sum(row["was_nano"] for row in rows) == sum(row["would_be_nano"] for row in rows)


async def test_what_has_no_price_is_counted_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such requests would have been refused."""
    path = tmp_path / "ledger.db"
    await ledger_of(path)
    assert ExitCode.OK == run(
        str(path), config=config_of(tmp_path, model="other"), from_text=None, to_text=None, as_json=True
    )
    rows = rows_told(capsys)
    assert [(50, 50, 0)] * 2 == [(row["num_charges"], row["num_unpriced"], row["would_be_nano"]) for row in rows]


async def test_another_currency_and_no_ledger_are_said(tmp_path: Path) -> None:
    """A number without its unit would be a lie."""
    path = tmp_path / "ledger.db"
    await ledger_of(path)
    config = config_of(tmp_path, currency="EUR")
    with pytest.raises(CommandError, match="a charge in USD cannot be compared with prices in EUR") as found:
        run(str(path), config=config, from_text=None, to_text=None, as_json=True)
    assert ExitCode.USAGE == found.value.code
    with pytest.raises(CommandError, match="there is no such file") as found:
        run(str(tmp_path / "none.db"), config=config, from_text=None, to_text=None, as_json=True)
    assert ExitCode.NOT_FOUND == found.value.code


# -- which charges


def charge(attempt_id: str, **values: Any) -> Charge:
    fields: dict[str, Any] = {
        "request_id": attempt_id.rpartition("-")[0], "attempt_id": attempt_id, "tenant": "t", "model": "m",
        "worker_id": "w", "outcome": Outcome.COMPLETED, "input_tokens": 10, "cached_tokens": 4, "output_tokens": 5,
        "cost_nano": 100, "rates": RATES, "arrived_us": 7_000_000, "provisional_mj": 9, "provisional_gpu_us": 8,
        **values,
    }  # fmt: skip
    return Charge(**fields)


def energy(attempt_id: str, **values: Any) -> Energy:
    fields: dict[str, Any] = {"energy_mj": 30, "gpu_us": 20, "cost_nano": -3, **values}
    return Energy(attempt_id=attempt_id, account="t", worker_id="w", grade=Grade.A, policy="shapley", **fields)


def test_a_charge_is_taken_with_what_was_measured() -> None:
    """Its money with the difference of its posting; before that as it was estimated, last."""
    rows = [charge("a-1"), charge("b-1", tier="flex"), energy("b-1"), energy("nobody-1")]
    second, first = past_charges(rows)
    assert (97, 30, 20, Band.FLEX) == (second.cost_nano, second.energy_mj, second.gpu_us, second.tier)
    assert (100, 9, 8, Band.DEFAULT) == (first.cost_nano, first.energy_mj, first.gpu_us, first.tier)
    assert (7.0, "USD", 10, 4, 5, None) == (
        first.at_unix_s, first.currency, first.input_tokens, first.cached_tokens, first.output_tokens, first.special
    )  # fmt: skip


def test_what_the_operator_paid_costs_nobody() -> None:
    """By any price; neither does its posting."""
    rows = [charge("a-1", payer=Payer.OPERATOR, cost_nano=0), energy("a-1", cost_nano=0)]
    assert [] == list(past_charges(rows))


def test_a_period_is_one_of_arrivals() -> None:
    """Its first moment belongs to it, its last not; a posting after it counts all the same."""
    rows = [charge(f"{name}-1", arrived_us=at_us) for name, at_us in (("a", 9), ("b", 10), ("c", 19), ("d", 20))]
    found = list(past_charges([*rows, energy("b-1")], from_us=10, to_us=20))
    assert [(97, 10), (100, 19)] == [(each.cost_nano, round(each.at_unix_s * 1_000_000)) for each in found]


def test_special_tokens_keep_their_classes() -> None:
    """Reasoning, image and audio have prices of their own."""
    plus = Rates(1, 1, 1, plus=CostPlus())
    (found,) = past_charges([charge("a-1", reasoning_tokens=2, image_tokens=1, audio_tokens=1, rates=plus)])
    assert found.special is not None
    assert 2 == found.special.reasoning_tokens
