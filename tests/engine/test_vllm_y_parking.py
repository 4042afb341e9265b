"""The shared vLLM is parked and started again: its whole process tree goes, and what comes back counts as before.

After the tests that serve, before the one that kills it: a start takes half a minute.
"""

import json
import os
import time

from benchmarks.worker_run import WorkerRun
from workers.balance import check_balance
from workers.types import Outcome, Park, Phase, Wake, WorkerState

PROMPT = "The capital of France is"


def tree_of(roots: tuple[int, ...]) -> set[int]:
    """These processes, and all below them."""
    parents: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    tree = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def memory_bytes(pids: set[int]) -> int:
    """Resident, of those that are there."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm") as file:
                total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def ask(run: WorkerRun, name: str) -> str:
    """A short answer, the same each time; its tokens are counted exactly on both sides."""
    reply = run.call(name, prompt=PROMPT, max_tokens=12, temperature=0)
    run.wait_ended(name, timeout_s=60)
    assert reply.usage is not None
    assert (Outcome.COMPLETED, 12) == (reply.usage.outcome, reply.usage.output_tokens)
    assert [(True, 0)] == [(each.exact, each.token_difference) for each in reply.usage.sequences]
    return str(json.loads(reply.body)["choices"][0]["text"])


def tell(run: WorkerRun, *commands: Park | Wake) -> None:
    run.loop.call_soon_threadsafe(run.worker.command, 1, list(commands))


def test_a_parked_vllm_is_gone_and_comes_back_the_same(run: WorkerRun) -> None:
    """No process and none of its memory is left; called meanwhile it refuses; woken it answers the same, and counts.

    What it took to start is learned, and every millijoule of the cycle is booked: a wake as overhead.
    """
    run.wait(lambda: run.status is not None and run.status.num_running == 0, what="an idle engine")
    assert run.status is not None
    assert run.status.info is not None
    first, before = run.status.info, ask(run, "before-parking")
    run.wait(lambda: run.status is not None and run.status.num_running == 0, what="an idle engine")
    tree = tree_of(first.pids)
    assert memory_bytes(tree) > 300_000_000
    num_windows = len(run.windows)
    tell(run, Park(reason="test"))
    run.wait(lambda: run.status is not None and run.status.cause == "test", what="a parked engine", timeout_s=40)
    assert (WorkerState.PARKED, ()) == (run.status.state, run.status.info and run.status.info.pids)
    assert (set(), 0) == ({pid for pid in tree if os.path.exists(f"/proc/{pid}")}, memory_bytes(tree))
    refused = run.call("while-parked", prompt=PROMPT, max_tokens=2)
    run.wait_ended("while-parked", timeout_s=5)
    assert refused.usage is not None
    assert (Outcome.FAILED, "worker_parked") == (refused.usage.outcome, refused.usage.cause)
    time.sleep(2.5)  # a window of its own
    woken_s = time.monotonic()
    tell(run, Wake(reason="test"))
    run.wait(lambda: run.status is not None and run.status.state is WorkerState.READY, what="a wake", timeout_s=280)
    took_s = time.monotonic() - woken_s
    assert before == ask(run, "after-parking")
    again, states = run.status.info, run.status.power_states
    assert again is not None
    assert states is not None
    assert (first.kv_tokens, first.models, first.hook_grade) == (again.kv_tokens, again.models, again.hook_grade)
    assert first.pids != again.pids
    assert "measured" == states.source
    assert abs(states.start_s - took_s) <= 0.2 * took_s
    assert states.start_watts > 1.0
    run.wait_posted()
    run.wait(lambda: run.windows[-1].phase is Phase.SERVING, what="a window of serving", timeout_s=10)
    cycle = run.windows[num_windows:]
    assert 0 == check_balance(run.windows, run.postings, run.usages, is_live=True).difference_mj
    not_serving = [each.phase for each in cycle if each.phase is not Phase.SERVING]
    assert [Phase.PARKED, Phase.STARTING] == list(dict.fromkeys(not_serving))
    assert {0} == {each.unattributed_mj for each in cycle if each.phase is not Phase.SERVING}
    assert sum(each.overhead_mj for each in cycle if each.phase is Phase.STARTING) > 1_000
