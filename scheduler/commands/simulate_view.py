"""What a person sees of a simulation: a line a policy, against round robin where it ran too.

Called by ``scheduler.commands.simulate``. It must never compute a figure but the share of one in another.
"""

from __future__ import annotations

from typing import Any

from scheduler.commands.output import print_lines, print_table
from scheduler.simulation.figures import Figures
from scheduler.simulation.policies import ORACLE

COLUMNS = (
    "policy", "J/good token", "vs round-robin", "SLO", "TTFT p50", "TTFT p99", "TPOT p99", "loaded GPUs", "wakes", "kJ",
    "cost", "gCO2e",
)  # fmt: skip
NONE = "—"


def show(found: Figures) -> None:
    """The table of a report, and what its words mean."""
    policies: dict[str, Figures] = found["policies"]
    reference = _mean(policies.get("round-robin", {}), "joules_per_good_token")
    rows = [_row(policy, figures, reference) for policy, figures in policies.items()]
    print_table(_title(found), COLUMNS, rows, is_whole=True)
    print_lines(_notes(found))


def _title(found: Figures) -> str:
    slo, seeds = found["slo"], found.get("seeds", [found.get("seed")])
    return (
        f"SIMULATED (grade D): {found['model']} on {found['fleet']}; good: TTFT ≤ max({slo['ttft_s']:g} s,"
        f" {slo['ttft_ratio']:g} × alone), TPOT ≤ {1e3 * slo['tpot_s']:g} ms; seeds {', '.join(map(str, seeds))}"
    )


def _row(policy: str, figures: Figures, reference: float | None) -> list[str]:
    joules = _mean(figures, "joules_per_good_token")
    against = NONE if joules is None or not reference else f"{100 * (joules / reference - 1):+.1f} %"
    return [
        f"{policy} (a bound)" if policy == ORACLE else policy,
        _with_interval(figures.get("joules_per_good_token")),
        against,
        _number(figures, "slo_attainment_ratio", "{:.2%}"),
        _number(figures, "ttft_p50_s", "{:.3f} s"),
        _number(figures, "ttft_p99_s", "{:.3f} s"),
        _number(figures, "tpot_p99_s", "{:.1f} ms", 1e3),
        _number(figures, "mean_loaded_gpus", "{:.2f}"),
        _number(figures, "wakes", "{:.4g}"),
        _number(figures, "joules_total", "{:,.0f}", 1e-3),
        _number(figures, "cost", "{:.4g}"),
        _number(figures, "gco2e", "{:,.0f}"),
    ]


def _mean(figures: Figures, key: str) -> float | None:
    value: dict[str, Any] | None = figures.get(key)
    return None if value is None else float(value["mean"])


def _number(figures: Figures, key: str, form: str, factor: float = 1.0) -> str:
    value = _mean(figures, key)
    return NONE if value is None else form.format(factor * value)


def _with_interval(value: dict[str, Any] | None) -> str:
    if value is None:
        return NONE
    half = "" if value["low"] is None else f" ± {value['high'] - value['mean']:.2g}"
    return f"{value['mean']:.4g}{half}"


def _notes(found: Figures) -> list[str]:
    by_model = found.get("by_model") or {found["model"]: found}
    notes = [
        f"{model}: {each['rate_requests_per_s']:.4g} requests/s on average, "
        + (f"load {each['load']:g} of" if each["load"] is not None else "beside")
        + f" the round-robin limit {each['round_robin_limit_requests_per_s']:.4g} requests/s"
        for model, each in by_model.items()
    ]
    notes += [
        f"{engine}: {each['basis']}; beyond {each['measured_sequences'][0]:g}-{each['measured_sequences'][1]:g}"
        " sequences the curve is extrapolated"
        for engine, each in found["curves"].items()
    ]
    if ORACLE in found["policies"]:
        notes.append("oracle: no policy but a bound, engines in parts and the future known (docs/planning.md)")
    if any("±" in _with_interval(each.get("joules_per_good_token")) for each in found["policies"].values()):
        notes.append("± is the 95 % interval of the mean over the seeds")
    return notes
