"""`jouleway usage` asks page by page, as whom it may, and what it writes is there whole or not at all."""

import csv
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from scheduler.api.errors import ApiError
from scheduler.api.usage import USAGE_PATH, answer
from scheduler.commands import usage
from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE, KEY_VARIABLE
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.usage import Form, Wishes, form_of
from tests.canned_http import Asked, Told, serving
from tests.usage_rows import NOW_US, START_S, UNITS, caller, memory

NOW_S = NOW_US / 1e6


def control_plane(asked: Asked) -> Told:
    """The real answers: to the tenant's key and to the operator's."""
    path, _, query = asked.path.partition("?")
    assert path == USAGE_PATH
    who = None if asked.headers["authorization"] == "Bearer admin-key" else caller("alpha")
    try:
        return Told(body=answer(path, query.encode(), memory(), who, now_us=NOW_US, prices={}))
    except ApiError as error:
        return Told(status=error.status, body=error.body())


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "tenant-key")
    monkeypatch.delenv(ADMIN_KEY_VARIABLE, raising=False)


def run(seen: list[Asked] | None = None, **wishes: Any) -> ExitCode:
    with serving(control_plane, seen=seen) as url:
        return usage.run(Wishes(url=url, **wishes), clock=lambda: NOW_S)


def failure(**wishes: Any) -> CommandError:
    with pytest.raises(CommandError) as caught:
        run(**wishes)
    return caught.value


def test_this_months_usage_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """By tenant and model where nothing else is said."""
    seen: list[Asked] = []
    assert ExitCode.OK == run(seen)
    text = capsys.readouterr().out
    assert ("alpha" in text, "beta" in text, "2026-07-01T00:00:00Z" in text) == (True, False, True)
    assert {"from": [str(START_S)], "by": ["tenant,model"], "limit": ["10000"]} == parse_qs(
        seen[0].path.partition("?")[2]
    )


def test_the_operator_sees_everybody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the admin key is the only one."""
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "admin-key")
    run(by="tenant")
    text = capsys.readouterr().out
    assert all(tenant in text for tenant in UNITS)


def test_words_and_moments_are_passed_on() -> None:
    """Every value of every filter."""
    seen: list[Asked] = []
    filters = {"model": ["m", "a b&c"], "task": [""]}
    run(seen, by="", from_text="2026-07-01T01:00+01:00", to_text="2026-07-02", filters=filters)
    assert {
        "from": [str(START_S)], "to": [str(START_S + 86_400)], "limit": ["10000"],
        "model": ["m", "a b&c"], "task": [""],
    } == parse_qs(seen[0].path.partition("?")[2], keep_blank_values=True)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pages_are_put_together(rows: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As if there had been one."""
    run(by="minute,model", form=Form.JSON)
    whole = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(usage, "PAGE_ROWS", rows)
    seen: list[Asked] = []
    run(seen, by="minute,model", form=Form.JSON)
    assert whole == json.loads(capsys.readouterr().out)
    assert -(-7 // rows) == len(seen)


def test_more_rows_than_one_command_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it; memory is bounded."""
    monkeypatch.setattr(usage, "PAGE_ROWS", 2)
    monkeypatch.setattr(usage, "MAX_ROWS", 4)
    error = failure(by="minute")
    assert (ExitCode.USAGE, True) == (error.code, "--from" in error.remedy)


def test_json_holds_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """And on demand the value of what was accepted."""
    run(by="model", form=Form.JSON, has_value=True)
    told = json.loads(capsys.readouterr().out)
    assert (START_S, ["model"], ["m", "n"]) == (told["from_unix_s"], told["by"], [row["model"] for row in told["rows"]])
    assert (44, 2, 22) == (
        (row := told["rows"][0])["cost_nano"],
        row["value"]["results"],
        row["value"]["cost_nano"] * 2,
    )


def test_csv_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """For pipes."""
    run(by="day", form=Form.CSV)
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert ["2026-07-01T00:00:00Z", "2026-07-02T00:00:00Z", "2026-07-03T00:00:00Z"] == [line["start"] for line in lines]


@pytest.mark.parametrize("name", ["u.csv", "u.JSON"])
def test_a_file_is_written_in_the_form_of_its_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And replaces what was there."""
    path = tmp_path / name
    path.write_text("old")
    run(by="model", output=path)
    text = path.read_text()
    assert ("", [path]) == (capsys.readouterr().out, list(tmp_path.iterdir()))
    assert text.startswith("model,requests" if name == "u.csv" else '{\n  "from_unix_s"')
    assert text.endswith("\n")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file nor the loss of the one before."""
    error = failure(output=tmp_path / "none" / "u.csv")
    assert (ExitCode.FAILURE, True) == (error.code, "u.csv" in str(error))
    path = tmp_path / "u.csv"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(usage.usage_view, "write_csv", full)
    assert "No space left" in str(failure(output=path))
    assert ("old", [path]) == (path.read_text(), list(tmp_path.iterdir()))


def test_parquet_is_written_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the one file that knows the library."""
    monkeypatch.setattr(usage, "write_parquet", lambda path, rows, shown: path.write_text(f"{len(rows)} {len(shown)}"))
    run(by="model", output=tmp_path / "u.parquet")
    assert "2 " == (tmp_path / "u.parquet").read_text()[:2]


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"form": Form.PARQUET}, "Parquet is no text"),
        ({"form": Form.TABLE, "output": Path("x")}, "for the screen"),
        ({"output": Path("x.txt")}, "for the screen"),
    ],
)
def test_a_form_and_its_place_go_together(wishes: dict[str, Any], words: str) -> None:
    """Before anybody is asked."""
    with pytest.raises(CommandError, match=words) as caught:
        form_of(Wishes(**wishes))
    assert ExitCode.USAGE == caught.value.code


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"by": "week"}, "by: expected"), ({"from_text": "soon"}, "--from"), ({"to_text": "soon"}, "--to"),
        ({"from_text": "2030-01-01"}, "before now"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(wishes: dict[str, Any], words: str) -> None:
    """In the words of whoever refused it."""
    error = failure(**wishes)
    assert (ExitCode.USAGE, True) == (error.code, words in str(error))


def test_a_control_plane_without_a_ledger_is_said() -> None:
    """It keeps no usage."""
    told = Told(status=404, body={"error": {"code": "route_not_found"}})
    with serving(lambda _: told) as url, pytest.raises(CommandError) as caught:
        usage.run(Wishes(url=url))
    assert (ExitCode.NOT_FOUND, True) == (caught.value.code, "ledger" in caught.value.remedy)


def test_the_file_beside_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two exports at once do not write into each other."""
    seen: list[str] = []
    monkeypatch.setattr(usage, "write_parquet", lambda path, rows, shown: seen.append(path.name) or path.write_text(""))
    run(output=tmp_path / "u.parquet")
    assert [f".u.parquet.{os.getpid()}"] == seen
