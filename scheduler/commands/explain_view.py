"""The life of a request as lines and tables: who it was, waits, tries, what each worker would have cost, budgets.

Called by ``scheduler.commands.explain``. Pure but for printing. It must never ask anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from scheduler.commands.amounts import amount, unit
from scheduler.commands.output import print_lines, print_table

Story = Mapping[str, Any]

MEASURED = "windows"
"""The curve of a worker that measured its own."""


def show(story: Story) -> None:
    """Everything, on standard output."""
    print_lines([*_who(story), *_verdict(story), *_waits(story)])
    for attempt in story.get("attempts") or ():
        print_lines(["", *_attempt(attempt)])
        _show_decision(attempt.get("decision"), chosen=attempt.get("worker_id"))
    if story.get("decision"):
        print_lines(["", f"the last look for a place: {_text(story['decision'].get('reason'))}"])
        _show_decision(story["decision"], chosen=None, with_reason=False)
    if story.get("budgets"):
        print_lines([""])
        rows = [_budget(each) for each in story["budgets"]]
        print_table(
            "budgets above it", ("whose", "measure", "window", "limit", "held", "settled"), rows, numeric_from=3
        )


def wrong_sums(story: Story) -> list[str]:
    """Workers of which the terms do not add up to the score, with their attempt."""
    decisions = [(attempt.get("attempt_id"), attempt.get("decision")) for attempt in story.get("attempts") or ()]
    decisions.append(("the last look", story.get("decision")))
    return [
        f"{worker['worker_id']} ({name})"
        for name, decision in decisions
        for worker in (decision or {}).get("workers") or ()
        if worker.get("terms") and sum(worker["terms"].values()) != worker.get("score")
    ]


def _who(story: Story) -> Iterator[str]:
    end = " · ".join(str(story[key]) for key in ("outcome", "cause") if story.get(key))
    yield f"request {story['request_id']}: {story['state']}" + (f", {end}" if end else "")
    zones = story.get("zones")
    words = {
        "tenant": story.get("tenant"),
        "project": story.get("project"),
        "key": story.get("key_id"),
        "task": story.get("task"),
        "model": story.get("model"),
        "band": story.get("band"),
        "data class": story.get("data_class"),
        "zones": "any that may" if zones is None else ", ".join(zones),
    }
    yield " · ".join(f"{name} {_text(value)}" for name, value in words.items() if value not in (None, ""))
    asked, granted = story.get("max_output_tokens"), story.get("granted_output_tokens")
    if asked is not None:
        capped = f", {granted:,} granted by its budgets" if granted not in (None, asked) else ""
        yield f"output asked for at most {asked:,} tokens of each sequence{capped}"
    if story.get("arrival_unix_s"):
        arrived = datetime.fromtimestamp(story["arrival_unix_s"], UTC)
        ended = story.get("ended_s")
        yield f"arrived {arrived:%Y-%m-%d %H:%M:%S} UTC" + ("" if ended is None else f", ended {ended:.3f} s later")


def _verdict(story: Story) -> Iterator[str]:
    """What would become of a request that was not sent."""
    if story.get("rejection"):
        yield "it would be refused: {message} ({reason}, status {status})".format_map(story["rejection"])
    elif story.get("verdict"):
        ahead = f", with {story['num_ahead']:,} of its band or a higher one before it" if story.get("num_ahead") else ""
        yield f"it would be {story['verdict']} now{ahead}"


def _waits(story: Story) -> Iterator[str]:
    for wait in story.get("waits") or ():
        until = "now" if wait["to_s"] is None else f"{wait['to_s']:.3f} s"
        yield f"waited from {wait['from_s']:.3f} s to {until}: {_text(wait['cause'])}"
    if deferral := story.get("deferral"):
        yield (
            "  for a cheaper hour: from {until_s:,.0f} s on, at {nano_per_joule_then:.2f} instead of "
            "{nano_per_joule_at_once:.2f} · 10⁻⁹ a joule; begun by {latest_start_s:,.0f} s whatever it costs"
        ).format_map(deferral)


def _attempt(attempt: Story) -> Iterator[str]:
    end = " · ".join(str(attempt[key]) for key in ("outcome", "cause") if attempt.get(key)) or "running"
    yield f"attempt {attempt['attempt_id']} on {attempt['worker_id']} in zone {attempt['zone']}: {end}"
    moments = (("sent", "started_s"), ("first byte", "first_byte_s"), ("ended", "ended_s"))
    parts = [f"{name} at {attempt[key]:.3f} s" for name, key in moments if attempt.get(key) is not None]
    if attempt.get("payer"):
        parts.append(f"paid by the {attempt['payer']}")
    yield "  " + ", ".join(parts)
    tokens = attempt["tokens"]
    parts = [f"{tokens['input']:,} input tokens ({tokens['cached']:,} cached), {tokens['output']:,} output tokens"]
    if attempt.get("gpu_seconds") is not None:
        parts.append(f"{attempt['gpu_seconds']:,.3f} GPU-seconds")
    if attempt.get("energy_joules") is not None:
        final = "measured" if attempt.get("is_final") else "predicted so far"
        parts.append(f"{attempt['energy_joules']:,.3f} J ({final}, grade {attempt.get('grade')})")
    if attempt.get("cost_nano"):
        parts.append(f"{attempt['cost_nano'] / 1e9:,.9f} currency units")
    yield "  " + " · ".join(parts)


def _show_decision(decision: Story | None, *, chosen: str | None, with_reason: bool = True) -> None:
    if not decision:
        print_lines(["  why there: no longer kept"])
        return
    if with_reason:
        print_lines([f"  why there: {_text(decision.get('reason'))}"])
    names = term_names(decision["workers"])
    columns = ("worker", "zone", "filter", *names, "= score")
    rows = [_worker(worker, names, is_chosen=worker["worker_id"] == chosen) for worker in decision["workers"]]
    print_table("terms in 10⁻⁹ currency units; the lowest sum wins", columns, rows, numeric_from=3)
    print_lines(list(_curves(decision["workers"])))


def _curves(workers: Sequence[Story]) -> Iterator[str]:
    """Who was not placed by what was measured there."""
    named: dict[str, list[str]] = {}
    for worker in workers:
        named.setdefault(worker.get("curve") or MEASURED, []).append(worker["worker_id"])
    for curve, names in named.items():
        if curve != MEASURED:
            yield f"  curve of {', '.join(names)}: {curve}"


def term_names(workers: Sequence[Story]) -> tuple[str, ...]:
    """In the order in which they are told."""
    return tuple(dict.fromkeys(name for worker in workers for name in worker.get("terms") or ()))


def _worker(worker: Story, names: Sequence[str], *, is_chosen: bool) -> tuple[str, ...]:
    terms = worker.get("terms") or {}
    cells = [f"{terms[name]:,}" if name in terms else "–" for name in names]
    score = "–" if worker.get("score") is None else f"{worker['score']:,}"
    mark = " ◂" if is_chosen else ""
    return (f"{worker['worker_id']}{mark}", _text(worker.get("zone")), _text(worker.get("filter")), *cells, score)


def _budget(budget: Story) -> tuple[str, ...]:
    measure = budget["measure"]
    amounts = (amount(measure, budget[key]) for key in ("limit", "held", "settled"))
    return (str(budget["level"]), unit(measure), budget["window"] or "at once", *amounts)


def _text(value: object) -> str:
    return "–" if value in (None, "") else str(value)
