"""`jouleway explain` finds whom to ask, says what it is told, and its exit code says when there is nothing to tell."""

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.commands import explain
from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE, KEY_VARIABLE
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.explain import Wishes, line_of
from tests.canned_http import Asked, Told, serving

STORY = {"request_id": "req-1", "state": "finished", "outcome": "completed", "attempts": []}
CONFIG = """
server: {port: 0}
admin: {port: %s}
models: {m: {}}
workers: [{name: w, engine: simulated, model: m}]
tenants: [{name: t}]
generate_keys: true
"""


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "tenant-key")
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "admin-key")


def refusal(told: Told, **wishes: Any) -> CommandError:
    with serving(lambda _: told) as url, pytest.raises(CommandError) as caught:
        explain.run(Wishes(url=url, **(wishes or {"request_id": "req-1"})), as_json=True)
    return caught.value


def test_a_tenant_asks_for_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """With its own key, and gets what it is told, whole."""
    seen: list[Asked] = []
    with serving(lambda _: Told(body=STORY), seen=seen) as url:
        assert ExitCode.OK == explain.run(Wishes(request_id="req-1", url=url + "/v1"), as_json=True)
        assert STORY == json.loads(capsys.readouterr().out)
        explain.run(Wishes(request_id="req-1", url=url), as_json=False)
        assert "request req-1: finished, completed" in capsys.readouterr().out
    assert {("GET", "/v1/jouleway/requests/req-1", "Bearer tenant-key")} == {
        (asked.method, asked.path, asked.headers["authorization"]) for asked in seen
    }


def test_an_operator_asks_the_admin_listener(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a configuration is named, or where its key is the only one."""
    seen: list[Asked] = []
    with serving(lambda _: Told(body=STORY), seen=seen) as url:
        path = tmp_path / "c.yaml"
        path.write_text(CONFIG % url.rpartition(":")[2])
        explain.run(Wishes(request_id="req-1", config=path), as_json=True)
        monkeypatch.delenv(KEY_VARIABLE)
        explain.run(Wishes(request_id="req-1", url=url), as_json=True)
    assert ["Bearer admin-key"] * 2 == [asked.headers["authorization"] for asked in seen]


def test_without_any_key_the_tenants_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable's name."""
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.delenv(ADMIN_KEY_VARIABLE)
    with pytest.raises(CommandError) as caught:
        explain.run(Wishes(request_id="req-1"), as_json=True)
    assert (ExitCode.POLICY, True) == (caught.value.code, KEY_VARIABLE in caught.value.remedy)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (Told(status=404, body={}), ExitCode.NOT_FOUND),
        (Told(status=401, body={}), ExitCode.POLICY),
        (Told(status=500, body={}), ExitCode.FAILURE),
        (Told(body=b"<"), ExitCode.UNAVAILABLE),
    ],
)
def test_what_is_not_told_has_its_exit_code(told: Told, code: ExitCode) -> None:
    """A request of another tenant is one that was never seen."""
    assert code == refusal(told).code


@pytest.mark.parametrize("request_id", ["", "../../metrics", "a b", "é", "x" * 129])
def test_what_is_no_id_is_not_asked(request_id: str) -> None:
    """It would be another route."""
    with pytest.raises(CommandError) as caught:
        explain.run(Wishes(request_id=request_id, url="http://127.0.0.1:1"), as_json=True)
    assert ExitCode.USAGE == caught.value.code


def test_a_score_that_is_not_its_terms_is_exit_code_7(capsys: pytest.CaptureFixture[str]) -> None:
    """What was told is printed all the same."""
    worker = {"worker_id": "w", "zone": "z", "filter": None, "terms": {"late": 1, "gpu": 2}, "score": 4}
    error = refusal(Told(body={**STORY, "decision": {"reason": "", "workers": [worker]}}))
    assert (ExitCode.VERIFICATION, True) == (error.code, "w (the last look)" in str(error))
    assert '"score": 4' in capsys.readouterr().out


def test_one_of_the_two_questions_is_asked(tmp_path: Path) -> None:
    """Neither and both are wrong usage, and so is asking what would be as the operator."""
    for wishes in (
        Wishes(),
        Wishes(request_id="a", what_if=tmp_path),
        Wishes(what_if=tmp_path, config=tmp_path),
        Wishes(what_if=written(tmp_path, b"{}"), zones="a\nb"),
    ):
        with pytest.raises(CommandError) as caught:
            explain.run(wishes, as_json=True)
        assert ExitCode.USAGE == caught.value.code


def written(folder: Path, content: bytes) -> Path:
    path = folder / "body.json"
    path.write_bytes(content)
    return path


def test_what_if_sends_a_line_and_the_wishes_of_its_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A body is put into a line; a line goes as it is."""
    seen: list[Asked] = []
    what_if = {**STORY, "state": "what_if", "verdict": "started"}
    with serving(lambda _: Told(body=what_if), seen=seen) as url:
        body = written(tmp_path, b'{"model": "m", "messages": []}')
        explain.run(Wishes(what_if=body, url=url, data_class="core", zones="hall-a"), as_json=False)
        line = written(tmp_path, b'{"url": "/v1/embeddings", "body": {"model": "m"}}')
        explain.run(Wishes(what_if=line, url=url), as_json=False)
    assert "it would be started now" in capsys.readouterr().out
    first, second = seen
    assert ("POST", "/v1/jouleway/what-if") == (first.method, first.path)
    assert {"url": "/v1/chat/completions", "body": {"model": "m", "messages": []}} == json.loads(first.body)
    assert {"x-jouleway-data-class": "core", "x-jouleway-zones": "hall-a"}.items() <= first.headers.items()
    assert b'{"url": "/v1/embeddings", "body": {"model": "m"}}' == second.body
    assert "x-jouleway-zones" not in second.headers


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, ExitCode.USAGE), (403, ExitCode.POLICY), (404, ExitCode.NOT_FOUND), (429, ExitCode.BUDGET)],
)
def test_what_would_be_refused_is_said_in_its_words(tmp_path: Path, status: int, code: ExitCode) -> None:
    """With the exit code that the refusal has everywhere."""
    told = Told(status=status, body={"error": {"message": "No worker may.", "code": "data_residency_mismatch"}})
    error = refusal(told, what_if=written(tmp_path, b"{}"))
    assert (code, "this request would be refused: No worker may. (data_residency_mismatch)") == (error.code, str(error))
    assert "status" in str(refusal(Told(status=status, body=b"<"), what_if=written(tmp_path, b"{}")))


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, ExitCode.POLICY), (429, ExitCode.BUDGET), (503, ExitCode.UNAVAILABLE), (400, ExitCode.FAILURE)],
)
def test_what_the_core_would_refuse_is_told_and_has_the_same_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, code: ExitCode
) -> None:
    """With every worker's filter, which a bare refusal has not."""
    rejection = {"reason": "data_residency_mismatch", "status": status, "message": "No worker may."}
    told = Told(body={**STORY, "state": "what_if", "verdict": "refused", "rejection": rejection})
    with serving(lambda _: told) as url:
        assert code == explain.run(Wishes(what_if=written(tmp_path, b"{}"), url=url), as_json=False)
    assert "it would be refused: No worker may." in capsys.readouterr().out


def test_a_wrong_key_is_no_refusal_of_the_request(tmp_path: Path) -> None:
    """401 is about who asks."""
    error = refusal(Told(status=401, body={}), what_if=written(tmp_path, b"{}"))
    assert (ExitCode.POLICY, True) == (error.code, "refuses the key" in str(error))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{", b"[" * 50_000, b"null"])
def test_a_file_that_is_no_request_is_said(tmp_path: Path, content: bytes) -> None:
    """Before anybody is asked."""
    with pytest.raises(CommandError) as caught:
        line_of(written(tmp_path, content), explain.CHAT_PATH)
    assert (ExitCode.USAGE, True) == (caught.value.code, "no JSON object" in str(caught.value))


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, a directory, too long."""
    for path, code in ((tmp_path / "none", ExitCode.NOT_FOUND), (tmp_path, ExitCode.USAGE)):
        with pytest.raises(CommandError) as caught:
            line_of(path, explain.CHAT_PATH)
        assert code == caught.value.code
    monkeypatch.setattr(explain, "MAX_BODY_BYTES", 5)
    with pytest.raises(CommandError, match="longer than 5 bytes"):
        line_of(written(tmp_path, b'{"a": 1}'), explain.CHAT_PATH)
