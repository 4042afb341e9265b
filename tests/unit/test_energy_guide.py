"""What the guide shows of prices can be used as it stands: its configuration loads, its series and its sum hold."""

import re
from pathlib import Path

import pytest

from scheduler.accounting.energy_prices import nano_per_joule
from scheduler.accounting.energy_series import MAX_ROWS as MAX_ROWS_OF_A_FILE
from scheduler.accounting.energy_series import read_series
from scheduler.config import Config, load_config
from scheduler.config_energy import DeferralConfig, zone_energies
from scheduler.core.price_plan import DEFAULT_DEFERRAL, MIN_SAVING_RATIO, SLICE_S
from scheduler.policies import rules_of, zone_names
from scheduler.series_files import MAX_FILE_BYTES, MAX_FILES, MAX_ROWS

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "energy.md").read_text(encoding="utf-8")
BASE = """
models: {m: {}}
workers: [{name: w, engine: simulated, model: m, zone: hall-a}]
tenants: [{name: a}]
generate_keys: true
"""


def block(kind: str) -> str:
    (text,) = re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)
    return str(text)


def load(folder: Path, text: str) -> Config:
    (folder / "c.yaml").write_text(BASE + text)
    return load_config(folder / "c.yaml")


def test_the_configuration_that_is_shown_loads_and_says_what_the_text_says(tmp_path: Path) -> None:
    """0.30 a kWh, 381 g at 80 a tonne, PUE 1.25."""
    config = load(tmp_path, block("yaml"))
    zone = zone_energies(config.energy, config.zones, zone_names(config))["hall-a"]
    price = nano_per_joule(
        per_kwh=zone.per_kwh,
        gco2e_per_kwh=zone.gco2e_per_kwh,
        carbon_price_per_tonne=zone.carbon_price_per_tonne,
        pue=zone.pue,
    )
    assert f"**{price:.2f}**" in GUIDE


def test_what_is_shown_as_a_default_is_the_default(tmp_path: Path) -> None:
    """Of the file and of the core."""
    assert DeferralConfig() == load(tmp_path, block("yaml")).energy.deferral
    assert DEFAULT_DEFERRAL == rules_of(load(tmp_path, "")).deferral


def test_the_series_that_is_shown_is_one() -> None:
    """With a price below 0 and a zone that is left out."""
    rows = read_series(block("csv").encode(), currency="EUR")
    assert [0.0841, 412.0, -0.0032] == pytest.approx([row.value for row in rows])
    assert [("hall-a", ""), ("", "average"), ("hall-a", "")] == [(row.zone, row.signal) for row in rows]


def test_the_bounds_that_are_named_are_the_codes_own() -> None:
    """Sizes, the least saving, the slice."""
    words = (
        f"{MAX_FILE_BYTES >> 20} MiB and {MAX_ROWS_OF_A_FILE:,} lines a file, {MAX_FILES} files, {MAX_ROWS:,} lines",
        f"at least {MIN_SAVING_RATIO:.0%}".replace("%", " %"),
        f"at most {SLICE_S / 60:.0f} minutes",
    )
    assert [] == [each for each in words if each not in GUIDE]


def test_every_log_line_about_prices_is_explained() -> None:
    """With its level; `…` stands for names."""
    rows = re.findall(r"^\| `(energy[^`]*)` \| (\w+) \|", GUIDE, re.MULTILINE)
    source = (ROOT / "scheduler" / "energy_feed.py").read_text(encoding="utf-8")
    said = re.findall(r"logger\.(\w+)\(\"([^\"]*)\"", source)
    for level, words in said:
        tail = words.removeprefix("energy: %s").removesuffix("%s").strip(":; ")
        level = "error" if level == "exception" else level
        explained = [row for row, row_level in rows if row_level == level]
        assert any(tail.split(";")[0].split(" and none")[0] in row for row in explained), words
    assert len(said) >= 5


def test_the_example_of_the_cluster_loads_without_its_comment_signs(tmp_path: Path) -> None:
    """Whoever uses it takes away two characters a line."""
    text = (ROOT / "configs" / "cluster.yaml").read_text(encoding="utf-8")
    lines = [line[2:] for line in text.splitlines() if re.match(r"# ( |zones:|energy:)", line)]
    config = load(tmp_path, "\n".join(lines) + "\n")
    assert (0.30, tmp_path / "energy", 381.0) == (
        config.energy.zones["hall-a"].per_kwh,
        config.energy.folder,
        config.zones["hall-a"].gco2e_per_kwh,
    )
