"""Receipts over HTTP: one's own, or the same 404 for what is foreign, unknown or no id at all."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from scheduler.accounting.errors import LedgerError
from scheduler.accounting.receipts import OfAnotherTenant, Receipt, check_receipt, make_receipt
from scheduler.api.errors import ApiError
from scheduler.api.places import proof_places
from scheduler.api.receipts import RECEIPTS_PREFIX, Receipts, receipt_body
from tests.ledger_words import STATEMENT, charge_of, hold_of, living, request_id
from tests.scripted_link import posting_of

OWN, FOREIGN, UNKNOWN = request_id(1), request_id(2), request_id(3)


class Counting:
    """A ledger of two tenants; counts how often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.num_asked = 0
        self.made: dict[tuple[str, str | None], Receipt | None] = {}
        self.foreign = {(FOREIGN, "alpha")}
        with living(f"sqlite:///{folder / 'ledger.db'}") as life:
            for name, tenant in ((OWN, "alpha"), (FOREIGN, "beta")):
                life.settlement.hold(hold_of(name, tenant=tenant))
                life.settlement.charge(charge_of(f"{name}-1", tenant=tenant))
                life.settlement.post_energy("w-0", posting_of(f"{name}-1"))
            life.commit()
            for name in (OWN, FOREIGN, UNKNOWN):
                for tenant in ("alpha", None):
                    if (name, tenant) not in self.foreign:
                        self.made[name, tenant] = make_receipt(life.ledger, name, statement=STATEMENT, tenant=tenant)

    def __call__(self, request_id: str, tenant: str | None) -> Receipt | None:
        self.num_asked += 1
        if (request_id, tenant) in self.foreign:
            raise OfAnotherTenant
        return self.made[request_id, tenant]


@pytest.fixture
def receipts(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


async def refusal(receipts: Receipts | None, name: str, *, tenant: str | None = "alpha") -> ApiError:
    with pytest.raises(ApiError) as caught:
        await receipt_body(receipts, name, places=proof_places(), tenant=tenant)
    return caught.value


async def test_ones_own_is_whole(receipts: Counting) -> None:
    """As JSON that checks out; the operator gets everybody's."""
    for name, tenant in ((OWN, "alpha"), (OWN, None), (FOREIGN, None)):
        body = await receipt_body(receipts, name, places=proof_places(), tenant=tenant)
        receipt = msgspec.json.decode(body, type=Receipt)
        check_receipt(receipt)
        assert (name, True) == (receipt.request_id, receipt.is_final)
        assert name == json.loads(body)["request_id"]


async def test_what_is_foreign_is_not_told_from_what_never_was(receipts: Counting) -> None:
    """Status, code and every word are the same, whatever was asked for; an id that is none asks no database."""
    foreign, unknown = [await refusal(receipts, name) for name in (FOREIGN, UNKNOWN)]
    assert [True, False] == [error.is_denial() for error in (foreign, unknown)]
    assert 2 == receipts.num_asked
    others = [
        await refusal(receipts, name)
        for name in ("", "req-", "x", OWN + "a", OWN[:-1], OWN.upper(), f"{OWN}-1", f"{OWN}\n", "req-%", OWN[:-1] + "1")
    ]
    assert 2 == receipts.num_asked
    without_ledger = await refusal(None, OWN)
    assert 1 == len({(error.status, str(error), error.code) for error in (foreign, unknown, *others, without_ledger)})
    assert 404 == foreign.status


async def test_a_ledger_that_cannot_be_read_is_said_without_its_words() -> None:
    """Come again; where it lies is nobody's business."""

    def failing(request_id: str, tenant: str | None) -> Receipt | None:
        raise LedgerError("postgresql://CANARY: connection refused")

    error = await refusal(failing, OWN)
    assert (503, "ledger_unavailable", 5) == (error.status, error.code, error.retry_after_s)
    assert "CANARY" not in str(error)


async def test_another_tenants_name_is_no_way_in(receipts: Counting) -> None:
    """The caller's tenant decides, and nothing of the request."""
    seen: list[tuple[str, str | None]] = []

    def noting(ask: Callable[[str, str | None], Receipt | None]) -> Receipts:
        def noted(request_id: str, tenant: str | None) -> Receipt | None:
            seen.append((request_id, tenant))
            return ask(request_id, tenant)

        return noted

    await receipt_body(noting(receipts), OWN, places=proof_places(), tenant="alpha")
    assert [(OWN, "alpha")] == seen
    assert RECEIPTS_PREFIX.endswith("/receipts/")
