"""Weights from a package: built once, atomically; each failure says what to do."""

import dataclasses
import hashlib
import json
import threading
from pathlib import Path

import pytest

from workers.engines.weights import Weights, WeightsFailed

SOURCE = b"the model's file"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """A package of one file in a place where Python finds it."""
    package = tmp_path / "packages" / "carried_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is never imported')")
    (package / "model.bin").write_bytes(SOURCE)
    monkeypatch.syspath_prepend(str(package.parent))
    return Weights(
        name="small", package="carried_weights", distribution="carried-weights", version="1.2", source="model.bin",
        sha256=hashlib.sha256(SOURCE).hexdigest(), format=3, needed_bytes=1000,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "small"


def convert(source: Path, built: Path) -> None:
    assert SOURCE == source.read_bytes()
    (built / "model.safetensors").write_bytes(b"x" * 100)
    (built / "config.json").write_text("{}")
    (built / "tokenizer.json").write_text("{}")


def test_a_build_is_complete_and_kept(weights: Weights, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second call finds it and does nothing; the tokenizer's digest is recorded."""
    assert weights.build(folder, convert)
    assert weights.is_complete(folder)
    before = (folder / "model.safetensors").stat().st_ino
    assert not weights.build(folder, convert)
    assert before == (folder / "model.safetensors").stat().st_ino
    assert json.loads((folder / "jouleway.json").read_text())["tokenizer"].startswith("sha256:")
    assert "weights are built" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "no manifest", "bad manifest", "other source", "old format"]
)
def test_a_damaged_folder_is_built_anew(weights: Weights, folder: Path, damage: str) -> None:
    """Whatever is wrong with it, the folder is replaced as a whole."""
    weights.build(folder, convert)
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
            manifest.write_text(manifest.read_text().replace(weights.sha256, "0" * 64))
        case _:
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    assert not weights.is_complete(folder)
    assert weights.build(folder, convert)
    assert weights.is_complete(folder)


def test_a_failed_build_leaves_nothing(weights: Weights, folder: Path) -> None:
    """No half folder, no rubbish beside it; what was there stays until the new one is whole."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("old")

    def fail(source: Path, built: Path) -> None:
        convert(source, built)
        raise OSError(28, "No space left on device")

    with pytest.raises(WeightsFailed, match=r"could not be written to .*No space left"):
        weights.build(folder, fail)
    assert "old" == (folder / "config.json").read_text()
    assert {folder.name, f".{folder.name}.lock"} == {path.name for path in folder.parent.iterdir()}


def test_two_builds_at_once_build_once(weights: Weights, folder: Path) -> None:
    """The second waits for the first and finds the work done."""
    num_conversions = []
    started = threading.Event()

    def slowly(source: Path, built: Path) -> None:
        started.set()
        second.join(0.05)  # the second is held back by the lock, so this times out
        num_conversions.append(built)
        convert(source, built)

    second = threading.Thread(target=lambda: started.wait() and weights.build(folder, slowly))
    second.start()
    weights.build(folder, slowly)
    second.join()
    assert 1 == len(num_conversions)


def test_a_full_disk_is_named_before_the_work(weights: Weights, folder: Path) -> None:
    """The message says how much is free, how much is needed, and where else it may go."""
    with pytest.raises(WeightsFailed, match=r"MiB free, .* need .*XDG_CACHE_HOME"):
        dataclasses.replace(weights, needed_bytes=1 << 60).build(folder, convert)


def test_a_missing_package_is_named(weights: Weights) -> None:
    """The remedy does not drag in what the package requires."""
    missing = dataclasses.replace(weights, package="no_such_package_here")
    with pytest.raises(WeightsFailed, match=r"carried-weights.*not installed.*--no-deps carried-weights==1\.2"):
        missing.find_source()


def test_a_package_without_the_file_is_named(weights: Weights) -> None:
    """It may have been stripped."""
    with pytest.raises(WeightsFailed, match=r"installed without other\.bin"):
        dataclasses.replace(weights, source="other.bin").find_source()


def test_another_file_is_refused(weights: Weights, folder: Path) -> None:
    """The same name with other bytes is another model."""
    with pytest.raises(WeightsFailed, match=r"not the file of carried-weights 1\.2.*--force-reinstall"):
        dataclasses.replace(weights, sha256="0" * 64).build(folder, convert)
    assert not folder.exists()
