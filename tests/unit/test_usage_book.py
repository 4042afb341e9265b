"""Usage is summed by minute, tenant, project, key, model, task, tier and currency, and handed over once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.accounts import OPERATOR
from scheduler.accounting.usage_book import GROUPS, MINUTE_US, SUMS, UsageBook, usage_key
from scheduler.core.actions import Payer
from tests.ledger_words import RATES, charge_of

WHO = {"tenant": "alpha", "project": "p", "key_id": "k", "task": "nightly", "model": "m", "tier": "flex"}


def told(book: UsageBook) -> list[dict[str, object]]:
    """Rows by the names of their columns, without what is 0."""
    rows = [dict(zip(("minute_us", *GROUPS, *SUMS), row, strict=True)) for row in book.rows()]
    return [{name: value for name, value in row.items() if value or name == "minute_us"} for row in rows]


def test_a_charge_counts_with_its_request() -> None:
    """Tokens of each class, bytes and money, at the minute of its arrival."""
    book = UsageBook()
    book.add_charge(
        charge_of(
            "a-1", **WHO, arrived_us=2 * MINUTE_US + 59_999_999, rates=RATES._replace(currency="EUR"), cost_nano=7,
            reasoning_tokens=5, image_tokens=4, audio_tokens=3, input_bytes=400, output_bytes=200,
        )
    )  # fmt: skip
    assert [
        {
            "minute_us": 2 * MINUTE_US, **WHO, "currency": "EUR", "requests": 1, "attempts": 1, "input_tokens": 90,
            "cached_tokens": 30, "output_tokens": 40, "reasoning_tokens": 5, "image_tokens": 4, "audio_tokens": 3,
            "input_bytes": 400, "output_bytes": 200, "cost_nano": 7,
        }
    ] == told(book)  # fmt: skip


def test_work_in_vain_is_the_operators_by_model_alone() -> None:
    """Whose request it was does not matter then; it is an attempt and no request."""
    book = UsageBook()
    book.add_charge(charge_of("a-1", **WHO, payer=Payer.OPERATOR))
    (row,) = told(book)
    assert (OPERATOR, "m", "flex", 1) == (row["tenant"], row["model"], row["tier"], row["attempts"])
    assert not {"requests", "project", "key_id", "task", "cost_nano"} & row.keys()


def test_a_charge_whose_arrival_is_not_known_counts_when_it_was_booked() -> None:
    """Of an earlier control plane."""
    charge = charge_of("a-1", arrived_us=0)
    charge.at_us = 5 * MINUTE_US + 1
    assert 5 * MINUTE_US == usage_key(charge)[0]


def test_what_was_measured_and_judged_is_added_where_its_charge_counts() -> None:
    """Energy late, an outcome later; both may be taken back."""
    book, charge = UsageBook(), charge_of("a-1", **WHO)
    book.add_charge(charge)
    book.add_energy(usage_key(charge), energy_mj=100, gpu_us=10, carbon_ug=3, cost_nano=-2)
    book.add_energy(usage_key(charge), energy_mj=5, gpu_us=1)
    book.add_outcome(usage_key(charge), accepted=1, rejected=0, judged=1)
    book.add_outcome(usage_key(charge), accepted=-1, rejected=1, judged=0)
    (row,) = told(book)
    assert (105, 11, 3, charge.cost_nano - 2, 1) == tuple(
        row[name] for name in ("energy_mj", "gpu_us", "carbon_ug", "cost_nano", "rejected")
    )
    assert "accepted" not in row


@pytest.mark.parametrize("name", ["tenant", "project", "key_id", "model", "task", "tier", "currency"])
def test_each_group_counts_apart(name: str) -> None:
    """What differs in one of them is another sum; what does not is the same."""
    book = UsageBook()
    for value in ("one", "other", "one"):
        fields = {"rates": RATES._replace(currency=value)} if name == "currency" else {name: value}
        book.add_charge(charge_of("a-1", **{**WHO, **fields}))
    assert {"one": 2, "other": 1} == {row[name]: row["requests"] for row in told(book)}


def test_what_was_taken_is_counted_from_nothing() -> None:
    """Its sums go to the ledger, to be added there."""
    book = UsageBook()
    book.add_charge(charge_of("a-1", **WHO))
    taken = book.take()
    assert 1 == len(taken)
    assert ([], []) == (book.take(), told(book))
    book.add_charge(charge_of("a-1", **WHO))
    assert taken == book.take()


@given(
    charges=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 5 * MINUTE_US), st.integers(0, 1000), st.booleans()),
        max_size=30,
    ),
    cuts=st.sets(st.integers(0, 30)),
)
def test_whenever_it_is_taken_the_sums_are_those_of_all_charges(
    charges: list[tuple[str, int, int, bool]], cuts: set[int]
) -> None:
    """Nothing is counted twice or lost between two states."""
    book, taken = UsageBook(), []
    for number, (tenant, arrived_us, output_tokens, is_operators) in enumerate(charges):
        payer = Payer.OPERATOR if is_operators else Payer.REQUEST
        book.add_charge(
            charge_of("a-1", tenant=tenant, arrived_us=arrived_us, output_tokens=output_tokens, payer=payer)
        )
        if number in cuts:
            taken += book.take()
    taken += book.take()
    by_tenant = dict.fromkeys(("a", "b", OPERATOR), 0)
    for row in taken:
        by_tenant[str(row[1])] += int(str(row[1 + len(GROUPS) + SUMS.index("output_tokens")]))
    expected = dict.fromkeys(by_tenant, 0)
    for tenant, _, output_tokens, is_operators in charges:
        expected[OPERATOR if is_operators else tenant] += output_tokens
    assert expected == by_tenant
