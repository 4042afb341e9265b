"""`jouleway outcome` says what came of a request, once, and its exit code says when there is none."""

import json
from typing import Any

import pytest

from scheduler.commands import outcome
from scheduler.commands.control_plane import KEY_VARIABLE
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.outcome import Wishes
from tests.canned_http import Asked, Told, serving

TOLD: dict[str, Any] = {
    "object": "jouleway.outcome", "id": "out-1", "request_id": "req-1", "task": None, "accepted": True, "score": None,
    "label": None, "created_unix_s": 1, "replaces": None, "is_new": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "tenant-key")


def post(told: Told, seen: list[Asked] | None = None, *, as_json: bool = False, **wishes: Any) -> ExitCode:
    with serving(lambda _: told, seen=seen) as url:
        return outcome.run(Wishes(url=url, **{"request_id": "req-1", "accepted": True, **wishes}), as_json=as_json)


def test_what_is_said_is_posted(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing that was not."""
    seen: list[Asked] = []
    assert ExitCode.OK == post(Told(body=TOLD), seen)
    post(Told(body=TOLD), seen, accepted=False, score=0.5, label="late", given_id="a")
    assert [("POST", "/v1/jouleway/outcomes", "Bearer tenant-key")] * 2 == [
        (asked.method, asked.path, asked.headers["authorization"]) for asked in seen
    ]
    assert {"request_id": "req-1", "accepted": True} == json.loads(seen[0].body)
    assert {"request_id": "req-1", "accepted": False, "score": 0.5, "label": "late", "id": "a"} == json.loads(
        seen[1].body
    )
    assert "req-1: accepted (out-1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accepted": False}, "req-1: rejected (out-1)"),
        ({"is_new": False}, "req-1: accepted, as was known (out-1)"),
        ({"replaces": "out-0"}, "req-1: accepted (out-1; corrects out-0)"),
        ({"request_id": None, "task": "nightly"}, "task nightly: accepted (out-1)"),
    ],
)
def test_the_line_says_what_became_of_it(
    changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """New, known, or a correction."""
    post(Told(body={**TOLD, **changes}))
    assert words in capsys.readouterr().out


def test_json_is_passed_on_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """One document."""
    post(Told(body=TOLD), as_json=True)
    assert TOLD == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ExitCode.USAGE), (401, ExitCode.POLICY), (404, ExitCode.NOT_FOUND), (409, ExitCode.FAILURE),
        (422, ExitCode.USAGE), (503, ExitCode.UNAVAILABLE),
    ],
)  # fmt: skip
def test_what_is_refused_has_its_exit_code(status: int, code: ExitCode) -> None:
    """In its own words."""
    with pytest.raises(CommandError) as caught:
        post(Told(status=status, body={"error": {"message": "It is so.", "code": "x"}}))
    assert code == caught.value.code
    assert status == 401 or "It is so." in str(caught.value)


@pytest.mark.parametrize("wishes", [{"request_id": None}, {"task": "nightly"}])
def test_it_is_about_one_thing(wishes: dict[str, Any]) -> None:
    """Neither and both are wrong usage."""
    with pytest.raises(CommandError) as caught:
        post(Told(body=TOLD), **wishes)
    assert ExitCode.USAGE == caught.value.code
