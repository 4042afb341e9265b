"""One place says where what can be made again is kept."""

from pathlib import Path

import pytest

from workers.cache import cache_folder, model_folder


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else in the home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "jouleway" == cache_folder()
    assert tmp_path / "jouleway" / "models" / "m" == model_folder("m")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Path.home() / ".cache" / "jouleway" == cache_folder()
