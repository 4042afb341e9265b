"""A snapshot as operators watch it: workers, queues by band and tenant, budgets near their limit.

Called by ``scheduler.commands.top``. Pure. It must never ask anybody. A figure that is not known is None, or a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scheduler.commands.amounts import amount, unit

Fields = Mapping[str, Any]

PARKED = "parked"
STYLES = {PARKED: "cyan"}
"""Of states in which a worker is not ready and nothing is wrong."""
MAX_TENANTS = 20
MAX_BUDGETS = 10
"""What a screen holds; ``--json`` has them all."""


def digest(snapshot: Fields, *, at_unix_s: float) -> dict[str, Any]:
    """What is shown, as plain values with a unit at the end of each name."""
    energy = {row["worker_id"]: row for row in snapshot["worker_energy"]}
    workers = [_worker(worker, energy.get(worker["worker_id"])) for worker in snapshot["workers"]]
    watts = [worker["power_watts"] for worker in workers if worker["power_watts"] is not None]
    return {
        "at_unix_s": at_unix_s,
        "workers": workers,
        "queue": [
            {
                "band": band["band"],
                "num_requests": band["num_requests"],
                "num_bytes": band["num_bytes"],
                "retry_after_s": band["retry_after_s"],
                "tenants": dict(band["tenants"]),
            }
            for band in snapshot["queue"]
        ],
        "budgets": [
            {**budget, "full_ratio": (budget["used"] + budget["held"]) / budget["limit"] if budget["limit"] else None}
            for budget in snapshot["budgets_near_limit"]
        ],
        "totals": {
            "num_open": snapshot["num_open"],
            "num_running": snapshot["num_running"],
            "submitted": snapshot["submitted"],
            "finished": sum(snapshot["finished"].values()),
            "finished_by_outcome": snapshot["finished"],
            "rejected": sum(snapshot["rejected"].values()),
            "rejected_by_reason": snapshot["rejected"],
            "preempted": snapshot["preempted"],
            "power_watts": sum(watts) if watts else None,
            "joules_per_token": _joules_per_token(snapshot["worker_energy"]),
        },
        "is_draining": snapshot["is_draining"],
        "ledger_problem": snapshot.get("ledger_problem", ""),
    }


def _worker(worker: Fields, energy: Fields | None) -> dict[str, Any]:
    status = worker["status"] or {}
    info = status.get("info") or {}
    kv_tokens = info.get("kv_tokens")
    used_tokens = status.get("kv_used_tokens")
    phase, state = worker["phase"], status.get("state")
    return {
        "worker_id": worker["worker_id"],
        "state": phase if state is None else state if phase == "connected" else f"{state} ({phase})",
        "is_ready": worker["is_ready"],
        "zone": status.get("zone"),
        "models": list(info.get("models", ())),
        "num_running": status.get("num_running"),
        "num_waiting": status.get("num_waiting"),
        "num_attempts": worker["num_attempts"],
        "kv_used_tokens": used_tokens,
        "kv_tokens": kv_tokens,
        "kv_used_ratio": used_tokens / kv_tokens if kv_tokens and used_tokens is not None else None,
        "power_watts": status.get("power_watts"),
        "joules_per_token": _joules_per_token(() if energy is None else (energy,)),
        "grade": status.get("grade"),
        "meter_up": status.get("meter_up"),
        "is_simulated": info.get("simulated"),
        "health": list(status.get("health", ())),
        "cause": worker["cause"] or status.get("cause", ""),
    }


def _joules_per_token(rows: Sequence[Fields]) -> float | None:
    """Joules of requests ÷ output tokens, since serving began; None before the first token."""
    output_tokens = sum(row["output_tokens"] for row in rows)
    return sum(row["requests_mj"] for row in rows) / 1000 / output_tokens if output_tokens else None


def screen(told: Fields, *, complaint: str = "") -> RenderableType:
    """All of a digest, as wide as the screen."""
    parts: list[RenderableType] = [Text(_headline(told), style="bold")]
    if told["ledger_problem"]:
        parts.append(Text(f"LEDGER DOWN: {told['ledger_problem']}", style="bold red"))
    if complaint:
        parts.append(Text(complaint, style="bold red"))
    parts += [_workers(told["workers"]), _queue(told["queue"])]
    if told["budgets"]:
        parts.append(_budgets(told["budgets"]))
    return Group(*parts)


def _headline(told: Fields) -> str:
    totals = told["totals"]
    workers = told["workers"]
    num_parked = sum(worker["state"] == PARKED for worker in workers)
    parts = [
        f"{datetime.fromtimestamp(told['at_unix_s'], UTC):%H:%M:%S} UTC",
        f"{sum(worker['is_ready'] for worker in workers)}/{len(workers)} workers ready",
        *([f"{num_parked} parked"] if num_parked else []),
        f"{totals['num_open']:,} open, {totals['num_running']:,} running",
        f"{totals['finished']:,} finished, {totals['rejected']:,} rejected, {totals['preempted']:,} preempted",
        f"{_number(totals['power_watts'], '.0f')} W",
        f"{_number(totals['joules_per_token'], '.3f')} J/token",
    ]
    return " · ".join([*parts, "DRAINING"] if told["is_draining"] else parts)


def _workers(workers: Sequence[Fields]) -> Table:
    columns = ("worker", "state", "zone", "batch", "waiting", "KV", "watts", "J/token", "grade", "says")
    table = _table(columns, numeric=range(3, 8))
    for worker in workers:
        says = "; ".join(text for text in (*worker["health"], worker["cause"]) if text)
        table.add_row(
            worker["worker_id"],
            Text(worker["state"], style="green" if worker["is_ready"] else STYLES.get(worker["state"], "red")),
            worker["zone"] or "–",
            _number(worker["num_running"], ","),
            _number(worker["num_waiting"], ","),
            _number(worker["kv_used_ratio"], ".0%"),
            _number(worker["power_watts"], ".1f"),
            _number(worker["joules_per_token"], ".3f"),
            (worker["grade"] or "–") + (" (down)" if worker["meter_up"] is False else ""),
            Text(says, no_wrap=True, overflow="ellipsis"),
        )
    table.columns[-1].no_wrap = False  # words give way before names and numbers do
    return table


def _queue(bands: Sequence[Fields]) -> Table:
    """A row a band, and below it one a tenant, the longest first."""
    table = _table(("queue", "waiting", "bytes", "retry after"), numeric=range(1, 4))
    for band in bands:
        row = (f"{band['num_requests']:,}", f"{band['num_bytes']:,}", f"{band['retry_after_s']} s")
        table.add_row(Text(band["band"], style="bold"), *row)
        for tenant, num in _longest(band["tenants"]):
            table.add_row(f"  {tenant}", num, "", "")
    return table


def _longest(tenants: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    ordered = sorted(tenants.items(), key=lambda pair: (-pair[1], pair[0]))
    for tenant, num in ordered[:MAX_TENANTS]:
        yield tenant, f"{num:,}"
    rest = ordered[MAX_TENANTS:]
    if rest:
        yield f"{len(rest):,} more tenants", f"{sum(num for _, num in rest):,}"


def _budgets(budgets: Sequence[Fields]) -> Table:
    columns = ("budget near its limit", "measure", "window", "full", "limit", "used", "held", "left", "resets")
    table = _table(columns, numeric=range(3, 9))
    for budget in budgets[:MAX_BUDGETS]:
        measure = budget["measure"]
        resets = budget["resets_unix_s"]
        table.add_row(
            budget["level"],
            unit(measure),
            budget["window"] or "at once",
            _number(budget["full_ratio"], ".0%"),
            *(amount(measure, budget[name]) for name in ("limit", "used", "held", "left")),
            "–" if resets is None else f"{datetime.fromtimestamp(resets, UTC):%m-%d %H:%M}",
        )
    if len(budgets) > MAX_BUDGETS:
        table.add_row(f"{len(budgets) - MAX_BUDGETS:,} more")
    return table


def _table(columns: Sequence[str], *, numeric: range) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in numeric else "left", no_wrap=True)
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
