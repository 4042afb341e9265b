"""`jouleway receipt` and `trace`: asked for, checked before anything is shown, and of exactly what was asked for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.receipts import MAX_RECEIPT_BYTES, make_receipt
from scheduler.commands import receipt as receipt_module
from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE, KEY_VARIABLE
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.receipt import RECEIPTS_PATH, read_file, read_public_key, run, run_trace
from tests.canned_http import Asked, Told, serving
from tests.ledger_words import LEDGER_ID, OTHER_SEED, SEED, STATEMENT, charge_of, hold_of, living, request_id
from tests.scripted_link import posting_of, window_of

ID, OTHER_ID = request_id(1), request_id(2)
SALT = bytes(16)
TEXT = "The answer — in full.\n"
KEY, OTHER_KEY = (Signer(f"jouleway/{LEDGER_ID}", seed).public_key for seed in (SEED, OTHER_SEED))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "tenant-key")
    monkeypatch.delenv(ADMIN_KEY_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """As the API gives them: a provisional and a final one of the same request, and another request's."""
    digest = hashlib.sha256(SALT + TEXT.encode()).hexdigest()
    made = {}
    with living(f"sqlite:///{tmp_path_factory.mktemp('receipts') / 'ledger.db'}") as life:
        for number, name in enumerate((ID, OTHER_ID), start=1):
            life.settlement.hold(hold_of(name, project="p", key_id="k"))
            life.settlement.window("w-0", window_of((f"{name}-1", 1_500, 250_000)), number=number)
            life.settlement.charge(
                charge_of(
                    f"{name}-1", project="p", key_id="k", zone="hall", salt=SALT.hex(),
                    output_digests=[digest] if name == ID else [],
                )
            )  # fmt: skip
        life.commit()
        made["provisional"] = msgspec.json.encode(make_receipt(life.ledger, ID, statement=STATEMENT))
        for name in (ID, OTHER_ID):
            life.settlement.post_energy("w-0", posting_of(f"{name}-1"))
        life.commit()
        made["final"] = msgspec.json.encode(make_receipt(life.ledger, ID, statement=STATEMENT))
        made["other"] = msgspec.json.encode(make_receipt(life.ledger, OTHER_ID, statement=STATEMENT))
    return made


def asked(request_id: str | None = None, **options: Any) -> ExitCode:
    values: dict[str, Any] = {"check": None, "output": None, "key": None, "url": None, "config": None, "as_json": False}
    return run(request_id, **{**values, **options})


def refused(request_id: str | None = None, **options: Any) -> CommandError:
    with pytest.raises(CommandError) as caught:
        asked(request_id, **options)
    return caught.value


# -- asked for


def test_a_tenant_gets_its_own_checked_and_shown(bodies: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """With its key; what it costs, what it took, how sure that is."""
    seen: list[Asked] = []
    with serving(lambda _: Told(body=bodies["final"]), seen=seen) as url:
        assert ExitCode.OK == asked(ID, url=url, key=str(KEY))
    assert [("GET", RECEIPTS_PATH + ID, "Bearer tenant-key")] == [
        (each.method, each.path, each.headers["authorization"]) for each in seen
    ]
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        f"{ID} (final)", "alpha, p, k", "m, default, general", "2026-11-01/0123abcd",
        f"{charge_of('a-1').cost_nano / 1e9:.9f} USD", f"{ID}-1 completed on w-0 (hall)",
        "90 in (30 cached), 40 out, paid by the request", "1.500 J, 0.250 GPU-seconds (grade A, shapley)",
        "3 rows, each proven to be in the tree that was signed", STATEMENT,
    ):  # fmt: skip
        assert words in said
    assert "NOT AUTHENTICATED" not in said


def test_a_provisional_one_says_so(bodies: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """And without a key that it proves nothing of who signed."""
    with serving(lambda _: Told(body=bodies["provisional"])) as url:
        asked(ID, url=url)
    said = " ".join(capsys.readouterr().out.split())
    assert "provisional: some energy is not measured yet" in said
    assert "predicted so far" in said
    assert "NOT AUTHENTICATED" in said


def test_an_operator_asks_the_admin_listener(bodies: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its key is the only one."""
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "admin-key")
    seen: list[Asked] = []
    with serving(lambda _: Told(body=bodies["final"]), seen=seen) as url:
        assert ExitCode.OK == asked(ID, url=url)
    assert ["Bearer admin-key"] == [each.headers["authorization"] for each in seen]


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        (Told(status=404, body={}), ExitCode.NOT_FOUND, "has no receipt of"),
        (Told(status=401, body={}), ExitCode.POLICY, "refuses the key"),
        (Told(status=503, body={}), ExitCode.FAILURE, "status 503"),
        (Told(body=b"no json"), ExitCode.UNAVAILABLE, "no control plane answers"),
        (Told(body={"format": "jouleway-receipt/1"}), ExitCode.VERIFICATION, "gave no receipt"),
        (None, ExitCode.UNAVAILABLE, "no control plane answers"),
    ],
)
def test_an_answer_that_is_none_is_told_by_its_exit_code(told: Told | None, code: ExitCode, words: str) -> None:
    """Nothing is shown."""
    with serving(lambda _: told) as url:
        error = refused(ID, url=url)
    assert (code, True) == (error.code, words in str(error))


def test_another_requests_receipt_is_no_answer(bodies: dict[str, bytes]) -> None:
    """However sound it is."""
    with serving(lambda _: Told(body=bodies["other"])) as url:
        error = refused(ID, url=url)
    assert (ExitCode.VERIFICATION, True) == (error.code, f"the receipt is of {OTHER_ID}" in str(error))


def test_what_was_changed_on_the_way_is_refused(bodies: dict[str, bytes]) -> None:
    """And so is what another key signed."""
    receipt = json.loads(bodies["final"])
    receipt["summary"]["cost_nano"] += 1
    with serving(lambda _: Told(body=receipt)) as url:
        assert "its summary is not what its rows say" in str(refused(ID, url=url))
    with serving(lambda _: Told(body=bodies["final"])) as url:
        error = refused(ID, url=url, key=str(OTHER_KEY))
    assert (ExitCode.VERIFICATION, True) == (error.code, "not of the key that was given" in str(error))


# -- from a file


def test_it_is_written_as_it_was_checked_and_read_again(
    bodies: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, with nobody's help; as JSON with whether a key was given."""
    path = tmp_path / "receipt.json"
    with serving(lambda _: Told(body=bodies["final"])) as url:
        asked(ID, url=url, output=path)
    assert json.loads(bodies["final"]) == json.loads(path.read_text())
    capsys.readouterr()
    assert ExitCode.OK == asked(check=path, key=str(KEY), as_json=True)
    assert {**json.loads(bodies["final"]), "is_authenticated": True} == json.loads(capsys.readouterr().out)


def test_one_question_at_a_time(tmp_path: Path) -> None:
    """A request or a file."""
    for options in ({}, {"request_id": ID, "check": tmp_path / "x"}):
        assert ExitCode.USAGE == refused(**options).code


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, ExitCode.NOT_FOUND, "cannot be read: No such file"),
        (b"", ExitCode.VERIFICATION, "gave no receipt"),
        (b"[1]", ExitCode.VERIFICATION, "gave no receipt"),
        (b"\xff\xfe\x00", ExitCode.VERIFICATION, "gave no receipt"),
        (b'{"format":"\xff"}', ExitCode.VERIFICATION, "gave no receipt"),
        (b" " * (MAX_RECEIPT_BYTES + 1), ExitCode.USAGE, f"has more than {MAX_RECEIPT_BYTES} bytes"),
    ],
)
def test_a_file_that_is_no_receipt_is_said(tmp_path: Path, content: bytes | None, code: ExitCode, words: str) -> None:
    """Whatever is in it."""
    path = tmp_path / "receipt.json"
    if content is not None:
        path.write_bytes(content)
    error = refused(check=path)
    assert (code, True) == (error.code, words in str(error))


def test_a_place_that_cannot_be_written_is_said(bodies: dict[str, bytes], tmp_path: Path) -> None:
    """By its path."""
    with serving(lambda _: Told(body=bodies["final"])) as url:
        assert f"{tmp_path} cannot be written: " in str(refused(ID, url=url, output=tmp_path))


def test_a_key_is_its_text_or_its_file(tmp_path: Path) -> None:
    """A file with a line end too; anything else is a wrong argument."""
    path = tmp_path / "ledger.key.pub"
    path.write_text(f"{KEY}\n")
    assert str(KEY) == str(read_public_key(str(KEY))) == str(read_public_key(str(path)))
    assert None is read_public_key(None)
    path.write_bytes(b"\xff" * 100)
    for key, code in ((str(path), ExitCode.USAGE), ("a+b+c", ExitCode.USAGE), ("nowhere", ExitCode.NOT_FOUND)):
        with pytest.raises(CommandError) as caught:
            read_public_key(key)
        assert code == caught.value.code


def test_no_more_is_read_than_may_be(tmp_path: Path) -> None:
    """A device that never ends."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert b"12345" == read_file(path, 5)
    with pytest.raises(CommandError, match="more than 4 bytes"):
        read_file(path, 4)
    with pytest.raises(CommandError, match="more than 1000 bytes"):
        read_file(Path("/dev/zero"), 1_000)


# -- traced


def traced(path: Path, *receipts: Path, **options: Any) -> ExitCode:
    return run_trace(path, receipts=list(receipts), **{"key": None, "as_json": False, **options})


def test_a_text_is_traced_to_the_answer_that_it_was(
    bodies: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By receipts that one holds; exactly that text, to the last byte."""
    text, receipts = tmp_path / "text", [tmp_path / name for name in ("final", "other")]
    text.write_text(TEXT, encoding="utf-8")
    for path in receipts:
        path.write_bytes(bodies[path.name])
    assert ExitCode.OK == traced(text, *receipts, key=str(KEY))
    assert f"is output 0 of {ID}-1" in " ".join(capsys.readouterr().out.split())
    traced(text, *receipts, as_json=True)
    assert {"found": [{"receipt": str(receipts[0]), "is": f"output 0 of {ID}-1"}], "is_authenticated": False} == (
        json.loads(capsys.readouterr().out)
    )
    for content in (TEXT.strip(), TEXT + "\n", ""):
        text.write_text(content, encoding="utf-8")
        with pytest.raises(CommandError, match="no receipt given here is of exactly this text") as caught:
            traced(text, *receipts)
        assert ExitCode.NOT_FOUND == caught.value.code


def test_a_receipt_that_was_changed_traces_nothing(bodies: dict[str, bytes], tmp_path: Path) -> None:
    """A digest that somebody wrote in is in no row that was signed."""
    text, path = tmp_path / "text", tmp_path / "receipt"
    text.write_text("forged")
    digest = hashlib.sha256(SALT + TEXT.encode()).hexdigest()
    path.write_bytes(bodies["final"].replace(digest.encode(), hashlib.sha256(SALT + b"forged").hexdigest().encode()))
    with pytest.raises(CommandError, match="is not in the tree that was signed") as caught:
        traced(text, path)
    assert ExitCode.VERIFICATION == caught.value.code


def test_the_path_is_the_routes() -> None:
    """Written twice, for the command line loads no route."""
    from scheduler.api.receipts import RECEIPTS_PREFIX

    assert RECEIPTS_PREFIX == receipt_module.RECEIPTS_PATH
