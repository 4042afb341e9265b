"""`jouleway down` stops what stands in its namespace, all at once, and says what it stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler.commands import down
from scheduler.commands.exits import CommandError, ExitCode
from workers.errors import WorkerError

CONFIG = """
{ray}
models: {{m: {{}}}}
workers: [{{name: w, engine: simulated, model: m}}]
tenants: [{{name: t}}]
generate_keys: true
"""


class StandingCluster:
    """Two workers stand; EVENTS and STOPPED say what was asked of it."""

    is_reachable = True

    def __init__(self, *, address: str, namespace: str) -> None:
        EVENTS.append(f"{address} {namespace}")

    def connect(self) -> None:
        if not self.is_reachable:
            raise WorkerError("Ray at ray.address=auto cannot be reached; remedy: ray status")

    async def remove_all(self, *, drain_s: float, progress: Callable[[str], None]) -> list[str]:
        for worker_id in ("a-0", "b-0"):
            progress(f"stopping {worker_id}")
            STOPPED.append((worker_id, drain_s))
        return ["a-0", "b-0"]

    def shutdown(self) -> None:
        EVENTS.append("shutdown")


EVENTS: list[str] = []
STOPPED: list[tuple[str, float]] = []


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    EVENTS.clear()
    STOPPED.clear()
    monkeypatch.setattr(down, "RayCluster", StandingCluster)


def config(folder: Path, ray: str = "ray: {address: auto, namespace: blue}") -> Path:
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(ray=ray))
    return path


def test_every_worker_is_stopped_and_ray_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the drain time given; names in order, as JSON where asked."""
    assert ExitCode.OK == down.run(config(tmp_path), drain_s=2.5, as_json=True)
    assert [("a-0", 2.5), ("b-0", 2.5)] == sorted(STOPPED)
    assert {"namespace": "blue", "stopped": ["a-0", "b-0"]} == json.loads(capsys.readouterr().out)
    assert ["auto blue", "shutdown"] == EVENTS


def test_people_read_it_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output stays free for data."""
    down.run(config(tmp_path), drain_s=0, as_json=False)
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "2 workers stopped in namespace blue" in captured.err


def test_an_own_cluster_has_nothing_to_bring_down(tmp_path: Path) -> None:
    """Exit code 2 and why."""
    with pytest.raises(CommandError, match=r"ray\.address") as caught:
        down.run(config(tmp_path, ray=""), drain_s=0, as_json=False)
    assert ExitCode.USAGE == caught.value.code
    assert [] == EVENTS


def test_a_cluster_that_cannot_be_reached_is_exit_code_6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray's remedy."""
    monkeypatch.setattr(StandingCluster, "is_reachable", False)
    with pytest.raises(CommandError, match="ray status") as caught:
        down.run(config(tmp_path), drain_s=0, as_json=False)
    assert ExitCode.UNAVAILABLE == caught.value.code
