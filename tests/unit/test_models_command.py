"""`jouleway models` lists prices, and sets models side by side where it is asked to."""

import json
from typing import Any

import pytest

from scheduler.api.usage import MODELS_PATH, answer
from scheduler.commands import models
from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE, KEY_VARIABLE
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.core.request import Rates
from tests.canned_http import Asked, Told, serving
from tests.usage_rows import NOW_US, caller, memory

PRICES = {
    "m": Rates(input_nano=500_000_000, cached_nano=50_000_000, output_nano=1_500_000_000, currency="EUR"),
    "unused": Rates(currency="USD"),
}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "tenant-key")
    monkeypatch.delenv(ADMIN_KEY_VARIABLE, raising=False)


def control_plane(asked: Asked) -> Told:
    path, _, query = asked.path.partition("?")
    return Told(body=answer(path, query.encode(), memory(), caller("alpha"), now_us=NOW_US, prices=PRICES))


def run(seen: list[Asked] | None = None, **how: Any) -> ExitCode:
    wishes = {"is_comparing": False, "from_text": None, "to_text": None, "config_path": None, "as_json": False, **how}
    with serving(control_plane, seen=seen) as url:
        return models.run(url=url, **wishes)


def test_prices(capsys: pytest.CaptureFixture[str]) -> None:
    """Every model, used or not, priced or not."""
    seen: list[Asked] = []
    assert ExitCode.OK == run(seen)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [
        ["m", "EUR", "0.50", "0.05", "1.50"],
        ["n", "EUR", "–", "–", "–"],
        ["unused", "USD", "0.00", "0.00", "0.00"],
    ] == lines
    assert [MODELS_PATH] == [asked.path for asked in seen]


def test_models_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """By text, by joules and by accepted results with their number and interval."""
    run(is_comparing=True)
    text = capsys.readouterr().out
    for words in ("tok/kB in", "250.0", "0.125", "50%", "100.0% [34.2 – 100.0]", "1.100e-08 [", "0.003000 ["):
        assert words in text


def test_nothing_in_a_table_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal it is as wide as it must be."""
    run(is_comparing=True)
    assert "…" not in capsys.readouterr().out


def test_json_is_passed_on_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """With moments as they were asked for."""
    seen: list[Asked] = []
    run(seen, as_json=True, from_text="2026-07-01", to_text="2026-07-02")
    told = json.loads(capsys.readouterr().out)
    assert ("list", ["m", "n", "unused"]) == (told["object"], [model["model"] for model in told["data"]])
    assert f"{MODELS_PATH}?from=1782864000&to=1782950400" == seen[0].path


def test_a_moment_that_is_none_is_said() -> None:
    """Before anybody is asked."""
    with pytest.raises(CommandError, match="--from"):
        run(from_text="soon")
