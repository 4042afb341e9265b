"""The left side: outputs are counted where vLLM's frontend takes them, without a token's id being kept."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from workers.engines.vllm_outputs import install
from workers.engines.vllm_sequences import Sequence


@dataclass
class Stats:
    num_cached_tokens: int


@dataclass
class Output:
    """Names are those of vLLM's EngineCoreOutput."""

    request_id: str
    new_token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prefill_stats: Stats | None = None
    pooling_output: object = None


@dataclass
class State:
    prompt_len: int


@dataclass
class Request:
    request_id: str
    external_req_id: str | None


class Processor:
    """vLLM's OutputProcessor, as far as it is listened at; ``stops``: tokens kept at the stop string, by id."""

    def __init__(self) -> None:
        self.request_states: dict[str, State] = {}
        self.stops: dict[str, int] = {}

    def add_request(self, request: Request, prompt: str | None) -> None:
        self.request_states[request.request_id] = State(prompt_len=9)

    def process_outputs(self, outputs: list[Output], timestamp: float | None = None) -> str:
        for output in outputs:
            if output.request_id in self.request_states:
                kept = self.stops.get(output.request_id)
                if kept is not None:
                    del output.new_token_ids[kept:]
                if kept is not None or output.finish_reason is not None:
                    del self.request_states[output.request_id]
        return "result"

    def abort_requests(self, names: list[str], internal: bool) -> list[str]:
        return [name for name in names if self.request_states.pop(name, None)]


class Noted:
    """The sink: every call is kept."""

    def __init__(self) -> None:
        self.sequences: dict[str, Sequence] = {}
        self.opened_as: list[tuple[str, str, int]] = []
        self.batches: list[tuple[float, list[tuple[str, int]]]] = []
        self.ended: list[str] = []

    def find(self, engine_id: str) -> Sequence | None:
        return self.sequences.get(engine_id)

    def opened(self, engine_id: str, *, external_id: str, prompt_tokens: int) -> None:
        self.opened_as.append((engine_id, external_id, prompt_tokens))
        self.sequences[engine_id] = Sequence(engine_id=engine_id, payer="a", prompt_tokens=prompt_tokens)

    def output_arrived(self, sequence: Sequence) -> None: ...

    def ended_here(self, sequence: Sequence) -> None:
        self.ended.append(sequence.engine_id)

    def outputs_arrived(self, made_s: float, rows: list[tuple[Sequence, int]]) -> None:
        self.batches.append((made_s, [(sequence.engine_id, tokens) for sequence, tokens in rows]))


@pytest.fixture
def noted() -> tuple[Any, Noted]:
    """A processor that is listened at, with one request in it."""
    processor, sink = Processor(), Noted()
    install(processor, sink)
    processor.add_request(Request("e1", "chatcmpl-a"), None)
    return processor, sink


def test_a_request_is_noted_once(noted: tuple[Any, Noted]) -> None:
    """Its ids and its prompt's length; a second part of the same request is no second one."""
    processor, sink = noted
    processor.add_request(Request("e1", "chatcmpl-a"), None)
    processor.add_request(Request("e2", None), None)
    assert [("e1", "chatcmpl-a", 9), ("e2", "e2", 9)] == sink.opened_as


def test_outputs_are_counted(noted: tuple[Any, Noted]) -> None:
    """Tokens, what was cached, the reason of the end; vLLM's own result is passed on."""
    processor, sink = noted
    assert "result" == processor.process_outputs([Output("e1", [5], prefill_stats=Stats(4))], 1.5)
    processor.process_outputs([Output("e1", [6, 7], finish_reason="length")], 2.5)
    sequence = sink.sequences["e1"]
    assert (3, 0, 4, "length") == (
        sequence.generated_tokens, sequence.late_tokens, sequence.cached_tokens, sequence.finish_reason,
    )  # fmt: skip
    assert sequence.is_prefill_over
    assert sequence.has_final_output
    assert [(1.5, [("e1", 1)]), (2.5, [("e1", 2)])] == sink.batches
    assert ["e1"] == sink.ended


def test_tokens_behind_a_stop_string_are_late(noted: tuple[Any, Noted]) -> None:
    """Those that vLLM cuts off in the same output, and those that the engine still sends."""
    processor, sink = noted
    processor.stops["e1"] = 1
    processor.process_outputs([Output("e1", [5, 6, 7])])
    processor.process_outputs([Output("e1", [8])])
    sequence = sink.sequences["e1"]
    assert (1, 3, "stop") == (sequence.generated_tokens, sequence.late_tokens, sequence.finish_reason)
    assert not sequence.has_final_output


def test_outputs_after_an_abort_are_late(noted: tuple[Any, Noted]) -> None:
    """The client is gone: what arrives is nobody's, but it is counted, its final one too."""
    processor, sink = noted
    processor.process_outputs([Output("e1", [5])])
    assert ["e1"] == processor.abort_requests(["e1", "unknown"], internal=True)
    processor.process_outputs([Output("e1", [6], finish_reason="length")])
    sequence = sink.sequences["e1"]
    assert (1, 1, "abort", True) == (
        sequence.generated_tokens, sequence.late_tokens, sequence.finish_reason, sequence.has_final_output,
    )  # fmt: skip
    assert sequence.is_ended_here


def test_an_embedding_is_an_output_without_tokens(noted: tuple[Any, Noted]) -> None:
    """Its prompt was computed all the same."""
    processor, sink = noted
    processor.process_outputs([Output("e1", finish_reason="stop", pooling_output=object(), prefill_stats=Stats(0))])
    assert (0, 9, True) == (
        sink.sequences["e1"].generated_tokens, sink.sequences["e1"].computed_prompt_tokens,
        sink.sequences["e1"].has_final_output,
    )  # fmt: skip


def test_strangers_are_ignored(noted: tuple[Any, Noted]) -> None:
    """Outputs of requests that were forgotten change nothing."""
    processor, sink = noted
    processor.process_outputs([Output("gone", [1, 2])])
    assert [(0.0, [])] == sink.batches
