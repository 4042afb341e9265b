"""A run asks every unfinished job once, a bounded number at a time, writes every end, and stops in an orderly way."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler.commands import submit_run
from scheduler.commands.exits import CommandError
from scheduler.commands.submit_ask import Ending, Manner, Outcome
from scheduler.commands.submit_file import Job, check, jobs
from scheduler.commands.submit_output import ANSWER_LOST, Outputs
from scheduler.commands.submit_run import Run, State, Stop
from scheduler.commands.submit_totals import Answer

MANNER = Manner(url="http://127.0.0.1:1", key="k", digest="d")


def outcome(ending: Ending = Ending.DONE) -> Outcome:
    if ending is Ending.LEFT:
        return Outcome(ending=ending)
    error = {"code": ANSWER_LOST, "message": ""} if ending is Ending.LOST else None
    response = {"status_code": 200, "request_id": "", "body": {}}
    return Outcome(ending=ending, response=response, error=error, answer=Answer(), num_retries=1)


class Place:
    """A file of jobs 0, 1, 2, …, asked of a function instead of a server."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, num_jobs: int = 20) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.num_open = self.num_open_max = 0
        self.answer: Callable[[Job], Any] = lambda _: outcome()
        self.write(num_jobs)
        self.checked = check(self.source)
        monkeypatch.setattr(submit_run, "ask", self._ask)

    @property
    def source(self) -> Path:
        return self.folder / "jobs.jsonl"

    def write(self, num_jobs: int) -> None:
        line = '{"custom_id": "%d", "method": "POST", "url": "/v1/completions", "body": {"model": "m"}}\n'
        self.source.write_text("".join(line % number for number in range(num_jobs)))

    async def _ask(self, job: Job, manner: Manner, *, pause: Any, rng: Any) -> Outcome:
        self.asked[job.custom_id] += 1
        self.num_open += 1
        self.num_open_max = max(self.num_open_max, self.num_open)
        try:
            await asyncio.sleep(0)
            result = self.answer(job)
            return await result if asyncio.iscoroutine(result) else result
        finally:
            self.num_open -= 1

    def outputs(self) -> Outputs:
        return Outputs(self.checked, self.folder / "out.jsonl", self.folder / "err.jsonl")

    def begin(self, outputs: Outputs, *, concurrency: int = 4, on_change: Any = lambda _: None) -> Run:
        return Run(
            jobs(self.checked), outputs, MANNER,
            num_jobs=self.checked.num_jobs, concurrency=concurrency, on_change=on_change,
        )  # fmt: skip

    async def run(self, **options: Any) -> State:
        with self.outputs() as outputs:
            return await self.begin(outputs, **options).run()

    def ids(self, name: str) -> list[str]:
        return sorted(json.loads(line)["custom_id"] for line in (self.folder / name).read_text().splitlines())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


EVERY = sorted(str(number) for number in range(20))


async def test_every_job_is_asked_once_a_few_at_a_time(place: Place) -> None:
    """And each is written."""
    state = await place.run(concurrency=4)
    assert (20, 20, 0, 0, 20) == (state.num_done, state.num_ended, state.num_left, state.num_running, state.num_retries)
    assert (Counter(EVERY), 4, EVERY) == (place.asked, place.num_open_max, place.ids("out.jsonl"))


async def test_a_finished_line_is_never_asked_again(place: Place) -> None:
    """Failed ones are; those that lost their answer are not."""
    endings = {"3": Ending.FAILED, "7": Ending.LOST}
    place.answer = lambda job: outcome(endings.get(job.custom_id, Ending.DONE))
    state = await place.run()
    assert (18, 1, 1) == (state.num_done, state.num_failed, state.num_lost)
    place.asked.clear()
    place.answer = lambda _: outcome()
    state = await place.run()
    assert Counter({"3": 1}) == place.asked
    assert (19, 1, 1, 20) == (state.num_before, state.num_lost_before, state.num_done, state.num_ended)
    assert [each for each in EVERY if each != "7"] == place.ids("out.jsonl")
    assert ["7"] == place.ids("err.jsonl")


@pytest.mark.parametrize("ending", [Ending.QUOTA, Ending.KEY])
async def test_what_every_other_job_would_meet_stops_the_run(place: Place, ending: Ending) -> None:
    """Those that run already may end; the first reason stands."""
    place.answer = lambda job: outcome(ending if int(job.custom_id) >= 5 else Ending.DONE)
    state = await place.run(concurrency=2)
    assert submit_run.STOP_BY_ENDING[ending] == state.stop
    assert 5 == state.num_done
    assert len(place.asked) <= 7
    assert 20 == state.num_left + state.num_ended


async def test_a_server_that_serves_nobody_is_not_asked_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many in a row; one good answer between them begins the count anew."""
    monkeypatch.setattr(submit_run, "MAX_UNAVAILABLE_IN_A_ROW", 5)
    place.answer = lambda job: outcome(Ending.DONE if job.custom_id == "3" else Ending.UNAVAILABLE)
    state = await place.run(concurrency=1)
    assert (Stop.UNAVAILABLE, 9, 8) == (state.stop, len(place.asked), state.num_failed)


async def test_a_stop_lets_running_jobs_end(place: Place) -> None:
    """And the next run asks the rest, nothing twice."""
    with place.outputs() as outputs:
        run = place.begin(outputs, concurrency=3)

        def stop_at(job: Job) -> Outcome:
            if job.custom_id == "4":
                run.stop(Stop.INTERRUPTED)
            return outcome()

        place.answer = stop_at
        state = await run.run()
    assert Stop.INTERRUPTED == state.stop
    assert set(place.asked) == set(place.ids("out.jsonl"))
    assert 5 <= state.num_done <= 7
    place.answer = lambda _: outcome()
    assert 0 == (await place.run()).num_left
    assert (Counter(EVERY), EVERY) == (place.asked, place.ids("out.jsonl"))


async def test_a_second_stop_hangs_up(place: Place) -> None:
    """What ran is asked again by the next run; nothing of it is written."""
    forever = asyncio.Event()

    async def hang(_: Job) -> Outcome:
        await forever.wait()
        return outcome()

    place.answer = hang
    with place.outputs() as outputs:
        run = place.begin(outputs, concurrency=3)
        task = asyncio.create_task(run.run())
        while place.num_open < 3:
            await asyncio.sleep(0)
        run.stop(Stop.INTERRUPTED)
        run.stop_at_once()
        state = await task
    assert (0, 0, 20, Stop.INTERRUPTED) == (state.num_running, state.num_done, state.num_left, state.stop)
    assert ([], 0) == (place.ids("out.jsonl"), place.num_open)


async def test_a_job_that_waits_for_its_next_try_is_left_when_stopped(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause ends at once, with the word not to go on; without a stop it ends after its time."""
    heard: list[bool] = []

    async def ask(job: Job, manner: Manner, *, pause: Any, rng: Any) -> Outcome:
        heard.append(await pause(0.001))
        run.stop(Stop.INTERRUPTED)
        heard.append(await pause(3600.0))
        return outcome(Ending.LEFT)

    monkeypatch.setattr(submit_run, "ask", ask)
    with place.outputs() as outputs:
        run = place.begin(outputs, concurrency=1)
        state = await run.run()
    assert ([True, False], 20, 0) == (heard, state.num_left, state.num_failed)


async def test_a_file_that_is_changed_stops_the_run_and_loses_nothing(place: Place) -> None:
    """What was asked is written before the error leaves."""
    place.write(15)
    with pytest.raises(CommandError, match="was changed"):
        await place.run(concurrency=2)
    assert sorted(place.asked) == place.ids("out.jsonl")
    assert 15 == len(place.asked)


async def test_a_disk_that_fails_stops_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it fails on a line or on the way to the disk."""
    monkeypatch.setattr(submit_run, "SYNC_S", 0.0)

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    async def slowly(_: Job) -> Outcome:
        await asyncio.sleep(0.01)
        return outcome()

    place.answer = slowly
    monkeypatch.setattr(Outputs, "sync", fail)
    with pytest.raises(CommandError, match="could not be brought to the disk"):
        await place.run(concurrency=1)
    assert len(place.asked) < 20


async def test_whoever_watches_hears_every_change(place: Place) -> None:
    """Begin and end of each job; a thousand finished lines in a row let others have their turn."""
    heard: list[tuple[int, int]] = []
    await place.run(concurrency=1, on_change=lambda state: heard.append((state.num_running, state.num_done)))
    assert [(n % 2 ^ 1, (n + 1) // 2) for n in range(40)] == heard
