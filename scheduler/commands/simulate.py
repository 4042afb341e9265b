"""`jouleway simulate`: a trace over a fleet that is not there, under several policies; a table, JSON and a PNG.

Called by ``scheduler.cli_planning``. It must never compute a figure: ``scheduler.study`` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scheduler.catalogue import load_catalogue
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import Progress as Lines
from scheduler.commands.output import console
from scheduler.commands.simulate_view import show
from scheduler.commands.simulate_words import Wishes, parts_of, policies_of, seeds_of, slo_of, wrong
from scheduler.config_errors import ConfigError
from scheduler.core.request import Slo
from scheduler.fleet_spec import FleetError
from scheduler.limit_cache import Limit, limit_of
from scheduler.simulation.course import Course
from scheduler.simulation.figures import Figures, Footprint, summary_of
from scheduler.simulation.fleet import FleetWorker
from scheduler.simulation.oracle import NoEngineMeets
from scheduler.simulation.policies import ORACLE, UnknownPolicy
from scheduler.simulation.traces import TraceRow
from scheduler.study import Study, StudyError, prepare

Courses = dict[str, Course]


def run(wishes: Wishes) -> ExitCode:
    """Every policy on the same arrivals, seed by seed. Raises: CommandError."""
    seeds, policies, lines = seeds_of(wishes), policies_of(wishes), Lines()
    if wishes.json_path is not None and wishes.json_path == wishes.png_path:
        raise wrong("--json and --png name the same file")
    try:
        study = _study(wishes, policies, lines)
        runs, courses = _runs(study, policies, seeds)
    except (FleetError, StudyError, NoEngineMeets, UnknownPolicy, ConfigError) as error:
        raise wrong(str(error)) from None
    found = report_of(study, policies, runs)
    try:
        _write(found, wishes.json_path)
        if wishes.png_path is not None:
            _draw(study, courses, wishes.png_path)
    except OSError as error:
        raise CommandError(f"the result could not be written: {error}") from None
    if wishes.json_path != Path("-"):
        show(found)
    return ExitCode.OK


def report_of(study: Study, policies: Sequence[str], runs: Sequence[Figures]) -> Figures:
    """One document. Where one policy ran with one seed its figures stand at the top, beside what was simulated."""
    described, found = study.described(), dict[str, Figures]()
    for policy in policies:
        of_policy = [each for each in runs if each["policy"] == policy]
        found[policy] = summary_of([{key: each[key] for key in each if key != "seed"} for each in of_policy])
    top = runs[0] if len(runs) == 1 else {"seeds": list(dict.fromkeys(each["seed"] for each in runs))}
    return {**described, **top, "policies": found, "runs": list(runs)}


def _study(wishes: Wishes, policies: Sequence[str], lines: Lines) -> Study:
    def find_limit(workers: Sequence[FleetWorker], rows: Sequence[TraceRow], slo: Slo) -> Limit:
        lines(f"{workers[0].model}: looking for the round-robin limit")
        limit = limit_of(workers, rows, slo)
        where = "known from before" if limit.is_known else "found, and kept"
        lines(f"{workers[0].model}: round-robin limit {limit.per_s:.4g} requests/s ({where})")
        return limit

    if not wishes.pue_ratio >= 1:
        raise wrong(f"--pue {wishes.pue_ratio:g}: a hall takes at least what its meters say, 1 or more")
    if wishes.until_s is not None and not wishes.until_s > 0:
        raise wrong(f"--until {wishes.until_s:g} is not above 0")
    footprint = Footprint(
        price_per_kwh=wishes.price_per_kwh, gco2e_per_kwh=wishes.gco2e_per_kwh, pue_ratio=wishes.pue_ratio
    )
    return prepare(
        parts_of(wishes),
        load_catalogue(),
        slo=slo_of(wishes.slo),
        footprint=footprint,
        policies=policies,
        until_s=float("inf") if wishes.until_s is None else wishes.until_s,
        num_losses=wishes.num_losses,
        find_limit=find_limit,
    )


def _runs(study: Study, policies: Sequence[str], seeds: Sequence[int]) -> tuple[list[Figures], Courses]:
    """Of all, and the course of each policy with the first seed."""
    runs, courses = list[Figures](), Courses()
    with _bar(len(policies) * len(seeds)) as begin:
        for seed in seeds:
            arrivals = study.arrivals(seed)
            span_s = arrivals[-1].arrival_s if arrivals else 1.0
            for policy in policies:
                course = Course(on_look=begin(f"{policy}, seed {seed}", span_s))
                runs.append(study.run(policy, seed, arrivals=arrivals, watch=course))
                if seed == seeds[0] and policy != ORACLE:
                    courses[policy] = course
    return runs, courses


@contextmanager
def _bar(num_runs: int) -> Iterator[Callable[[str, float], Callable[[float], None]]]:
    """Begins a run by its name and simulated length, and gives what is to be told of its time; on standard error."""
    screen = console(to_stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bar:
        task, num_begun = bar.add_task("simulating", total=float(num_runs)), 0

        def begin(name: str, span_s: float) -> Callable[[float], None]:
            nonlocal num_begun
            before, num_begun = num_begun, num_begun + 1
            bar.update(task, completed=float(before), description=name)
            return lambda now_s: bar.update(task, completed=before + min(now_s / span_s, 1.0))

        yield begin


def _write(found: Figures, path: Path | None) -> None:
    if path is None:
        return
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path == Path("-"):
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def _draw(study: Study, courses: Courses, path: Path) -> None:
    if not courses:
        raise wrong("--png: the oracle has no course to draw", "name a policy beside it")
    try:
        from scheduler.commands.simulate_plot import draw
    except ImportError:
        raise CommandError("matplotlib is missing", remedy="pip install 'jouleway[bench]'") from None
    draw(courses, title_of(study), path)


def title_of(study: Study) -> str:
    """What was simulated, in a line."""
    words = [
        f"{part.model} on {part.fleet} at "
        + (f"load {part.load:g}" if part.load is not None else f"{part.rate_per_s:g} requests/s")
        for part in study.parts
    ]
    return "simulated: " + " + ".join(words)
