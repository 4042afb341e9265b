"""`jouleway workers` asks the admin listener and prints what it says; whoever cannot be asked is named."""

import json
from typing import Any

import pytest

from scheduler.commands import workers
from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE
from scheduler.commands.exits import ExitCode
from tests.canned_http import Asked, Told, serving

STATUS = {
    "state": "ready", "cause": "", "zone": "hall-a", "num_running": 3, "num_waiting": 1, "kv_used_tokens": 12345,
    "meter": "nvml:energy-counter", "grade": "A", "meter_up": True, "power_watts": 312.25, "outbox_depth": 2,
    "health": ["xid 79: fallen off the bus"],
}  # fmt: skip
WORKER = {"worker_id": "gpu-0", "phase": "connected", "cause": "", "status": STATUS}


def test_the_table_shows_state_load_meter_and_complaints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key travels in the header; health is said in words below the table."""
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "the-key")
    seen: list[Asked] = []
    with serving(lambda _: Told(body={"workers": [WORKER]}), seen=seen) as url:
        assert ExitCode.OK == workers.run(config_path=None, url=url, as_json=False)
    text = capsys.readouterr().out
    for words in ("gpu-0", "ready", "hall-a", "12,345", "nvml:energy-counter", "312.2", "gpu-0: xid 79"):
        assert words in text
    (asked,) = seen
    assert ("GET", "/v1/jouleway/workers", "Bearer the-key") == (
        asked.method,
        asked.path,
        asked.headers["authorization"],
    )


def test_json_is_passed_on_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One document."""
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "the-key")
    with serving(lambda _: Told(body={"workers": [WORKER]})) as url:
        workers.run(config_path=None, url=url, as_json=True)
    assert {"workers": [WORKER]} == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("changes", "phase", "expected"),
    [
        ({}, "connected", ("ready", "nvml:energy-counter")),
        ({}, "lost", ("ready (lost)", "nvml:energy-counter")),
        ({"meter_up": False}, "connected", ("ready", "nvml:energy-counter, down")),
        ({"meter": "", "meter_up": False}, "connected", ("ready", "none, down")),
    ],
)
def test_a_line_says_how_link_and_meter_stand(changes: dict[str, Any], phase: str, expected: tuple[str, str]) -> None:
    """A lost link and a lost meter show where one looks for them."""
    line = workers.row({**WORKER, "phase": phase, "status": {**STATUS, **changes}})
    assert expected == (line[1], line[6])
    assert len(workers.COLUMNS) == len(line)


def test_a_worker_that_never_spoke_has_a_line_too() -> None:
    """Its phase is all that is known."""
    line = workers.row({"worker_id": "w", "phase": "connecting", "cause": "", "status": None})
    assert ("w", "connecting") == line[:2]
    assert len(workers.COLUMNS) == len(line)
