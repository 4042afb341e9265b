"""What the step hook costs vLLM's engine process per step, with the real hook class and vLLM's own SchedulerOutput.

Run as ``python -m benchmarks.step_hook [--record]``. No model is computed: the scheduler below the hook does nothing
but hand out one decode step after the other, so that all that is timed is the hook: both of its calls, the encoding
and the ``send`` into the socket that a reader in another process empties.

Three kinds of step are timed apart: the same batch as before (most steps), one request replaced by another, and a
prompt's chunk beside the decodes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.record import record
from workers.engines.vllm_messages import MAX_MESSAGE_BYTES, SOCKET_VARIABLE

BOUND_US = 25.0
CHANGE_EVERY = 32
"""Steps between two changes of the batch: 256 sequences of 256 tokens change it every step; see ``--change-every``."""


def read_all(path: str, ready: Any) -> None:
    """The reader: another process, as in production."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(1)
    ready.set()
    peer, _ = listener.accept()
    while peer.recv(MAX_MESSAGE_BYTES):
        pass


class Requests:
    """A running batch of vLLM's data structures; ``step`` makes the SchedulerOutput of the next step."""

    def __init__(self, num_sequences: int, *, change_every: int) -> None:
        self.names = [_name(number) for number in range(num_sequences)]
        self._positions = dict.fromkeys(self.names, 500)
        self._next = num_sequences
        self._num_steps = 0
        self._change_every = change_every
        self.finished: set[str] = set()
        """Whose last token is the one of this step."""

    def step(self) -> tuple[str, Any]:
        """(kind, output). Requests that end have ended in the step before."""
        from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

        self._num_steps += 1
        is_changed = self._change_every > 0 and self._num_steps % self._change_every == 0
        kind = "first" if self._num_steps == 1 else "even"
        new, rows = [], dict.fromkeys(self.names, 1)
        if kind == "first":
            chosen, cached = self.names, []
        elif is_changed:
            self.names.pop(0)
            name = _name(self._next)
            self._next += 1
            cached, chosen = list(self.names), [name]
            self.names = [*self.names, name]
            tokens = 128 if self._num_steps % (2 * self._change_every) == 0 else 1
            kind = "chunk" if tokens > 1 else "replaced"
            rows = dict.fromkeys(self.names, 1) | {name: tokens}
            self._positions[name] = 0 if tokens > 1 else 127
        else:
            cached, chosen = self.names, []
        for name in chosen:
            new.append(
                NewRequestData(
                    req_id=name, prompt_token_ids=[1] * 128, mm_features=[], sampling_params=None, pooling_params=None,
                    block_ids=([1],), num_computed_tokens=self._positions.get(name, 0), lora_request=None,
                )
            )  # fmt: skip
        positions = [self._positions[name] for name in cached]
        for name, tokens in rows.items():
            self._positions[name] += tokens
        data = CachedRequestData(
            req_ids=list(cached), resumed_req_ids=set(), new_token_ids=[], all_token_ids={}, new_block_ids=[],
            num_computed_tokens=positions, num_output_tokens=[1] * len(cached),
        )  # fmt: skip
        told, self.finished = self.finished, set()
        if self._change_every > 0 and (self._num_steps + 1) % self._change_every == 0:
            self.finished = {self.names[0]}
        output = SchedulerOutput(
            scheduled_new_reqs=new, scheduled_cached_reqs=data, num_scheduled_tokens=rows,
            total_num_scheduled_tokens=sum(rows.values()), scheduled_spec_decode_tokens={}, scheduled_encoder_inputs={},
            finished_req_ids=told, free_encoder_mm_hashes=[],
        )  # fmt: skip
        return kind, output


def _name(number: int) -> str:
    """As long as vLLM's ids of our requests."""
    return f"chatcmpl-0192f3a4-5b6c-7d8e-9f0a-{number:012x}-{number:08x}"


def metered(requests: Requests) -> Any:
    """The real hook over a scheduler that hands out these requests."""
    from workers.engines import vllm_step_hook

    class Idle:
        def __init__(self) -> None:
            self.finished_req_ids: set[str] = set()
            self.given: Any = None

        def schedule(self, throttle_prefills: bool = False) -> Any:
            return self.given

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
            return {}

        def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Any]:
            return []

        def get_request_counts(self) -> tuple[int, int]:
            return len(requests.names), 0

        def get_kv_cache_usage(self) -> float:
            return 0.5

    return vllm_step_hook._metered(Idle)(), Idle()


def measure(num_sequences: int, num_steps: int, *, change_every: int) -> dict[str, Any]:
    """Microseconds per step by kind: the hook's step less the same calls without the hook."""
    requests = Requests(num_sequences, change_every=change_every)
    hooked, bare = metered(requests)
    assert hooked._hook.is_on, "the reader is not there"
    times_us: dict[str, list[float]] = {}
    bare_us: list[float] = []
    for _ in range(num_steps):
        kind, output = requests.step()
        bare.given = hooked.given = output
        hooked.finished_req_ids = requests.finished
        bare_us.append(_timed(bare, output))
        times_us.setdefault(kind, []).append(_timed(hooked, output))
        time.sleep(0.0005)  # a step takes its time: caches cool down, the reader keeps up
    own_us = _quantile(bare_us, 0.5)
    every = [value for kind, values in times_us.items() if kind != "first" for value in values]
    return {
        "num_sequences": num_sequences,
        "num_steps": len(every),
        "changed_steps_ratio": 1 / change_every if change_every else 0.0,
        "median_us": _quantile(every, 0.5) - own_us,
        "p99_us": _quantile(every, 0.99) - own_us,
        "empty_calls_us": own_us,
        "by_kind": {
            kind: {"num_steps": len(values), "median_us": _quantile(values, 0.5) - own_us,
                   "p99_us": _quantile(values, 0.99) - own_us}
            for kind, values in times_us.items() if kind != "first"
        },
        "dropped_messages": int(hooked._hook.tap._must_be_whole),
    }  # fmt: skip


def _timed(scheduler: Any, output: Any) -> float:
    started_ns = time.perf_counter_ns()
    scheduler.schedule()
    scheduler.update_from_output(output, None)
    return (time.perf_counter_ns() - started_ns) / 1000


def _quantile(values: list[float], ratio: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(ratio * len(ordered)), len(ordered) - 1)]


def with_reader(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs with a reader process behind the socket."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "steps")
        ready = context.Event()
        reader = context.Process(target=read_all, args=(path, ready), daemon=True)
        reader.start()
        ready.wait(60)
        os.environ[SOCKET_VARIABLE] = path
        try:
            return work()
        finally:
            reader.terminate()
            reader.join()


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures; exit code 1 where the median is above the bound."""
    parser = argparse.ArgumentParser(description="Cost of the step hook in vLLM's engine process.")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/step_hook.json")
    given = parser.parse_args(arguments)
    values = {}
    for name, change_every in (("steady", 0), ("mixed", CHANGE_EVERY), ("every_step_changes", 1)):
        values[name] = with_reader(partial(measure, given.sequences, given.steps, change_every=change_every))
    print(json.dumps(values, indent=2))
    if given.record:
        record(
            "step_hook",
            {"bound_median_us": BOUND_US, **values},
            what="Microseconds a step that the real hook class adds to vLLM's scheduler calls in the engine process: "
            "vLLM's own SchedulerOutput, all sequences decoding, a reader in another process. steady: the batch stays; "
            "mixed: one request is replaced every 32 steps; every_step_changes: one is replaced in each step, half of "
            "them with a 128-token chunk.",
        )
    return 0 if max(value["median_us"] for value in values.values()) <= BOUND_US else 1


if __name__ == "__main__":
    sys.exit(main())
