"""The demo's last page: figures that add up pass, any that do not are named, and the JSON keeps its keys."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands.demo_report import (
    DemoFigures,
    TenantFigures,
    balance_lines,
    cautions,
    faults,
    tenant_rows,
)

PROMISED_KEYS = {
    "requests", "tenants", "grade", "meter_mj", "requests_mj", "idle_mj", "overhead_mj", "unattributed_mj",
    "token_difference", "joules_per_token", "predicted_over_measured",
}  # fmt: skip


def row_of(tenant: str = "atlas", **changes: object) -> TenantFigures:
    values: dict[str, object] = {
        "requests": 20, "input_tokens": 900, "cached_tokens": 300, "output_tokens": 500, "gpu_seconds": 4.5,
        "energy_mj": 48_000,
    }  # fmt: skip
    return TenantFigures(tenant=tenant, **(values | changes))  # type: ignore[arg-type]


def figures_of(**changes: object) -> DemoFigures:
    """A clean run: two tenants of 48 J each, 100 J metered."""
    values: dict[str, object] = {
        "tenants": (row_of("atlas"), row_of("borea")), "requests": 40, "aborted": 2, "failed": 0, "grade": "D",
        "meter": "modelled:cpu-seconds", "meter_mj": 100_000, "requests_mj": 96_000, "idle_mj": 3_000,
        "overhead_mj": 500, "unattributed_mj": 500, "in_flight_mj": 0, "token_difference": 0,
        "predicted_over_measured": 0.98, "num_windows": 7, "first_token_s": 41.0,
    }  # fmt: skip
    return DemoFigures(**(values | changes))  # type: ignore[arg-type]


def test_a_clean_run_has_no_fault_and_no_caution() -> None:
    """100 J = 96 + 3 + 0.5 + 0.5."""
    assert ([], []) == (faults(figures_of()), cautions(figures_of()))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"meter_mj": 100_001}, "miss the meter by 1 mJ"),
        ({"idle_mj": 3_001}, "miss the meter by -1 mJ"),
        ({"token_difference": -3}, "off by -3 tokens"),
        ({"in_flight_mj": 200, "idle_mj": 2_800}, "200 mJ are still in flight"),
        ({"tenants": (row_of("atlas"), row_of("borea", energy_mj=47_999))}, "differ from the requests' account by -1"),
        ({"failed": 1}, "1 of 40 requests failed"),
        (
            {"meter_mj": 0, "requests_mj": 0, "idle_mj": 0, "overhead_mj": 0, "unattributed_mj": 0, "tenants": ()},
            "the meter counted nothing",
        ),
    ],
)
def test_what_must_never_be_is_named(changes: dict[str, object], word: str) -> None:
    """One fault, with its number; a millijoule is enough."""
    found = faults(figures_of(**changes))
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"unattributed_mj": 2_500, "idle_mj": 1_000}, "unattributed is 2.5%"),
        ({"unattributed_mj": -2_500, "idle_mj": 6_000}, "unattributed is -2.5%"),
        ({"overhead_mj": 12_500, "requests_mj": 84_000}, "requests are 86.6%"),
        ({"predicted_over_measured": 0.85}, "0.850"),
        ({"predicted_over_measured": 1.2}, "1.200"),
        ({"predicted_over_measured": None}, "unknown"),
    ],
)
def test_a_run_that_is_not_clean_is_said(changes: dict[str, object], word: str) -> None:
    """The clamp can hide lost steps; the ratio and the shares cannot."""
    found = cautions(figures_of(**changes))
    assert len(found) == 1
    assert word in found[0]


@given(st.lists(st.integers(-(10**9), 10**12), min_size=5, max_size=5), st.integers(-5, 5))
def test_the_difference_is_exact(parts: list[int], off_mj: int) -> None:
    """Whatever the size, the balance is integer arithmetic."""
    names = ("requests_mj", "idle_mj", "overhead_mj", "unattributed_mj", "in_flight_mj")
    figures = figures_of(meter_mj=sum(parts) + off_mj, **dict(zip(names, parts, strict=True)))
    assert off_mj == figures.difference_mj


def test_the_json_has_the_promised_keys() -> None:
    """Integers where the name ends in _mj; J/token = requests_mj ÷ 1000 ÷ output tokens."""
    document = json.loads(json.dumps(figures_of().as_dict()))
    assert set(document) >= PROMISED_KEYS
    assert all(isinstance(value, int) for name, value in document.items() if name.endswith("_mj"))
    assert document["joules_per_token"] == pytest.approx(96.0 / 1000)
    assert document["tenants"]["atlas"]["joules_per_token"] == pytest.approx(48.0 / 500)
    assert document["faults"] == []


def test_without_output_there_is_no_joule_per_token() -> None:
    """Nothing is divided by nothing."""
    figures = figures_of(tenants=(row_of(output_tokens=0),))
    assert figures.joules_per_token is None
    assert tenant_rows(figures)[0][-1] == "–"


def test_the_table_adds_up() -> None:
    """The last row is the sum; a joule column shows millijoules."""
    rows = tenant_rows(figures_of())
    assert [row[0] for row in rows] == ["atlas", "borea", "all"]
    assert rows[-1] == ("all", "40", "1,800", "600", "1,000", "9.000", "96.000", "0.096")


def test_the_balance_names_meter_and_grade() -> None:
    """A modelled joule never looks like a measured one."""
    text = "\n".join(balance_lines(figures_of()))
    assert "modelled:cpu-seconds, grade D" in text.splitlines()[0]
    for part in ("requests", "idle", "overhead", "unattributed", "difference           0 mJ", "measured 0.980"):
        assert part in text
    assert "in flight" not in text
    assert "in flight" in "\n".join(balance_lines(figures_of(in_flight_mj=5)))
