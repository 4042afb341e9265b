"""The left side of the token identity: outputs of vLLM's engine, counted where they reach this process.

Installed by ``workers.engines.vllm`` around vLLM's OutputProcessor. It must never know a step of the scheduler, and
never keep a token's id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from workers.engines.vllm_sequences import Sequence


class OutputSink(Protocol):
    """Where engine requests and their outputs are noted."""

    def find(self, engine_id: str) -> Sequence | None: ...

    def opened(self, engine_id: str, *, external_id: str, prompt_tokens: int) -> None: ...

    def output_arrived(self, sequence: Sequence) -> None: ...

    def ended_here(self, sequence: Sequence) -> None:
        """vLLM's frontend let go of it: complete, a stop string, or aborted."""

    def outputs_arrived(self, made_s: float, rows: list[tuple[Sequence, int]]) -> None:
        """All outputs that came in one go: (sequence, new tokens)."""


def install(processor: Any, sink: OutputSink) -> None:
    """Listens at an OutputProcessor: who is added, what arrives, who is aborted."""
    add_request: Callable[..., None] = processor.add_request
    process_outputs: Callable[..., Any] = processor.process_outputs
    abort_requests: Callable[..., list[str]] = processor.abort_requests
    states: dict[str, Any] = processor.request_states

    def add(request: Any, *args: Any, **kwargs: Any) -> None:
        add_request(request, *args, **kwargs)
        state = states.get(request.request_id)
        if state is not None and sink.find(request.request_id) is None:
            external_id = request.external_req_id or request.request_id
            sink.opened(request.request_id, external_id=external_id, prompt_tokens=state.prompt_len)

    def process(outputs: list[Any], timestamp: float | None = None, *args: Any, **kwargs: Any) -> Any:
        before = [(output, len(output.new_token_ids), output.request_id in states) for output in outputs]
        result = process_outputs(outputs, timestamp, *args, **kwargs)
        rows = []
        for output, num_tokens, is_known in before:
            sequence = sink.find(output.request_id)
            if sequence is None:
                continue
            count(sequence, output, num_tokens=num_tokens, is_known=is_known)
            if is_known and output.request_id not in states:
                sequence.is_ended_here = True
                # The engine did not end it: vLLM's frontend found a stop string.
                sequence.finish_reason = sequence.finish_reason or "stop"
            rows.append((sequence, num_tokens))
        sink.outputs_arrived(timestamp or 0.0, rows)
        for sequence, _ in rows:
            sink.output_arrived(sequence)
            if sequence.is_ended_here:
                sink.ended_here(sequence)
        return result

    def abort(*args: Any, **kwargs: Any) -> list[str]:
        aborted = abort_requests(*args, **kwargs)
        for engine_id in aborted:
            sequence = sink.find(engine_id)
            if sequence is not None:
                sequence.is_ended_here = True
                sequence.finish_reason = sequence.finish_reason or "abort"
                sink.ended_here(sequence)
        return aborted

    processor.add_request, processor.process_outputs, processor.abort_requests = add, process, abort


def count(sequence: Sequence, output: Any, *, num_tokens: int, is_known: bool) -> None:
    """One output of one engine request. vLLM cuts ``new_token_ids`` behind a stop string: the rest came too late."""
    num_kept = len(output.new_token_ids) if is_known else 0
    sequence.generated_tokens += num_kept
    sequence.late_tokens += num_tokens - num_kept
    if output.prefill_stats is not None:
        sequence.cached_tokens = output.prefill_stats.num_cached_tokens
    sequence.is_prefill_over = sequence.is_prefill_over or num_tokens > 0 or output.pooling_output is not None
    if output.finish_reason is not None:
        sequence.has_final_output = True
        if is_known:
            sequence.finish_reason = str(output.finish_reason)
