"""The left side: outputs are counted where vLLM's frontend takes them, without a token's id or a text being kept."""

from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import pytest

from workers.digests import stated_of
from workers.engines.vllm_outputs import install
from workers.engines.vllm_sequences import Sequence

SALT = bytes(range(16))


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


class Kind(Enum):
    DELTA = auto()
    FINAL_ONLY = auto()


class Detokenizer:
    """The text so far, and how far it was handed to the queue."""

    def __init__(self) -> None:
        self.output_text = ""
        self.output_token_ids: list[int] = []
        self._last_output_text_offset = 0


@dataclass
class State:
    prompt_len: int
    request_index: int = 0
    detokenizer: Detokenizer | None = field(default_factory=Detokenizer)
    output_kind: Kind = Kind.DELTA
    queue: Any = field(default_factory=lambda: SimpleNamespace(output=None))


@dataclass
class Request:
    request_id: str
    external_req_id: str | None
    mm_features: list[Any] | None = None
    reasoning_parser_kwargs: dict[str, Any] | None = None
    state: State = field(default_factory=lambda: State(prompt_len=9))


class Processor:
    """vLLM's OutputProcessor, as far as it is listened at; ``stops``: tokens kept at the stop string, by id."""

    def __init__(self) -> None:
        self.request_states: dict[str, State] = {}
        self.stops: dict[str, int] = {}

    def add_request(self, request: Request, prompt: str | None) -> None:
        self.request_states[request.request_id] = request.state

    def process_outputs(self, outputs: list[Output], timestamp: float | None = None) -> str:
        for output in outputs:
            state = self.request_states.get(output.request_id)
            if state is not None:
                if state.detokenizer is not None:
                    state.detokenizer.output_token_ids += output.new_token_ids
                    state.detokenizer.output_text += "".join(chr(token + 96) for token in output.new_token_ids)
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
        self.opened_as: list[tuple[str, str, int, int]] = []
        self.batches: list[tuple[float, list[tuple[str, int]]]] = []
        self.ended: list[str] = []

    def find(self, engine_id: str) -> Sequence | None:
        return self.sequences.get(engine_id)

    def opened(self, sequence: Sequence, *, external_id: str) -> None:
        self.opened_as.append((sequence.engine_id, external_id, sequence.prompt_tokens, sequence.choice))
        sequence.payer, sequence.salt = "a", SALT
        self.sequences[sequence.engine_id] = sequence

    def output_arrived(self, sequence: Sequence) -> None: ...

    def ended_here(self, sequence: Sequence) -> None:
        self.ended.append(sequence.engine_id)

    def outputs_arrived(self, made_s: float, rows: list[tuple[Sequence, int]]) -> None:
        self.batches.append((made_s, [(sequence.engine_id, tokens) for sequence, tokens in rows]))


@pytest.fixture
def noted() -> tuple[Any, Noted]:
    """A processor that is listened at, with one request in it."""
    processor, sink = Processor(), Noted()
    install(processor, sink, count_reasoning=count_reasoning)
    processor.add_request(Request("e1", "chatcmpl-a"), None)
    return processor, sink


def count_reasoning(parser_kwargs: dict[str, Any] | None, token_ids: list[int]) -> int:
    """Where the route has a parser, every token is reasoning."""
    return 0 if parser_kwargs is None else len(token_ids)


def test_a_request_is_noted_once(noted: tuple[Any, Noted]) -> None:
    """Its ids and its prompt's length; a second part of the same request is no second one."""
    processor, sink = noted
    processor.add_request(Request("e1", "chatcmpl-a"), None)
    processor.add_request(Request("e2", None, state=State(4, request_index=1)), None)
    assert [("e1", "chatcmpl-a", 9, 0), ("e2", "e2", 4, 1)] == sink.opened_as


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
    """Its prompt was computed all the same; it has no text, so no digest."""
    processor, sink = noted
    processor.request_states.clear()
    sink.sequences.clear()
    processor.add_request(Request("e1", "embd-a-0", state=State(9, detokenizer=None)), None)
    processor.process_outputs([Output("e1", finish_reason="stop", pooling_output=object(), prefill_stats=Stats(0))])
    assert (0, 9, True) == (
        sink.sequences["e1"].generated_tokens, sink.sequences["e1"].computed_prompt_tokens,
        sink.sequences["e1"].has_final_output,
    )  # fmt: skip
    assert "" == sink.sequences["e1"].usage().output_digest


def digest_of(sequence: Sequence) -> str:
    return sequence.usage().output_digest


def test_a_whole_text_is_stated_at_its_end(noted: tuple[Any, Noted]) -> None:
    """Once, also what the client has not taken yet; nothing of it is kept."""
    processor, sink = noted
    state = processor.request_states["e1"]
    processor.process_outputs([Output("e1", [1, 2])])
    assert "" == digest_of(sink.sequences["e1"])
    processor.process_outputs([Output("e1", [3], finish_reason="length")])
    assert stated_of(SALT, b"abc").digest == digest_of(sink.sequences["e1"])
    assert 3 == sink.sequences["e1"].usage().output_bytes
    state.detokenizer.output_text = "changed"
    processor.abort_requests(["e1"], internal=True)
    assert stated_of(SALT, b"abc").digest == digest_of(sink.sequences["e1"])


def test_a_text_ends_where_vllm_cut_it_at_a_stop_string(noted: tuple[Any, Noted]) -> None:
    """The frontend's text, not the tokens, is what the client gets."""
    processor, sink = noted
    processor.process_outputs([Output("e1", [1, 2])])
    processor.stops["e1"] = 1
    processor.request_states["e1"].detokenizer.output_text = "a"
    processor.process_outputs([Output("e1", [])])
    assert stated_of(SALT, b"a").digest == digest_of(sink.sequences["e1"])


@pytest.mark.parametrize(
    ("kind", "offset", "waiting", "left"),
    [
        (Kind.DELTA, 6, None, b"abcdef"),
        (Kind.DELTA, 4, None, b"abcd"),
        (Kind.DELTA, 6, [(0, "ef")], b"abcd"),
        (Kind.DELTA, 6, [(1, "xyz"), (0, "f")], b"abcde"),
        (Kind.DELTA, 0, None, b""),
        (Kind.FINAL_ONLY, 0, None, b"abcdef"),
    ],
)
def test_of_an_aborted_stream_what_has_left_is_stated(
    noted: tuple[Any, Noted], kind: Kind, offset: int, waiting: list[tuple[int, str]] | None, left: bytes
) -> None:
    """Not what waits in vLLM's queue, nor what might begin a stop string; of a whole answer all that was generated."""
    processor, sink = noted
    state = processor.request_states["e1"]
    state.output_kind = kind
    processor.process_outputs([Output("e1", [1, 2, 3, 4, 5, 6])])
    state.detokenizer._last_output_text_offset = offset
    if waiting is not None:
        outputs = [SimpleNamespace(index=index, text=text) for index, text in waiting]
        state.queue.output = SimpleNamespace(outputs=outputs)
    processor.abort_requests(["e1"], internal=True)
    assert stated_of(SALT, left).digest == digest_of(sink.sequences["e1"])


def test_an_answer_of_ids_alone_is_the_empty_text(noted: tuple[Any, Noted]) -> None:
    """vLLM's detokeniser has none; a queue may hold an error."""
    processor, sink = noted
    processor.add_request(Request("e2", "cmpl-a-0"), None)
    state = processor.request_states["e2"]
    del state.detokenizer.output_text
    state.queue.output = EOFError()
    processor.abort_requests(["e2"], internal=True)
    assert stated_of(SALT, b"").digest == digest_of(sink.sequences["e2"])


def test_parts_of_the_counts_are_told(noted: tuple[Any, Noted]) -> None:
    """Pictures, a video's too, and sounds of the prompt; reasoning of the output where the route has a parser."""
    processor, sink = noted
    features = [
        SimpleNamespace(modality=modality, mm_position=SimpleNamespace(length=length))
        for modality, length in (("image", 4), ("audio", 3), ("video", 2), ("image", 1))
    ]
    processor.add_request(Request("e2", "chatcmpl-a", features, {"chat_template_kwargs": {}}), None)
    processor.process_outputs([Output("e1", [1, 2], "stop"), Output("e2", [1, 2], "stop")])
    parts = [(s.image_tokens, s.audio_tokens, s.reasoning_tokens) for s in sink.sequences.values()]
    assert [(0, 0, 0), (7, 3, 2)] == parts


def test_strangers_are_ignored(noted: tuple[Any, Noted]) -> None:
    """Outputs of requests that were forgotten change nothing."""
    processor, sink = noted
    processor.process_outputs([Output("gone", [1, 2])])
    assert [(0.0, [])] == sink.batches
