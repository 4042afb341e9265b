"""The engine's process is killed; then an engine whose hook cannot run. Last, for it ends the shared engine."""

import json
import os
import signal
import time
from pathlib import Path

from benchmarks.worker_run import WorkerRun, demo_spec
from workers.balance import check_balance
from workers.types import Grade, Outcome, WorkerState


def test_a_killed_engine_ends_every_attempt(run: WorkerRun) -> None:
    """SIGKILL with work running: said within seconds, every attempt fails and is closed, none waits for ever."""
    assert run.status is not None
    assert run.status.info is not None
    replies = [
        run.call(f"killed-{number}", prompt=f"tell {number}", max_tokens=900, ignore_eos=True, stream=number % 2 == 0)
        for number in range(6)
    ]
    run.wait(lambda: any(reply.progress for reply in replies), what="some tokens")
    killed_s = time.monotonic()
    os.kill(run.status.info.pids[0], signal.SIGKILL)
    run.wait(lambda: run.status is not None and run.status.state is WorkerState.STOPPED, what="the end", timeout_s=10)
    assert "signal 9" in run.status.cause
    run.wait_ended(*(f"killed-{number}" for number in range(6)), timeout_s=15)
    assert time.monotonic() - killed_s < 10
    assert {Outcome.FAILED} == {reply.usage.outcome for reply in replies if reply.usage is not None}
    late = run.call("late", prompt="anybody?", max_tokens=2)
    run.wait_ended("late", timeout_s=5)
    assert late.usage is not None
    assert (Outcome.FAILED, "worker_stopped") == (late.usage.outcome, late.usage.cause)


def test_without_the_hook_steps_are_made_up_from_outputs(weights: Path) -> None:
    """Forced by a scheduler class of the operator's: grade B and a note; windows close, nothing is called exact."""
    engine_args = {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}
    with WorkerRun(demo_spec(engine_args=engine_args, window_s=2.0)) as run:
        assert run.status is not None
        assert run.status.info is not None
        assert Grade.B is run.status.info.hook_grade
        assert ("step_hook_off: engine_args.scheduler_cls is set",) == run.status.info.notes
        whole = run.call("whole", prompt="The capital of France is", max_tokens=12, ignore_eos=True)
        children = run.call("children", prompt="One two three", n=2, max_tokens=6, ignore_eos=True)
        stop = run.call("stop", prompt="Count: 1 2 3 4 5 6 7", stop=["11"], max_tokens=60, temperature=0)
        gone = run.call("gone", prompt="Once", max_tokens=900, ignore_eos=True, stream=True)
        run.wait(lambda: any(p.output_tokens > 5 for p in gone.progress), what="some tokens")
        run.abort("gone")
        run.wait_ended("whole", "children", "stop", "gone", timeout_s=30)
        run.wait_posted()
        assert whole.usage is not None
        told = json.loads(whole.body)["usage"]
        assert (told["prompt_tokens"], told["completion_tokens"]) == (
            whole.usage.input_tokens,
            whole.usage.output_tokens,
        )
        for reply in (whole, children, stop, gone):
            assert reply.usage is not None
            assert reply.posting is not None
            assert [False] * len(reply.usage.sequences) == [sequence.exact for sequence in reply.usage.sequences]
            assert reply.posting.energy_mj > 0
            assert reply.posting.gpu_us > 0
        balance = check_balance(run.windows, run.postings, run.usages, is_live=True)
        assert 0 == balance.difference_mj
        assert sum(window.num_steps for window in run.windows) >= 12
        run.wait(lambda: run.status is not None and run.status.num_running == 0, what="an idle engine", timeout_s=5)
        pids, folder = run.status.info.pids, Path(run.worker._engine._server.path).parent
    assert not folder.exists()
    assert [] == [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
