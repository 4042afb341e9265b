"""Configuration files that we ship are found in a checkout, and where a wheel put them."""

from pathlib import Path

import pytest

from scheduler import shipped


@pytest.mark.parametrize("name", ["catalogue.yaml", "demo.yaml"])
def test_a_checkout_has_them(name: str) -> None:
    path = shipped.shipped_config(name)
    assert (name, "configs", True) == (path.name, path.parent.name, path.is_file())


def test_a_file_that_is_nowhere_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a checkout would have it, because that is where somebody would put it."""
    monkeypatch.setattr(shipped, "ROOT", tmp_path)
    monkeypatch.setattr(shipped.sysconfig, "get_path", lambda _: str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError) as caught:
        shipped.shipped_config("none.yaml")
    assert str(tmp_path / "configs" / "none.yaml") == str(caught.value)


def test_a_checkout_wins_over_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Somebody who edits it there means it."""
    here, installed = tmp_path / "configs", tmp_path / "data" / "share" / "jouleway" / "configs"
    monkeypatch.setattr(shipped, "ROOT", tmp_path)
    monkeypatch.setattr(shipped.sysconfig, "get_path", lambda _: str(tmp_path / "data"))
    for folder in (installed, here):
        folder.mkdir(parents=True)
        (folder / "x.yaml").write_text("")
        assert folder / "x.yaml" == shipped.shipped_config("x.yaml")
