"""A receipt proves its rows to whoever has the key, and nothing of it can be changed; others' are as if never made."""

import hashlib
from collections.abc import Callable
from contextlib import closing
from typing import Any

import msgspec
import pytest

from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.postings import charge_legs
from scheduler.accounting.receipts import OfAnotherTenant, Proven, Receipt, check_receipt, make_receipt, matches
from scheduler.accounting.rows import Correction
from scheduler.core.actions import Payer
from tests.ledger_words import (
    OTHER_SEED,
    RATES,
    STATEMENT,
    Life,
    Traffic,
    charge_of,
    hold_of,
    living,
    request_id,
)
from tests.scripted_link import posting_of, window_of
from workers.types import Outcome

ID, FOREIGN = request_id(1_000_001), request_id(1_000_002)
SALT = bytes(range(16))


def digest_of(text: str) -> str:
    return hashlib.sha256(SALT + text.encode()).hexdigest()


def serve(life: Life, name: str = ID, **fields: Any) -> None:
    """A first try in vain, a second one that answers; charged, not measured yet."""
    settlement = life.settlement
    settlement.hold(hold_of(name, project="p", key_id="k", **fields))
    settlement.window(
        "w-0", window_of((f"{name}-1", 30, 3), (f"{name}-2", 100, 10)), number=settlement.journal.next_seq
    )
    settlement.charge(charge_of(f"{name}-1", payer=Payer.OPERATOR, outcome=Outcome.FAILED, project="p", **fields))
    settlement.charge(
        charge_of(
            f"{name}-2", project="p", key_id="k", zone="hall", provisional_mj=90, provisional_gpu_us=9,
            salt=SALT.hex(), input_digest=digest_of('"question"'), output_digests=[digest_of("a"), digest_of("b")],
            **fields,
        )
    )  # fmt: skip


def post(life: Life, name: str = ID) -> None:
    for number in (1, 2):
        life.settlement.post_energy("w-0", posting_of(f"{name}-{number}"))


def got(life: Life, name: str = ID, **options: Any) -> Receipt:
    """Through the text that goes over the wire."""
    receipt = make_receipt(life.ledger, name, statement=STATEMENT, **options)
    assert receipt is not None
    return msgspec.json.decode(msgspec.json.encode(receipt), type=Receipt)


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> tuple[Receipt, PublicKey]:
    """A final receipt among 600 other rows, so that its proofs have stored nodes in them."""
    with living(f"sqlite:///{tmp_path_factory.mktemp('receipts') / 'ledger.db'}") as life:
        Traffic(life.settlement).fill(300)
        serve(life)
        serve(life, FOREIGN, tenant="beta")
        post(life)
        Traffic(life.settlement, seed=1, first_request=5_000).fill(600)
        life.commit()
        return got(life), life.ledger.signer.public_key


def changed(receipt: Receipt, **fields: Any) -> Receipt:
    return msgspec.structs.replace(receipt, **fields)


# -- made


def test_a_provisional_receipt_becomes_final(ledger_url: str) -> None:
    """The same rows, and behind them what was measured; each is good by itself, also when the ledger has grown."""
    with living(ledger_url) as life:
        serve(life)
        life.commit()
        first = got(life)
        post(life)
        life.commit()
        second = got(life)
        key = life.ledger.signer.public_key
        Traffic(life.settlement).fill(300)
        life.commit()
        for receipt in (first, second, got(life)):
            check_receipt(receipt, key=key)
    assert (False, True) == (first.is_final, second.is_final)
    assert [proven.body for proven in first.rows] == [proven.body for proven in second.rows][:3]
    assert (3, 5) == (len(first.rows), len(second.rows))
    told = [[attempt[name] for name in ("energy_mj", "gpu_us", "is_measured")] for attempt in first.summary["attempts"]]
    assert [[0, 0, False], [90, 9, False]] == told
    told = [
        [attempt[name] for name in ("energy_mj", "gpu_us", "is_measured")] for attempt in second.summary["attempts"]
    ]
    assert [[30, 3, True], [100, 10, True]] == told


def test_a_summary_tells_what_was_used_and_who_pays(final: tuple[Receipt, PublicKey]) -> None:
    """Work in vain is in it and costs nothing."""
    summary, cost_nano = final[0].summary, charge_of("a-1").cost_nano
    expected = {
        "tenant": "alpha", "project": "p", "key_id": "k", "model": "m", "tier": "default", "data_class": "general",
        "currency": "USD", "price": RATES.version, "cost_nano": cost_nano,
    }  # fmt: skip
    assert expected == {name: summary[name] for name in expected}
    vain, paid = summary["attempts"]
    assert ("operator", "failed", 0) == (vain["payer"], vain["outcome"], vain["cost_nano"])
    assert ("request", "completed", cost_nano, "hall", "A", "shapley", True) == tuple(
        paid[name] for name in ("payer", "outcome", "cost_nano", "zone", "grade", "policy", "is_complete")
    )
    assert STATEMENT == final[0].statement


def test_what_is_not_durable_has_no_receipt(ledger_url: str) -> None:
    """Nothing is said that a crash could take back."""
    with living(ledger_url) as life:
        life.commit()
        serve(life)
        assert None is make_receipt(life.ledger, ID, statement=STATEMENT)
        life.commit()
        post(life)
        assert not got(life).is_final


def test_a_foreign_receipt_is_nobody_elses(ledger_url: str) -> None:
    """A tenant gets its own; the operator gets all. What is foreign is told apart for the audit log alone."""
    foreign = {(ID, "beta"), (FOREIGN, "alpha"), (ID, "")}
    with living(ledger_url) as life:
        serve(life, ID, tenant="alpha")
        serve(life, FOREIGN, tenant="beta")
        life.commit()
        for name, tenant, is_there in (
            (ID, "alpha", True), (ID, "beta", False), (FOREIGN, "alpha", False), (FOREIGN, "beta", True),
            (ID, None, True), (FOREIGN, None, True), (ID, "", False), (request_id(9), "alpha", False),
            (request_id(9), None, False), ("", "alpha", False), ("%", None, False), ("req-", None, False),
        ):  # fmt: skip
            if (name, tenant) in foreign:
                with pytest.raises(OfAnotherTenant):
                    make_receipt(life.ledger, name, statement=STATEMENT, tenant=tenant)
                continue
            receipt = make_receipt(life.ledger, name, statement=STATEMENT, tenant=tenant)
            assert is_there == (receipt is not None), (name, tenant)


def test_a_request_that_was_given_back_has_a_receipt_too(ledger_url: str) -> None:
    """Nothing was charged; it is never final, for nothing is to come."""
    with living(ledger_url) as life:
        life.settlement.hold(hold_of(ID))
        life.settlement.release(ID, "deadline_exceeded")
        life.commit()
        receipt = got(life)
        check_receipt(receipt, key=life.ledger.signer.public_key)
    assert (False, [], 0) == (receipt.is_final, receipt.summary["attempts"], receipt.summary["cost_nano"])


# -- changed


def test_every_character_of_what_proves_it_is_needed(final: tuple[Receipt, PublicKey]) -> None:
    """Of each row, each proof, the checkpoint and the key."""
    receipt, key = final
    check_receipt(receipt, key=key)
    num_tried = 0

    def refused(text: str, changed_to: Callable[[str], Receipt]) -> None:
        nonlocal num_tried
        for place, character in enumerate(text):
            other = chr(ord(character) ^ 1)
            with pytest.raises(ValueError, match=r"."):
                check_receipt(changed_to(text[:place] + other + text[place + 1 :]))
            num_tried += 1

    def with_row(number: int, **fields: Any) -> Receipt:
        rows = list(receipt.rows)
        rows[number] = msgspec.structs.replace(rows[number], **fields)
        return changed(receipt, rows=rows)

    for number, proven in enumerate(receipt.rows):
        refused(proven.body, lambda text, number=number: with_row(number, body=text))  # type: ignore[misc]
        for place, step in enumerate(proven.proof):

            def with_step(text: str, number: int = number, place: int = place) -> Receipt:
                proof = list(receipt.rows[number].proof)
                proof[place] = text
                return with_row(number, proof=proof)

            refused(step, with_step)
        for seq in (proven.seq - 1, proven.seq + 1, -1, 10**9):
            with pytest.raises(ValueError, match=r"row|leaf|proof"):
                check_receipt(with_row(number, seq=seq))
        for proof in (proven.proof[:-1], proven.proof[1:], [*proven.proof, proven.proof[0]], []):
            with pytest.raises(ValueError, match=r"proof|not in the tree"):
                check_receipt(with_row(number, proof=proof))
    refused(receipt.checkpoint, lambda text: changed(receipt, checkpoint=text))
    refused(receipt.public_key, lambda text: changed(receipt, public_key=text))
    assert num_tried > 4_000


def test_the_spare_bits_of_a_proof_are_no_place_to_hide(final: tuple[Receipt, PublicKey]) -> None:
    """Base64 could spell the same hash otherwise; a proof has one text."""
    (first, *rest), key = final[0].rows, final[1]
    step = first.proof[0]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = step[:-2] + alphabet[alphabet.index(step[-2]) ^ 1] + "="
    for spelling in (other, step + "\n", " " + step, step.replace("=", "==")):
        row = msgspec.structs.replace(first, proof=[spelling, *first.proof[1:]])
        with pytest.raises(ValueError, match="cannot be read"):
            check_receipt(changed(final[0], rows=[row, *rest]), key=key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda receipt: {"format": "jouleway-receipt/2"}, "no receipt of the form"),
        (lambda receipt: {"request_id": FOREIGN}, "is not of this request"),
        (lambda receipt: {"rows": []}, "neither a hold nor a charge"),
        (lambda receipt: {"rows": receipt.rows[3:]}, "neither a hold nor a charge"),
        (lambda receipt: {"rows": receipt.rows[:1]}, "it says that it is final"),
        (lambda receipt: {"rows": receipt.rows[1:]}, "no hold of its request is open"),
        (lambda receipt: {"rows": receipt.rows[:-1]}, "it says that it is final"),
        (lambda receipt: {"rows": [*receipt.rows, receipt.rows[-1]]}, "it would count twice"),
        (lambda receipt: {"rows": receipt.rows[::-1]}, "is not behind the one before"),
        (lambda receipt: {"summary": {}}, "its summary is not"),
        (lambda receipt: {"summary": {**receipt.summary, "cost_nano": 0}}, "its summary is not"),
        (lambda receipt: {"summary": {**receipt.summary, "tenant": "beta"}}, "its summary is not"),
        (lambda receipt: {"summary": {**receipt.summary, "more": 1}}, "its summary is not"),
        (lambda receipt: {"rows": [Proven(seq=1, body="{}", proof=[])]}, "row 1 cannot be read"),
        (lambda receipt: {"rows": [Proven(seq=1, body="\x00", proof=[])]}, "row 1 cannot be read"),
        (lambda receipt: {"checkpoint": ""}, "not a checkpoint"),
        (lambda receipt: {"public_key": ""}, "not a public key"),
    ],
)
def test_what_its_rows_do_not_say_is_refused(
    final: tuple[Receipt, PublicKey], change: Callable[[Receipt], dict[str, Any]], words: str
) -> None:
    """With what is wrong."""
    with pytest.raises(ValueError, match=words):
        check_receipt(changed(final[0], **change(final[0])))


def test_a_charge_counts_once_whoever_writes_the_summary(final: tuple[Receipt, PublicKey]) -> None:
    """Each copy of its row is proven: the sum of both would be twice the bill."""
    receipt = final[0]
    rows = [receipt.rows[0], receipt.rows[1], receipt.rows[2], receipt.rows[2], *receipt.rows[3:]]
    attempts = receipt.summary["attempts"]
    summary = {**receipt.summary, "attempts": [*attempts, attempts[1]], "cost_nano": 2 * receipt.summary["cost_nano"]}
    with pytest.raises(ValueError, match="count twice"):
        check_receipt(changed(receipt, rows=rows, summary=summary))


def test_a_receipt_of_another_ledger_proves_nothing_here(final: tuple[Receipt, PublicKey], ledger_url: str) -> None:
    """It agrees with its own key, and not with the one that is trusted."""
    with living(ledger_url, seed=OTHER_SEED) as life:
        serve(life)
        life.commit()
        receipt = got(life)
        check_receipt(receipt)
        check_receipt(receipt, key=life.ledger.signer.public_key)
    with pytest.raises(ValueError, match=r"it is of the ledger of .*, not of the key that was given"):
        check_receipt(receipt, key=final[1])
    mixed = changed(final[0], checkpoint=receipt.checkpoint)
    with pytest.raises(ValueError, match=r"not signed by|signature is wrong"):
        check_receipt(mixed)


# -- traced


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [f"output 0 of {ID}-2"]),
        ("b", [f"output 1 of {ID}-2"]),
        ("question", [f"input of {ID}-2"]),
        (' "question"', [f"input of {ID}-2"]),
        ('{"model": "m", "prompt": "question"}', [f"input of {ID}-2"]),
        ('{"model": "m", "messages": "question"}', [f"input of {ID}-2"]),
        ('{"prompt": "another"}', []),
        ("{", []),
        ("a ", []),
        ("", []),
    ],
)
def test_a_text_is_found_by_who_holds_the_receipt(
    final: tuple[Receipt, PublicKey], text: str, expected: list[str]
) -> None:
    """Exactly that text: a blank more is another one. An attempt without digests matches nothing."""
    assert expected == matches(final[0], text.encode())


def test_a_reader_makes_the_same_receipt_as_the_writer(ledger_url: str) -> None:
    """Offline, from a copy."""
    with living(ledger_url) as life:
        serve(life)
        post(life)
        life.commit()
        with closing(Reader(ledger_url)) as reader:
            assert got(life) == make_receipt(reader, ID, statement=STATEMENT, tenant="alpha")


def corrected(life: Life, *legs: tuple[str, str, int]) -> Receipt:
    life.settlement.note(
        Correction(correction_id=f"{ID}-c1", of_seq=3, reason="a price was wrong", actor="root", legs=list(legs))
    )
    life.commit()
    return got(life)


def test_what_was_put_right_counts(ledger_url: str) -> None:
    """In the summary's sum too: the bill is what is left."""
    with living(ledger_url) as life:
        serve(life)
        post(life)
        life.commit()
        before = got(life).summary["cost_nano"]
        receipt = corrected(life, ("used/alpha", "USD", -5), ("drawn/alpha", "USD", 5))
        check_receipt(receipt, key=life.ledger.signer.public_key)
    assert before - 5 == receipt.summary["cost_nano"]
    assert [{"correction_id": f"{ID}-c1", "of_seq": 3, "reason": "a price was wrong", "cost_nano": -5}] == (
        receipt.summary["corrections"]
    )


def test_what_puts_right_must_balance_too(ledger_url: str) -> None:
    with living(ledger_url) as life:
        serve(life)
        with pytest.raises(ValueError, match="does not balance"):
            check_receipt(corrected(life, ("used/alpha", "USD", 5)))


def test_what_puts_right_bills_nothing_beside_the_price(ledger_url: str) -> None:
    """In another currency it would not be in the sum."""
    with living(ledger_url) as life:
        serve(life)
        receipt = corrected(life, ("used/alpha", "EUR", 5), ("drawn/alpha", "EUR", -5))
    with pytest.raises(ValueError, match="puts right another currency"):
        check_receipt(receipt)


def test_a_request_named_as_anothers_attempt_lends_it_no_hold(ledger_url: str) -> None:
    """Its hold is no row of that one, whose charge has none."""
    with living(ledger_url) as life:
        life.settlement.hold(hold_of(f"{ID}-2"))
        charge = charge_of(f"{ID}-2")
        charge.legs = charge_legs(charge, hold_of(f"{ID}-2"))
        life.settlement.note(charge)
        life.commit()
        receipt = got(life)
    with pytest.raises(ValueError, match="is not of this request"):
        check_receipt(receipt)
