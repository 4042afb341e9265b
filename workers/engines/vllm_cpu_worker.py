"""vLLM's CPU worker, which a request with a seed cannot end. Runs in vLLM's engine processes, named by ``worker_cls``.

``workers.engines.vllm`` names the class for CPU engines. It must never know a request's text or who pays for it.

A sequence whose prompt is computed in parts is sampled in each of these steps, and the token thrown away. A seeded one
has a random generator of its own, and vLLM 0.32 gives its draw back by moving its offset, which a CPU's generator does
not have: the engine died. Here such a sequence's generator is set aside for the step, so that the token that is thrown
away costs it no draw: what a seed answers does not depend on how its prompt was cut, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


@contextmanager
def unfinished_prompts_draw_nothing(runner: Any) -> Iterator[None]:
    """While it is open, sequences whose token will be thrown away have no generator of their own.

    ``runner``: vLLM's model runner. One that keeps no generators in its batch (V2) is left as it is.
    """
    batch = getattr(runner, "input_batch", None)
    generators: dict[int, Any] = getattr(batch, "generators", None) or {}
    if not generators:
        yield
        return
    is_thrown_away = runner.discard_request_mask.np
    set_aside = {row: generators.pop(row) for row in list(generators) if is_thrown_away[row]}
    try:
        yield
    finally:
        generators.update(set_aside)


class SeededCPUWorker(CPUWorker):  # type: ignore[misc]
    """Implements vLLM's worker."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        with unfinished_prompts_draw_nothing(self.model_runner):
            return super().sample_tokens(grammar_output)
