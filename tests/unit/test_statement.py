"""The statement, its twin in the package and its vectors say what the code does; other systems can run the vectors."""

import base64
import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scheduler.accounting import merkle, postings
from scheduler.accounting.checkpoints import PublicKey, Signer
from scheduler.accounting.receipts import Receipt, check_receipt
from scheduler.accounting.rows import AnyRow, Charge, Energy, Hold, Window
from scheduler.core.attempts import Attempt as CoreAttempt
from scheduler.core.attempts import Entry
from scheduler.core.budget_windows import Window as BudgetWindow
from scheduler.core.cluster import Cluster
from scheduler.core.energy_bounds import EnergyBounds
from scheduler.core.request import CostPlus, Rates, SpecialTokens
from scheduler.statement import STATEMENT, statement
from tests.core_words import request, view
from workers.attempts import Attempt, usage_of
from workers.attribution import Attribution
from workers.curve import Curve
from workers.digests import asked_of, stated_of
from workers.engine_model import EngineModel
from workers.engines.tokenizer import TOKENIZER_FILES, tokenizer_digest
from workers.rounding import largest_remainder
from workers.shapley import POLICIES, Batch, split
from workers.step_curves import StepCurves
from workers.steps import StepRecord
from workers.types import Call, Grade, Outcome, SequenceUsage, WindowRecord

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "docs" / "measurement" / "vectors"
DOCUMENT = (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8")
TABLES = statement()["tables"]
AMOUNT = re.compile(r".*(_tokens|_bytes|_nano|_mj|_gpu_us|_ug|gpu_us)|token_difference|rates|shares|causes")

Case = dict[str, Any]


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    return loaded


def cases(name: str) -> pytest.MarkDecorator:
    """One test for each case of a file."""
    found = load(name)["cases"]
    return pytest.mark.parametrize("case", found, ids=[case.get("name", str(n)) for n, case in enumerate(found)])


def column(table: str, name: str) -> list[str]:
    return [row[name].strip("`") for row in TABLES[table]]


# -- the document and its twin


def documents_tables() -> dict[str, list[dict[str, str]]]:
    """Every table behind a marked line, cell by cell."""
    found = {}
    for name, block in re.findall(r"^<!-- table: (\w+) -->\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        found[name] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


def test_the_document_and_its_twin_say_the_same() -> None:
    """Version, names, units and rules, word for word."""
    assert TABLES == documents_tables()
    assert STATEMENT == statement()["statement"]
    assert f"# Measurement statement `{STATEMENT}`" == DOCUMENT.splitlines()[0]
    assert (ROOT / statement()["document"]).is_file()


def test_every_vector_file_is_listed_in_its_section_and_is_of_this_version() -> None:
    files = {path.name: load(path.name) for path in VECTORS.glob("*.json")}
    assert {row["file"]: row["section"] for row in TABLES["vectors"]} == {n: f["section"] for n, f in files.items()}
    assert {STATEMENT} == {file["statement"] for file in files.values()}
    assert all(f"\n## {file['section']} " in DOCUMENT for file in files.values())
    assert max(len(json.dumps(file)) for file in files.values()) < 20_000


def test_every_amount_of_a_row_is_named() -> None:
    """With the row it is in: a new one needs its unit, its place of counting and its rule."""
    fields = {
        f"{place}.{name}"
        for place, struct in (
            ("hold", Hold), ("charge", Charge), ("energy", Energy), ("window", Window), ("window.window", WindowRecord)
        )
        for name in struct.__struct_fields__
        if AMOUNT.fullmatch(name)
    }  # fmt: skip
    assert fields == set(column("amounts", "field"))
    assert set(column("amounts", "unit")) <= {*column("units", "unit"), "mJ, GPU-µs"}


def test_names_are_the_codes() -> None:
    """Kinds of rows, grades, policies, payers, the tokenizer's files."""
    kinds = {str(struct.__struct_config__.tag) for struct in AnyRow.__args__}
    assert kinds == set(column("rows", "kind"))
    assert list(Grade) == column("grades", "grade")
    assert [*POLICIES, "given_up"] == column("policies", "policy")
    assert set(column("payers", "payer")) == {"request", "operator"}
    listed = re.search(r"in this order: (.*?) \(the form", DOCUMENT, re.DOTALL)
    assert listed is not None
    assert list(TOKENIZER_FILES) == re.findall(r"`([^`]+)`", listed[1])
    assert {"mJ", "gpu_us", "ugCO2e"} == {postings.MILLIJOULES, postings.GPU_MICROSECONDS, postings.CARBON}
    assert all(f"legs `{unit}`" in row["of"] for unit in ("mJ", "gpu_us", "ugCO2e") for row in [_unit_row(unit)])


def _unit_row(unit: str) -> dict[str, str]:
    return next(row for row in TABLES["units"] if f"legs `{unit}`" in row["of"])


def test_accounts_are_those_that_legs_move() -> None:
    used = {leg[0] for case in load("legs.json")["cases"] for leg in case["expected"]["legs"]}
    named = {re.sub(r"/T$", "", re.sub(r"/W", "", name)) for name in column("accounts", "account")}
    assert {account.partition("/")[0] for account in used} == named


# -- 3, 4, 5: tokens, money, rounding


def billed(case: Case) -> dict[str, Any]:
    sequences = tuple(
        msgspec.convert({"engine_request_id": str(n), **each}, SequenceUsage)
        for n, each in enumerate(case["given"]["sequences"])
    )
    attempt = Attempt(call=Call(attempt_id="req-a-1", path="/", body=b"{}"), started_s=0.0, sequences=sequences)
    usage = usage_of(attempt, provisional=(0, 0))
    differences = [sequence.token_difference for sequence in sequences]
    return {**{name: getattr(usage, name, 0) for name in usage.__struct_fields__}, "differences": differences}


@cases("billed_tokens.json")
def test_what_an_attempt_is_billed(case: Case) -> None:
    assert case["expected"] == {name: billed(case)[name] for name in case["expected"]}


@cases("token_classes.json")
def test_parts_of_input_and_output(case: Case) -> None:
    assert case["expected"] == {name: billed(case)[name] for name in case["expected"]}


@cases("payers.json")
def test_who_pays(case: Case) -> None:
    given = case["given"]
    entry = Entry(request=request(), place=1, waits_since_s=0.0)
    attempt = CoreAttempt(
        attempt_id="r-1", entry=entry, worker=Cluster().update(view(), 0.0), started_s=0.0, last_sign_s=0.0,
        prompt_tokens=1, expected_tokens=1,
    )  # fmt: skip
    entry.attempt = None if given["is_taken_over"] else attempt
    attempt.has_first_byte = given["has_first_byte"]
    entry.cancel_reason = given["cancelled_by"] or ""
    entry.is_cancelled_by_client = given["cancelled_by"] == "client"
    assert case["expected"]["payer"] == attempt.payer(Outcome(given["outcome"]))


@cases("tokenizer.json")
def test_the_digest_of_a_tokenizer(case: Case, tmp_path: Path) -> None:
    for name, content in case["given"]["files"].items():
        (tmp_path / name).write_bytes(content.encode())
    assert case["expected"]["digest"] == tokenizer_digest(tmp_path)


def tokens_of(given: Case) -> dict[str, int]:
    return {name: given[name] for name in ("input_tokens", "cached_tokens", "output_tokens")}


@cases("cost.json")
def test_what_tokens_cost(case: Case) -> None:
    assert case["expected"]["cost_nano"] == Rates(**case["given"]["rates"]).cost_nano(**tokens_of(case["given"]))


@cases("cost_classes.json")
def test_what_parts_cost(case: Case) -> None:
    given, tokens = case["given"], tokens_of(case["given"])
    parts = {part: given[f"{part}_tokens"] for part in ("reasoning", "image", "audio")}
    special = SpecialTokens.of(tokens["input_tokens"] - tokens["cached_tokens"], **parts)
    assert case["expected"]["cost_nano"] == Rates(**given["rates"]).cost_nano(**tokens, special=special)


@cases("cost_plus.json")
def test_what_energy_and_gpu_time_cost(case: Case) -> None:
    given = dict(case["given"])
    rates = Rates(plus=CostPlus(**given.pop("plus")))
    assert case["expected"]["cost_nano"] == rates.cost_plus_nano(**given)


@cases("rounding.json")
def test_integers_add_up(case: Case) -> None:
    given, parts = case["given"], case["expected"]["parts"]
    assert given["total"] == sum(parts)
    assert parts == largest_remainder(np.array(given["amounts"], dtype=float), given["total"]).tolist()


# -- 6, 7, 8: energy, texts, windows


@cases("carbon.json")
def test_carbon_of_energy(case: Case) -> None:
    bounds = EnergyBounds(carbon_ug_per_mj={"z": case["given"]["gco2e_per_kwh"] / 3600})
    assert case["expected"]["carbon_ug"] == bounds.carbon_ug("z", case["given"]["energy_mj"])


@cases("step_split.json")
def test_a_step_is_split(case: Case) -> None:
    """By the code, and by every order of arrival."""
    given, shares = case["given"], case["expected"]["shares"]
    curve, features = Curve(**given["curve"]), np.array(given["rows"], dtype=float)
    batch = Batch(features=features, owner=np.zeros(len(features), dtype=np.int64), num_steps=1)
    assert shares == pytest.approx(split(batch, curve, given["policy"]).tolist(), rel=1e-9)
    if given["policy"] == "shapley":
        assert shares == pytest.approx(mean_marginals(curve, features), rel=1e-9)


def mean_marginals(curve: Curve, features: Any) -> list[float]:
    weights = curve.weights(features)
    players = [row for row, (prefill, decode, _) in enumerate(features) if prefill + decode > 0]
    shares, orders = [0.0] * len(features), list(permutations(players))
    for order in orders:
        summed, cost = 0.0, 0.0
        for row in order:
            summed += float(weights[row])
            cost, before = curve.base + curve.pivot * (summed / curve.pivot) ** curve.exponent, cost
            shares[row] += (cost - before) / len(orders)
    return shares


@cases("window_split.json")
def test_every_millijoule_of_a_window_has_its_place(case: Case) -> None:
    given, expected = case["given"], case["expected"]
    prior = StepCurves(
        time_s=tuple(given["time_s"]), energy_joules=tuple(given["energy_joules"]), idle_watts=given["idle_watts"]
    )
    attribution = Attribution(model=EngineModel(prior=prior), num_gpus=given["num_gpus"])
    for number, step in enumerate(given["steps"]):
        attribution.add_step(step_of(number, step))
    found = attribution.close_window(
        started_s=given["started_s"], ended_s=given["ended_s"], meter_mj=given["meter_mj"], learn=False
    )
    shares = {name: list(share) for name, share in found.shares.items()}
    told = {name: getattr(found, name) for name in expected if name not in ("shares", "causes")}
    assert expected == {**told, "shares": shares, "causes": dict(found.causes)}
    parts = (expected["idle_mj"], expected["overhead_mj"], expected["unattributed_mj"])
    assert given["meter_mj"] == sum(parts) + sum(energy_mj for energy_mj, _ in shares.values())
    assert expected["busy_gpu_us"] == expected["overhead_gpu_us"] + sum(gpu_us for _, gpu_us in shares.values())


def step_of(number: int, step: Case) -> StepRecord:
    columns = {
        f"{name}_tokens": np.array([row.get(key, 0) for row in step["rows"]], dtype=np.int64)
        for name, key in (("prefill",) * 2, ("decode",) * 2, ("context",) * 2, ("recomputed",) * 2)
    }
    payers = tuple(row["payer"] for row in step["rows"])
    return StepRecord(step=number, started_s=step["started_s"], ended_s=step["ended_s"], payers=payers, **columns)


@cases("asked.json")
def test_bytes_and_digest_of_what_was_asked(case: Case) -> None:
    given, expected = case["given"], case["expected"]
    canonical, salt = expected["canonical"], bytes.fromhex(given["salt"])
    assert expected["digest"] == ("" if canonical is None else hashlib.sha256(salt + canonical.encode()).hexdigest())
    assert (expected["num_bytes"], expected["digest"]) == asked_of(salt, given["body"].encode())


@cases("answered.json")
def test_bytes_and_digest_of_what_was_answered(case: Case) -> None:
    given, expected = case["given"], case["expected"]
    salt, text = bytes.fromhex(given["salt"]), given["text"].encode("utf-8", "surrogatepass")
    assert expected == {"num_bytes": len(text), "digest": hashlib.sha256(salt + text).hexdigest()}
    assert (expected["num_bytes"], expected["digest"]) == stated_of(salt, text)


@cases("budget_windows.json")
def test_the_slot_of_a_moment(case: Case) -> None:
    window = BudgetWindow.parse(case["given"]["window"])
    slot = window.slot_of(case["given"]["at_us"])
    assert case["expected"] == {"starts_us": window.start_us(slot), "free_us": window.free_us(slot)}


# -- 9: rows, tree, checkpoints, receipts


def legs_by_code(given: Case) -> Iterable[Any]:
    """As rows are written."""
    hold = None if given.get("hold") is None else msgspec.convert(given["hold"], Hold)
    if "charge" in given:
        return postings.charge_legs(msgspec.convert(given["charge"], Charge), hold)
    if "energy" in given:
        row = msgspec.convert(given["energy"], Energy)
        names = ("energy_mj", "gpu_us", "carbon_ug", "cost_nano", "currency")
        return postings.energy_legs(row.worker_id, row.account, **{name: getattr(row, name) for name in names})
    if "window" in given:
        record, worker_id = msgspec.convert(given["window"], WindowRecord), given["worker_id"]
        is_calibration = record.calibrating and not record.shares
        legs = postings.window_legs(worker_id, record, is_calibration=is_calibration)
        for attempt_id, energy_mj, gpu_us in record.shares:
            if (account := given["closed"].get(attempt_id)) is not None:
                legs += postings.energy_legs(worker_id, account, energy_mj=energy_mj, gpu_us=gpu_us)
        return legs
    assert hold is not None
    return postings.void_legs(hold) if "void" in given else postings.hold_legs(hold)


def sums_by_hand(given: Case) -> dict[tuple[str, str], int]:
    """The same from the statement's words: what each account gets, whatever the order."""
    sums: dict[tuple[str, str], int] = {}

    def move(source: str, target: str, unit: str, amount: int) -> None:
        for account, signed in ((source, -amount), (target, amount)):
            sums[account, unit] = sums.get((account, unit), 0) + signed

    fact = given.get("charge") or given.get("energy") or given.get("hold") or {}
    hold = given.get("hold") or {}
    if "window" in given:
        move_window(given, move)
    elif "energy" in given:
        source, target = f"in_flight/{fact['worker_id']}", f"requests/{fact['worker_id']}/{fact['account']}"
        move(source, target, "mJ", fact["energy_mj"])
        move(source, target, "gpu_us", fact["gpu_us"])
        move(f"grid/{fact['worker_id']}", target, "ugCO2e", fact.get("carbon_ug", 0))
        move(
            f"drawn/{fact['account']}", f"used/{fact['account']}", fact.get("currency", "USD"), fact.get("cost_nano", 0)
        )
    else:
        payer = "(operator)" if fact.get("payer") == "operator" else fact["tenant"]
        drawn, held, used = (f"{kind}/{payer}" for kind in ("drawn", "held", "used"))
        currency = fact.get("rates", [0, 0, 0, "USD"])[3]
        for unit, name in (("input_tokens",) * 2, ("output_tokens",) * 2, (currency, "cost_nano")):
            amount = hold.get(name, 0)
            if "charge" in given:
                move(held, drawn, unit, amount)
                move(drawn, used, unit, fact[name])
            else:
                move(*((held, drawn) if "void" in given else (drawn, held)), unit, amount)
        move(drawn, used, "cached_tokens", fact.get("cached_tokens", 0))
    return {key: amount for key, amount in sums.items() if amount}


def move_window(given: Case, move: Callable[[str, str, str, int], None]) -> None:
    worker_id, record = given["worker_id"], given["window"]
    meter = f"meter/{worker_id}"
    if record.get("calibrating") and not record["shares"]:
        move(meter, f"calibration/{worker_id}", "mJ", record["meter_mj"])
        move(meter, f"calibration/{worker_id}", "gpu_us", record["busy_gpu_us"])
        return
    for kind in ("idle", "overhead", "unattributed", "in_flight"):
        move(meter, f"{kind}/{worker_id}", "mJ", record[f"{kind}_mj"])
    move(meter, f"overhead/{worker_id}", "gpu_us", record["overhead_gpu_us"])
    for attempt_id, energy_mj, gpu_us in record["shares"]:
        move(meter, f"in_flight/{worker_id}", "gpu_us", gpu_us)
        if attempt_id in given["closed"]:
            target = f"requests/{worker_id}/{given['closed'][attempt_id]}"
            move(f"in_flight/{worker_id}", target, "mJ", energy_mj)
            move(f"in_flight/{worker_id}", target, "gpu_us", gpu_us)


@cases("legs.json")
def test_legs_of_a_fact(case: Case) -> None:
    """In their order, balanced, and what the words say."""
    legs = [tuple(leg) for leg in case["expected"]["legs"]]
    assert legs == list(legs_by_code(case["given"]))
    assert {} == postings.differences(legs)
    sums: dict[tuple[str, str], int] = {}
    for account, unit, amount in legs:
        sums[account, unit] = sums.get((account, unit), 0) + amount
    assert {key: amount for key, amount in sums.items() if amount} == sums_by_hand(case["given"])


def subtree(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + subtree(leaves[:left]) + subtree(leaves[left:])).digest()


def test_the_tree() -> None:
    """Leaves, roots and proofs, by the code and by the RFC's own words."""
    file = load("tree.json")["cases"]
    bodies = [body.encode() for body in file[0]["given"]["bodies"]]
    leaves = [hashlib.sha256(b"\x00" + body).digest() for body in bodies]
    assert (
        file[0]["expected"]["leaves"] == [leaf.hex() for leaf in leaves] == [merkle.leaf_hash(b).hex() for b in bodies]
    )
    tree, roots = merkle.Tree(), [merkle.EMPTY_ROOT]
    for leaf in leaves:
        tree.append(leaf)
        roots.append(tree.root())
    expected = [bytes.fromhex(root) for root in file[1]["expected"]["roots"]]
    assert expected == roots == [subtree(leaves[:size]) for size in range(len(leaves) + 1)]
    for case in file[2:]:
        given, proof = case["given"], [bytes.fromhex(each) for each in case["expected"]["proof"]]
        size = given["size"]

        def hashes(level: int, start: int, count: int) -> list[bytes]:
            assert level == 0
            return leaves[start : start + count]

        if case["name"] == "inclusion":
            assert proof == merkle.inclusion_proof(given["index"], size, hashes)
            leaf = leaves[given["index"]]
            assert expected[size] == merkle.root_of_inclusion(leaf, given["index"], size, proof)
        else:
            old_size = given["old_size"]
            assert proof == merkle.consistency_proof(old_size, size, hashes)
            assert merkle.is_consistent(old_size, expected[old_size], size, expected[size], proof)


@cases("checkpoint.json")
def test_checkpoints(case: Case) -> None:
    """Signed to the byte, by the code and by hand; refused where they are not."""
    given, expected = case["given"], case["expected"]
    if "note" in given:
        key = PublicKey.parse(given["public_key"])
        if expected["is_valid"]:
            key.verify(given["note"])
        else:
            with pytest.raises(ValueError, match="checkpoint"):
                key.verify(given["note"])
        return
    seed, root, origin = bytes.fromhex(given["seed"]), bytes.fromhex(given["root"]), given["origin"]
    signer = Signer(origin, seed)
    assert (expected["public_key"], expected["note"]) == (str(signer.public_key), signer.sign(given["size"], root))
    secret = Ed25519PrivateKey.from_private_bytes(seed)
    public = secret.public_key().public_bytes_raw()
    key_hash = hashlib.sha256(origin.encode() + b"\n\x01" + public).digest()[:4]
    text = f"{origin}\n{given['size']}\n{base64.b64encode(root).decode()}\n"
    signature = base64.b64encode(key_hash + secret.sign(text.encode())).decode()
    assert (expected["text"], expected["note"]) == (text, f"{text}\n\u2014 {origin} {signature}\n")
    assert expected["public_key"] == f"{origin}+{key_hash.hex()}+{base64.b64encode(bytes([1]) + public).decode()}"


@cases("receipt.json")
def test_receipts(case: Case) -> None:
    """The whole one holds; with one thing changed it does not."""
    changed = copy.deepcopy(load("receipt.json")["receipt"])
    for path, value in case["given"]["changes"]:
        place = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
    receipt = msgspec.convert(changed, Receipt)
    key = case["given"]["key"]
    trusted = None if key is None else PublicKey.parse(key)
    if case["expected"]["is_valid"]:
        check_receipt(receipt, key=trusted)
        return
    with pytest.raises(ValueError):
        check_receipt(receipt, key=trusted)


def test_a_receipts_price_can_be_computed_again() -> None:
    """From its own rows alone: the rates that were pinned, and the tokens."""
    receipt = load("receipt.json")["receipt"]
    hold, charge, _ = (json.loads(row["body"]) for row in receipt["rows"])
    rates = charge["rates"]
    assert rates == hold["rates"]
    parts = (charge["input_tokens"] - charge["cached_tokens"]) * rates[0]
    parts += charge["cached_tokens"] * rates[1] + charge["output_tokens"] * rates[2]
    assert math.ceil(parts / 10**6) == charge["cost_nano"] == receipt["summary"]["cost_nano"]
