"""The rows: their texts are canonical, defaults are left out, every kind has its word and its id, nothing is lost."""

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting import rows
from scheduler.accounting.rows import (
    DECODERS,
    OPERATOR,
    AnyRow,
    Changed,
    Charge,
    Correction,
    Daily,
    Energy,
    Genesis,
    Hold,
    Judged,
    Opened,
    Prices,
    Row,
    Void,
    Window,
    decode,
    encode,
    request_id_of,
)
from scheduler.core.actions import Payer
from tests.ledger_words import charge_of, energy_of, hold_of, judged
from tests.scripted_link import window_of
from workers.types import Grade, Outcome

KINDS: list[tuple[str, str, Row]] = [
    ("genesis", "l", Genesis(ledger_id="l", origin="o", public_key="k", statement="s")),
    ("opened", "7", Opened(epoch=7, version="1", statement="s")),
    ("hold", "req-a", hold_of("req-a", zones=["hall"])),
    ("void", "req-a", Void(request_id="req-a", tenant="alpha", cause="client_gone")),
    ("charge", "req-a-2", charge_of("req-a-2", output_digests=["ab", "cd"], first_byte_s=1.5)),
    ("energy", "req-a-1", energy_of("req-a-1", budget_mj=5, grade=Grade.B)),
    (
        "window",
        "w-0/life-1/3",
        Window(worker_id="w-0", incarnation="life-1", number=3, window=window_of(("a-1", 5, 1))),
    ),
    ("outcome", "o-1", judged("o-1")),
    ("prices", "2026/1", Prices(version="2026/1", text="m: {input: 1}\n")),
    ("change", "c-1", Changed(change_id="c-1", fields={"what": "key_created", "values": {"a": [1, None]}})),
    ("correction", "x-1", Correction(correction_id="x-1", of_seq=3, reason="twice", actor="ops")),
    ("daily", "3", Daily(from_seq=3, to_seq=9, day="2026-11-27", num_rows=6)),
]


@pytest.mark.parametrize(("kind", "row_id", "row"), KINDS, ids=[kind for kind, _, _ in KINDS])
def test_a_row_of_every_kind_is_read_as_it_was_written(kind: str, row_id: str, row: Row) -> None:
    """By its word, which the text begins with; the same again is the same text."""
    text = encode(row)
    assert (kind, row_id) == (row.kind, row.row_id)
    assert text.startswith(b'{"kind":"%s"' % kind.encode())
    assert row == decode(text) == DECODERS[kind].decode(text)
    assert text == encode(decode(text))


def test_every_kind_is_in_this_test_and_known_by_its_word() -> None:
    """One that is added cannot be forgotten."""
    assert {type(row) for _, _, row in KINDS} == set(typing.get_args(AnyRow))
    assert {kind for kind, _, _ in KINDS} == set(DECODERS)


def test_a_row_knows_no_other_kinds_text() -> None:
    """Who reads by the kind's word finds a text that lies about it."""
    text = encode(hold_of("req-a"))
    with pytest.raises(msgspec.ValidationError, match="kind"):
        DECODERS["void"].decode(text)
    with pytest.raises(msgspec.ValidationError, match="kind"):
        decode(text.replace(b'"hold"', b'"held"'))
    with pytest.raises(NotImplementedError):
        _ = Row().row_id


def test_what_is_usual_is_not_written() -> None:
    """A text has what differs from its default: a ledger of millions of rows is read by people too."""
    row = Void(request_id="req-a", tenant="alpha", cause="gone", seq=3, at_us=5)
    assert b'{"kind":"void","seq":3,"at_us":5,"request_id":"req-a","tenant":"alpha","cause":"gone"}' == encode(row)
    assert b"legs" not in encode(Opened(epoch=1, version="1", statement="s"))


def test_lists_of_a_row_are_its_own() -> None:
    """No two rows share their legs."""
    first, second = hold_of("req-a"), hold_of("req-b")
    first.legs.append(("a", "b", 1))
    assert [] == second.legs


def test_who_pays_is_the_account() -> None:
    """The tenant, or the house."""
    assert ("alpha", OPERATOR) == (charge_of("a-1").account, charge_of("a-1", payer=Payer.OPERATOR).account)


@pytest.mark.parametrize(
    ("attempt_id", "expected"), [("req-abc-2", "req-abc"), ("req-a-b-13", "req-a-b"), ("a", ""), ("", "")]
)
def test_an_attempt_names_its_request(attempt_id: str, expected: str) -> None:
    assert expected == request_id_of(attempt_id)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"kind":"void"}',
        b'{"kind":"void","request_id":"a","tenant":"t","cause":7}',
        b'{"kind":"void","request_id":"a","tenant":"t","cause":"c","seq":1.5}',
        b'{"kind":"void","request_id":"a","tenant":"t","cause":"c","legs":[["a","b"]]}',
        b'{"kind":"void","request_id":"a","tenant":"t","cause":"c"}{',
        b'{"kind":"window","worker_id":"w","incarnation":"i","number":1,"window":{}}',
    ],
)
def test_what_is_no_row_is_refused(text: bytes) -> None:
    """With the one error that readers expect."""
    with pytest.raises(msgspec.DecodeError):
        decode(text)


TEXTS = st.text(max_size=20)
BIG = st.integers(-(2**63), 2**63 - 1)
BIG_AMOUNT = st.integers(0, 2**63 - 1)


@given(
    tenant=TEXTS,
    cause=TEXTS,
    amounts=st.lists(BIG_AMOUNT, min_size=6, max_size=6),
    legs=st.lists(st.tuples(TEXTS, TEXTS, BIG), max_size=4),
    times=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
)
def test_nothing_is_lost_on_the_way(tenant: str, cause: str, amounts: list[int], legs: Any, times: list[float]) -> None:
    """Every text, every integer of 64 bits, every float, exactly."""
    row = Charge(
        request_id="a", attempt_id="a-1", tenant=tenant, model="m", worker_id="w", outcome=Outcome.FAILED, cause=cause,
        input_tokens=amounts[0], cached_tokens=amounts[1], output_tokens=amounts[2], cost_nano=amounts[3],
        provisional_mj=amounts[4], provisional_gpu_us=amounts[5], started_s=times[0], first_byte_s=times[1], legs=legs,
    )  # fmt: skip
    again = decode(encode(row))
    assert row == again
    assert encode(row) == encode(again)
    assert encode(row).decode().encode() == encode(row)


@pytest.mark.parametrize("kind", [Hold, Charge, Energy, Window, Judged, Changed, Prices, Genesis, Void])
def test_no_row_has_a_place_for_a_text_of_a_client(kind: type[Row]) -> None:
    """Salted digests are all that is known of prompts and answers."""
    fields = {field.name for field in msgspec.structs.fields(kind)}
    assert not fields & {"prompt", "messages", "body", "answer", "input", "output", "output_text", "content", "key"}


def test_the_operators_name_is_none_that_a_tenant_can_have() -> None:
    """Its account stands beside theirs."""
    assert "(" in rows.OPERATOR
