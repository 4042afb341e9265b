"""What a person sees of `jouleway submit`: a progress bar with what it took so far, and its end in words.

Called by ``scheduler.commands.submit``. It must never compute a figure. All of it goes to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scheduler.commands.output import console
from scheduler.commands.submit_run import State, Stop
from scheduler.commands.submit_totals import Totals

REDRAW_S = 0.2
PLAIN_LINE_S = 10.0
"""Without a terminal the progress is one line this often."""

WORDS_BY_STOP = {
    Stop.INTERRUPTED: "stopped",
    Stop.QUOTA: "stopped: a budget is used up (the last line of the errors file says which)",
    Stop.KEY: "stopped: the key is refused",
    Stop.UNAVAILABLE: "stopped: the server could not serve one line after another",
}


@contextmanager
def bar(num_jobs: int, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[State], None]]:
    """A callback that shows how far the run is; drawn at most a few times a second, and once more at the end."""
    screen = console(to_stderr=True)
    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    last: State | None = None
    due_s = 0.0
    with Progress(*columns, console=screen, auto_refresh=False, disable=not screen.is_terminal) as drawn:
        task = drawn.add_task("", total=num_jobs)

        def draw(state: State) -> None:
            drawn.update(task, completed=state.num_ended, description=so_far(state), refresh=True)
            if not screen.is_terminal:
                screen.print(f"{state.num_ended:,}/{state.num_jobs:,} lines · {so_far(state)}", markup=False)

        def on_change(state: State) -> None:
            nonlocal due_s, last
            last = state
            now_s = clock()
            if now_s >= due_s:
                due_s = now_s + (REDRAW_S if screen.is_terminal else PLAIN_LINE_S)
                draw(state)

        try:
            yield on_change
        finally:
            if last is not None:
                draw(last)


def so_far(state: State) -> str:
    """One line: what runs, what failed, and what it took."""
    parts = [f"{state.num_running} running"]
    if state.num_failed:
        parts.append(f"{state.num_failed:,} failed")
    if state.num_lost:
        parts.append(f"{state.num_lost:,} answers lost")
    return " · ".join([*parts, took(state.totals)])


def took(totals: Totals) -> str:
    """Tokens, joules and money, where anybody said them."""
    parts = [f"{totals.input_tokens:,} + {totals.output_tokens:,} tokens"]
    if totals.num_metered:
        parts.append(f"{totals.energy_mj / 1000:,.1f} J (grade {totals.grade}, provisional)")
    if totals.cost_nano is not None:
        parts.append(totals.money())
    return " · ".join(parts)


def summary(state: State, *, output: Path, errors: Path) -> Iterator[str]:
    """Its end, in words."""
    num_finished = state.num_before - state.num_lost_before + state.num_done
    earlier = f" ({state.num_before:,} by earlier runs)" if state.num_before else ""
    yield f"{num_finished:,} of {state.num_jobs:,} lines have their answer{earlier} in {output}"
    yield f"all of them: {took(state.totals)}"
    num_lost = state.num_lost_before + state.num_lost
    if state.num_failed or num_lost:
        lost = f", {num_lost:,} ran but lost their answer (they are not asked again)" if num_lost else ""
        yield f"{state.num_failed:,} failed{lost}: {errors}"
    if state.stop is not None:
        yield WORDS_BY_STOP[state.stop]
    if state.num_left or state.num_failed:
        yield f"{state.num_left + state.num_failed:,} lines are asked again by the same command"
