"""Commands find the demo's configuration, load what they are given, and say errors with their exit codes."""

from pathlib import Path

import pytest

from scheduler import shipped
from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode

TEXT = """
server: {port: 0}
admin: {port: 8123}
ray: {address: auto, namespace: blue}
models:
  here: {weights: ./weights}
  hub: {weights: some/name}
  none: {}
workers: [{name: w, engine: simulated, model: none}]
tenants: [{name: t}]
generate_keys: true
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    return path


def test_the_demos_configuration_is_found_and_loads() -> None:
    """From a checkout."""
    config = configuration.load(configuration.demo_path())
    assert config.generate_keys
    assert 3 <= len(config.tenants)


def test_without_a_checkout_the_installed_one_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And where there is none either, the remedy is to name one."""
    monkeypatch.setattr(shipped, "ROOT", tmp_path / "nowhere")
    monkeypatch.setattr(shipped.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CommandError) as caught:
        configuration.demo_path()
    assert ExitCode.NOT_FOUND == caught.value.code
    installed = tmp_path / "share" / "jouleway" / "configs" / "demo.yaml"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert installed == configuration.demo_path()


def test_what_a_configuration_names(path: Path) -> None:
    """Ray's address, both listeners, and folders of weights from the file's own folder on; a hub's name is none."""
    config = configuration.load(path)
    assert ("auto", "blue") == configuration.ray_target(config)
    assert {"server": ("127.0.0.1", 0), "admin": ("127.0.0.1", 8123)} == configuration.listeners(config)
    assert {"here": path.parent / "weights"} == configuration.model_folders(config)


@pytest.mark.parametrize(
    ("text", "code"), [(None, ExitCode.NOT_FOUND), ("no_such_key: 1", ExitCode.USAGE), ("a: [", ExitCode.USAGE)]
)
def test_errors_carry_their_exit_code(tmp_path: Path, text: str | None, code: ExitCode) -> None:
    """Missing is 3, unusable is 2."""
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CommandError) as caught:
        configuration.load(path)
    assert code == caught.value.code
