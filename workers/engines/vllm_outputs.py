"""The left side of the token identity: outputs of vLLM's engine, counted where they reach this process.

Installed by ``workers.engines.vllm`` around vLLM's OutputProcessor, which also has each text when it is whole. It must
never know a step of the scheduler, and never keep a token's id or a text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from workers.engines.vllm_sequences import Generated, Sequence

CountReasoning = Callable[[dict[str, Any] | None, list[int]], int]
"""(the reasoning parser's arguments of an engine request, ids of its output) → how many of them were reasoning."""


class OutputSink(Protocol):
    """Where engine requests and their outputs are noted."""

    def find(self, engine_id: str) -> Sequence | None: ...

    def opened(self, sequence: Sequence, *, external_id: str) -> None:
        """A new engine request; whose it is the sink knows."""

    def output_arrived(self, sequence: Sequence) -> None: ...

    def ended_here(self, sequence: Sequence) -> None:
        """vLLM's frontend let go of it: complete, a stop string, or aborted."""

    def outputs_arrived(self, made_s: float, rows: list[tuple[Sequence, int]]) -> None:
        """All outputs that came in one go: (sequence, new tokens)."""


def install(processor: Any, sink: OutputSink, *, count_reasoning: CountReasoning) -> None:
    """Listens at an OutputProcessor: who is added, what arrives, who is aborted."""
    add_request: Callable[..., None] = processor.add_request
    process_outputs: Callable[..., Any] = processor.process_outputs
    abort_requests: Callable[..., list[str]] = processor.abort_requests
    states: dict[str, Any] = processor.request_states

    def add(request: Any, *args: Any, **kwargs: Any) -> None:
        add_request(request, *args, **kwargs)
        state = states.get(request.request_id)
        if state is None or sink.find(request.request_id) is not None:
            return
        image_tokens, audio_tokens = media_tokens(request)
        # Not the request itself, which may hold pictures, must live as long as its answer.
        count_own = partial(count_reasoning, request.reasoning_parser_kwargs)
        sequence = Sequence(
            engine_id=request.request_id,
            choice=state.request_index,
            prompt_tokens=state.prompt_len,
            image_tokens=image_tokens,
            audio_tokens=audio_tokens,
            read=None if state.detokenizer is None else partial(read, state, count_own),
        )
        sink.opened(sequence, external_id=request.external_req_id or request.request_id)

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
                sequence.seal(is_whole=True)
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
                sequence.seal(is_whole=False)
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


def media_tokens(request: Any) -> tuple[int, int]:
    """(image, audio) tokens of a prompt, as vLLM's own usage counts them: the places of its pictures and sounds."""
    images = sounds = 0
    for feature in request.mm_features or ():
        if feature.modality == "audio":
            sounds += feature.mm_position.length
        else:
            images += feature.mm_position.length
    return images, sounds


def read(state: Any, count_reasoning: Callable[[list[int]], int], is_whole: bool) -> Generated:
    """What an engine request generated: the text as the client is given it, and how much of it was reasoning."""
    detokenizer = state.detokenizer
    text: str = getattr(detokenizer, "output_text", "")  # a client may ask for ids alone
    if not is_whole and state.output_kind.name == "DELTA":
        text = text[: num_left(state)]
    return Generated(text, count_reasoning(detokenizer.output_token_ids))


def num_left(state: Any) -> int:
    """Characters of a stream that have left vLLM's queue for the client.

    The queue may hold some that nobody took, and the detokeniser some that might begin a stop string.
    """
    waiting = getattr(state.queue.output, "outputs", ())
    num_waiting = sum(len(output.text) for output in waiting if output.index == state.request_index)
    return max(getattr(state.detokenizer, "_last_output_text_offset", 0) - num_waiting, 0)
