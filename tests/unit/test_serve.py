"""`jouleway serve` says what is wrong before it starts, one JSON line when it serves, and stops when asked."""

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from scheduler.accounting.changes import Owner
from scheduler.commands import serve
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.config import load_config
from scheduler.listeners import bind
from workers.errors import WorkerError

CONFIG = """
server: {{host: {host}, port: {port}{more}}}
admin: {{port: 0}}
state_dir: state
models: {{m: {{}}}}
workers: [{{name: w, engine: simulated, model: m}}]
tenants: [{{name: t, keys: ["sha256:{digest}"]}}]
"""


def config_of(folder: Path, host: str = "127.0.0.1", port: int = 0, more: str = "") -> Any:
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(host=host, port=port, more=more, digest="a" * 64))
    return load_config(path)


class ScriptedService:
    """Comes up at once, or fails as told."""

    url, admin_url = "http://127.0.0.1:1", "http://127.0.0.1:2"

    def __init__(self, *, start_error: str = "", ready_error: str = "") -> None:
        self.start_error = start_error
        self.ready_error = ready_error
        self.was_stopped = False

    async def start(self, *, progress: Any) -> None:
        if self.start_error:
            raise WorkerError(self.start_error)

    async def wait_ready(self, *, progress: Any) -> None:
        if self.ready_error:
            raise WorkerError(self.ready_error)

    async def stop(self) -> None:
        self.was_stopped = True


def serve_until_signal(monkeypatch: pytest.MonkeyPatch, service: ScriptedService, *, as_json: bool) -> ExitCode:
    """SIGTERM comes as soon as the signal is handled and a moment has passed."""
    monkeypatch.setattr(serve, "make_service", lambda _: service)

    async def scene() -> ExitCode:
        before = signal.getsignal(signal.SIGTERM)
        output = sys.stdout if as_json else None
        serving = asyncio.create_task(serve._serve(object(), Path("c.yaml"), output))  # type: ignore[arg-type]
        while signal.getsignal(signal.SIGTERM) is before and not serving.done():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        if not serving.done():
            os.kill(os.getpid(), signal.SIGTERM)
        return await serving

    return asyncio.run(scene())


def test_one_line_says_that_it_serves_and_sigterm_stops_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts wait for the line; exit code 0."""
    service = ScriptedService()
    assert ExitCode.OK == serve_until_signal(monkeypatch, service, as_json=True)
    captured = capsys.readouterr()
    assert {"event": "ready", "url": service.url, "admin_url": service.admin_url} == json.loads(captured.out)
    assert service.was_stopped
    assert "asked to stop" in captured.err


def test_without_json_standard_output_stays_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """People read standard error."""
    serve_until_signal(monkeypatch, ScriptedService(), as_json=False)
    assert "" == capsys.readouterr().out


def test_a_worker_that_is_late_does_not_end_the_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others may serve; the cause is said and no ready line is printed."""
    service = ScriptedService(ready_error="worker w-0 did not start: no memory")
    assert ExitCode.OK == serve_until_signal(monkeypatch, service, as_json=True)
    captured = capsys.readouterr()
    assert "no memory" in captured.err
    assert "" == captured.out


def test_a_start_that_fails_is_exit_code_6_and_everything_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever had come up goes down again."""
    service = ScriptedService(start_error="Ray cannot be reached")
    with pytest.raises(CommandError, match="Ray cannot be reached") as caught:
        serve_until_signal(monkeypatch, service, as_json=False)
    assert ExitCode.UNAVAILABLE == caught.value.code
    assert service.was_stopped


def test_a_taken_port_is_said_with_its_remedy(tmp_path: Path) -> None:
    """Exit code 6, the setting's name, and how to find who holds it."""
    with bind("server", "127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=rf"server\.port: 127\.0\.0\.1:{port} is taken") as caught:
            serve.make_service(config_of(tmp_path, port=port))
    assert (ExitCode.UNAVAILABLE, True) == (caught.value.code, f":{port}" in caught.value.remedy)


def test_a_host_that_is_not_ours_is_exit_code_2(tmp_path: Path) -> None:
    """TEST-NET-1 is nobody's."""
    config = config_of(tmp_path, host="192.0.2.1", more=", behind_proxy: true, allowed_hosts: [x.example]")
    with pytest.raises(CommandError, match=r"server\.host 192\.0\.2\.1") as caught:
        serve.make_service(config)
    assert ExitCode.USAGE == caught.value.code


def test_a_bad_key_file_is_exit_code_2(tmp_path: Path) -> None:
    """The admin key is open to others."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "admin.key").write_text("everybody-reads-this-key\n")
    (tmp_path / "state" / "admin.key").chmod(0o644)
    with pytest.raises(CommandError, match="chmod 600") as caught:
        serve.make_service(config_of(tmp_path))
    assert ExitCode.USAGE == caught.value.code


@pytest.mark.parametrize(("level", "expected"), [("debug", "DEBUG"), ("WARNING", "WARNING"), ("nonsense", "INFO")])
def test_the_log_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, level: str, expected: str) -> None:
    """An unknown word is INFO."""
    monkeypatch.setenv("JOULEWAY_LOG_LEVEL", level)
    logger = logging.getLogger("jouleway")
    before = logger.level
    try:
        serve.set_up_logging()
        assert expected == logging.getLevelName(logger.level)
    finally:
        logger.setLevel(before)


class Reloading:
    """Takes any configuration; says that workers need a restart."""

    def __init__(self, owner: Owner = Owner.FILE) -> None:
        self.configs: list[Any] = []
        self.directory_owner = owner

    def reload(self, config: Any) -> list[str]:
        self.configs.append(config)
        return ["workers"]


def test_a_file_is_read_again_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    """SIGHUP never ends a service: it says what it did, and what it did not."""
    config_of(tmp_path)
    service, said = Reloading(), []
    serve._reload(service, tmp_path / "c.yaml", said.append)  # type: ignore[arg-type]
    assert (1, True) == (len(service.configs), "workers need a restart" in said[-1])
    (tmp_path / "c.yaml").write_text("tenants: 7")
    serve._reload(service, tmp_path / "c.yaml", said.append)  # type: ignore[arg-type]
    assert (1, True) == (len(service.configs), said[-1].startswith("not reloaded, the old rules stay"))


def test_a_reload_says_whose_the_tenants_are(tmp_path: Path) -> None:
    """Of the file's tenants nothing is read where the API owns them."""
    config_of(tmp_path)
    for owner, words in ((Owner.FILE, "keys, budgets, prices, weights"), (Owner.API, "are the API's, not the file's")):
        said: list[str] = []
        serve._reload(Reloading(owner), tmp_path / "c.yaml", said.append)  # type: ignore[arg-type]
        assert words in said[0]
