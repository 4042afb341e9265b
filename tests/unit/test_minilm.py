"""The embedding model's weights: copied whole from the locked package, into the folder that a configuration names."""

import re
import struct
from pathlib import Path

import pytest

from scheduler.config import BUILTIN_EMBEDDING_WEIGHTS, weights_folder
from workers.engines.minilm import FILES, MINILM, convert

ROOT = Path(__file__).resolve().parents[2]


def test_the_folder_is_the_one_that_the_configuration_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Setup and serve agree."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert MINILM.default_folder() == weights_folder(BUILTIN_EMBEDDING_WEIGHTS)


def test_it_is_built_from_the_package(tmp_path: Path) -> None:
    """Every file that vLLM reads, unchanged; the tensors' header is whole."""
    folder = tmp_path / "minilm"
    assert MINILM.build(folder, convert)
    assert MINILM.is_complete(folder)
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {*FILES, "jouleway.json"} == copied
    MINILM.check(folder / "model.safetensors")
    with (folder / "model.safetensors").open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
    assert 0 < header_bytes < 1 << 20


def test_a_missing_file_of_a_subfolder_is_seen(tmp_path: Path) -> None:
    """The pooling's configuration decides what an embedding is."""
    folder = tmp_path / "minilm"
    MINILM.build(folder, convert)
    (folder / "1_Pooling/config.json").unlink()
    assert not MINILM.is_complete(folder)


def test_the_locks_hold_the_package_and_not_what_it_requires() -> None:
    """Of the package only the model's folder is read."""
    for name in ("cpu.lock", "cuda.lock"):
        locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "configs/locks" / name).read_text(), re.MULTILINE))
        assert MINILM.version == locked[MINILM.distribution]
        assert "sentence-transformers" not in locked
