"""A simulated worker says what a real one would, of what its engine really computed."""

import math

import pytest

from scheduler.simulation.worker import Bytes, End, SimulatedWorker
from tests.simulated_words import arrival, setup
from workers.engines.simulated_options import SimulatedOptions
from workers.types import Outcome, UsageRecord, WorkerState


def call(worker: SimulatedWorker, attempt_id: str = "a-1", *, max_output_tokens: int = 50, **values: object) -> None:
    worker.call(attempt_id, arrival(**values), max_output_tokens=max_output_tokens, priority=1)  # type: ignore[arg-type]


def run_dry(worker: SimulatedWorker) -> list[object]:
    """Steps until nothing runs; everything it said."""
    words: list[object] = [*worker.take_words()]
    while worker.engine.begin(0.0, max_steps=4) is not None:
        worker.finish_steps()
        words += worker.take_words()
    return words


def test_a_streaming_answer_is_bytes_end_and_usage() -> None:
    """Capped by what the core allowed; the usage is the engine's own count."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker, output=5, max_output_tokens=3)
    first, end, usage = run_dry(worker)
    assert (Bytes("a-1"), End("a-1", Outcome.COMPLETED, "")) == (first, end)
    assert isinstance(usage, UsageRecord)
    assert (10, 3) == (usage.input_tokens, usage.output_tokens)
    assert [0] == [sequence.token_difference for sequence in usage.sequences]


def test_a_whole_answer_has_no_bytes_before_its_end() -> None:
    """So a lost worker is tried again up to the last moment."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker, is_streaming=False)
    assert [End, UsageRecord] == [type(word) for word in run_dry(worker)]


def test_all_sequences_end_before_their_attempt() -> None:
    """Two choices: one prompt billed, all outputs counted."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker, num_sequences=2)
    usage = run_dry(worker)[-1]
    assert isinstance(usage, UsageRecord)
    assert (10, 10, 2) == (usage.input_tokens, usage.output_tokens, len(usage.sequences))


@pytest.mark.parametrize("why", ["busy", "full", "sick", "too long"])
def test_a_refusal_is_both_endings_at_once(why: str) -> None:
    """And says its cause in a real worker's words."""
    worker = SimulatedWorker(setup(max_running=1), life=1, seed=0)
    values: dict[str, object] = {}
    if why == "busy":
        worker.is_busy = True
    elif why == "full":
        call(worker, "b-1")
    elif why == "sick":
        worker.state = WorkerState.SICK
    else:
        values = {"output": 10_000, "max_output_tokens": 10_000}
    call(worker, **values)  # type: ignore[arg-type]
    end, usage = worker.take_words()
    expected = {
        "busy": (Outcome.FAILED, "worker_busy"), "full": (Outcome.FAILED, "worker_busy"),
        "sick": (Outcome.FAILED, "worker_sick"), "too long": (Outcome.REFUSED, ""),
    }[why]  # fmt: skip
    assert isinstance(end, End)
    assert isinstance(usage, UsageRecord)
    assert expected == (end.outcome, end.cause) == (usage.outcome, usage.cause)


def test_a_repeated_call_and_a_stranger_s_abort_change_nothing() -> None:
    """Messages come twice, and late."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    call(worker)
    worker.abort("nobody-1", "client_gone")
    assert [Bytes, End, UsageRecord] == [type(word) for word in run_dry(worker)]


def test_an_abort_ends_with_the_step_in_flight() -> None:
    """What it computed is counted."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    worker.engine.begin(0.0)
    worker.abort("a-1", "client_gone")
    assert [] == worker.take_words()
    worker.finish_steps()
    end, usage = [word for word in worker.take_words() if not isinstance(word, Bytes)]
    assert End("a-1", Outcome.ABORTED, "client_gone") == end
    assert isinstance(usage, UsageRecord)
    assert (1, 0) == (usage.output_tokens, worker.engine.num_running)


def test_a_stalled_worker_fails_what_runs_and_says_it_is_sick() -> None:
    """Its watchdog does not wait for the engine."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    worker.engine.begin(0.0)
    worker.hangs_since_s = 0.0
    worker.stall()
    assert End("a-1", Outcome.FAILED, "stalled") == worker.take_words()[0]
    assert WorkerState.SICK is worker.view().state


def test_progress_is_told_once() -> None:
    """Only of what moved; the view says the rest."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    assert () == worker.progress()
    worker.engine.begin(0.0)
    worker.finish_steps()
    (progress,) = worker.progress()
    assert ("a-1", 10, 0, 10, 1) == (
        progress.attempt_id, progress.prompt_tokens, progress.cached_tokens, progress.computed_prompt_tokens,
        progress.output_tokens,
    )  # fmt: skip
    assert () == worker.progress()
    view = worker.view()
    assert (1, 0, 4, 2_000) == (view.num_running, view.num_waiting, view.max_running, view.kv_tokens)


def test_what_an_attempt_takes_is_metered_with_its_steps() -> None:
    """One request alone takes all joules and all the time of its steps; two share them evenly."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker, output=5)
    run_dry(worker)
    alone = worker.took["a-1"]
    assert (50_000, True) == (round(alone.gpu_us), alone.energy_mj > 0)
    both = SimulatedWorker(setup(), life=1, seed=0)
    for attempt_id in ("a-1", "b-1"):
        call(both, attempt_id, output=5)
    run_dry(both)
    assert [25_000, 25_000] == [round(took.gpu_us) for took in both.took.values()]


def test_a_liar_is_full_when_it_is_idle_and_idle_when_it_runs() -> None:
    """And its curves are none that an engine can have."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    worker.is_lying = True
    assert 1_000 == worker.view().num_running
    call(worker)
    worker.engine.begin(0.0)
    view = worker.view()
    assert (0, 0, 0) == (view.num_running, view.num_waiting, view.kv_used_tokens)
    assert view.curves is not None
    assert math.isnan(view.curves.time_s[0])


def test_equal_parts_of_prompts_are_cached() -> None:
    """Two of three parts are those of the prompt before it; usage and progress say so."""
    options = SimulatedOptions(fixed_step_s=0.01, kv_tokens=2_000, block_tokens=2)
    worker = SimulatedWorker(setup(options=options), life=1, seed=0)
    call(worker, "a-1", prefix_blocks=(1, 2, 3))
    run_dry(worker)
    call(worker, "b-1", prefix_blocks=(1, 2, 4))
    usage = run_dry(worker)[-1]
    assert isinstance(usage, UsageRecord)
    assert (10, 6) == (usage.input_tokens, usage.cached_tokens)
