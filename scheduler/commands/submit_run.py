"""The run of `jouleway submit`: a bounded number of jobs at once, every end written, and an orderly stop.

Called by ``scheduler.commands.submit``. It must never know a terminal or a signal: it is told to stop, and says what
changed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.submit_ask import Ending, Manner, Outcome, ask
from scheduler.commands.submit_file import Job, short_digest
from scheduler.commands.submit_output import Outputs
from scheduler.commands.submit_totals import Totals

SYNC_S = 1.0
"""How much of what is written a power cut can take."""
MAX_UNAVAILABLE_IN_A_ROW = 16
"""So many jobs one after another that the server could not serve, however patiently asked: it will not do the rest."""
SKIPS_A_BREATH = 1000


class Stop(StrEnum):
    """Why no further job was begun."""

    INTERRUPTED = "interrupted"
    QUOTA = "insufficient_quota"
    KEY = "key_refused"
    UNAVAILABLE = "unavailable"


STOP_BY_ENDING = {Ending.QUOTA: Stop.QUOTA, Ending.KEY: Stop.KEY}


@dataclass(slots=True, kw_only=True)
class State:
    """How far the job is, all runs over this input together."""

    num_jobs: int
    num_before: int = 0
    """Not to be asked again: finished by earlier runs."""
    num_lost_before: int = 0
    """Of these, those whose answer was lost."""
    num_done: int = 0
    """By this run; so are the following."""
    num_failed: int = 0
    num_lost: int = 0
    num_retries: int = 0
    num_running: int = 0
    totals: Totals = field(default_factory=Totals)
    stop: Stop | None = None

    @property
    def num_ended(self) -> int:
        """Finished, failed or lost; not those that were left for another run."""
        return self.num_before + self.num_done + self.num_failed + self.num_lost

    @property
    def num_left(self) -> int:
        """Not asked, or not to the end."""
        return self.num_jobs - self.num_ended


class Run:
    """Asks every job that is not finished. One use."""

    def __init__(
        self,
        jobs: Iterator[Job],
        outputs: Outputs,
        manner: Manner,
        *,
        num_jobs: int,
        concurrency: int,
        on_change: Callable[[State], None] = lambda _: None,
        rng: random.Random | None = None,
    ) -> None:
        found = outputs.found
        self.state = State(
            num_jobs=num_jobs, num_before=len(found.finished), num_lost_before=found.num_lost, totals=found.totals
        )
        self._jobs = jobs
        self._finished = found.finished
        self._outputs = outputs
        self._manner = manner
        self._concurrency = concurrency
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._stopping = asyncio.Event()
        self._askers: list[asyncio.Task[None]] = []
        self._unavailable_in_a_row = 0

    def stop(self, why: Stop) -> None:
        """No further job is begun; those that run may end. The first reason stands."""
        if self.state.stop is None:
            self.state.stop = why
        self._stopping.set()

    def stop_at_once(self) -> None:
        """Hangs up on those that run: the server ends them too, and the next run asks them again."""
        self.stop(Stop.INTERRUPTED)
        for task in self._askers:
            task.cancel()

    async def run(self) -> State:
        """Until every job ended or the run was stopped. Raises: CommandError (input changed, disk full)."""
        syncer = asyncio.create_task(self._sync_often())
        self._askers = [asyncio.create_task(self._ask_some()) for _ in range(self._concurrency)]
        try:
            done, _ = await asyncio.wait(self._askers, return_when=asyncio.FIRST_EXCEPTION)
            if any(not task.cancelled() and task.exception() is not None for task in done):
                # The input or the disk failed us: what runs may still end, if it can be written.
                self._stopping.set()
                await asyncio.wait(self._askers)
        finally:
            for task in (*self._askers, syncer):
                task.cancel()
            ended = await asyncio.gather(*self._askers, syncer, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result
        return self.state

    async def _ask_some(self) -> None:
        while not self._stopping.is_set():
            job = await self._next_job()
            if job is None:
                return
            self.state.num_running += 1
            self._on_change(self.state)
            try:
                outcome = await ask(job, self._manner, pause=self._pause, rng=self._rng)
                self._take(job, outcome)
            finally:
                self.state.num_running -= 1
                self._on_change(self.state)

    async def _next_job(self) -> Job | None:
        """The next that is not finished."""
        for num_skipped, job in enumerate(self._jobs, start=1):
            if short_digest(job.custom_id) not in self._finished:
                return job
            if num_skipped % SKIPS_A_BREATH == 0:
                await asyncio.sleep(0)
                if self._stopping.is_set():
                    return None
        return None

    async def _pause(self, seconds: float) -> bool:
        """Waits; False where the run is stopped meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return not self._stopping.is_set()

    def _take(self, job: Job, outcome: Outcome) -> None:
        """Written first, counted then."""
        state = self.state
        state.num_retries += outcome.num_retries
        if outcome.ending is not Ending.UNAVAILABLE:
            self._unavailable_in_a_row = 0
        match outcome.ending:
            case Ending.LEFT:
                return
            case Ending.DONE:
                assert outcome.response is not None
                self._outputs.done(job.custom_id, outcome.response)
                state.num_done += 1
                state.totals.add(outcome.answer)
                return
            case Ending.LOST:
                self._outputs.failed(job.custom_id, outcome.response, outcome.error)
                state.num_lost += 1
                state.totals.add(outcome.answer)
                return
            case Ending.UNAVAILABLE:
                self._unavailable_in_a_row += 1
                if self._unavailable_in_a_row >= MAX_UNAVAILABLE_IN_A_ROW:
                    self.stop(Stop.UNAVAILABLE)
            case Ending.QUOTA | Ending.KEY:
                self.stop(STOP_BY_ENDING[outcome.ending])
        self._outputs.failed(job.custom_id, outcome.response, outcome.error)
        state.num_failed += 1

    async def _sync_often(self) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                await asyncio.to_thread(self._outputs.sync)
            except OSError as error:
                self._stopping.set()
                raise CommandError(
                    f"the output could not be brought to the disk: {error.strerror}", code=ExitCode.FAILURE
                ) from None
