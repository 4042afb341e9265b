"""Attempts and their engine requests: who pays, which prompt, and exactly one end on every path."""

import asyncio
from typing import Any

import pytest

from workers.digests import stated_of
from workers.engines import vllm_attempts
from workers.engines.vllm_aggregate import AggregateSteps
from workers.engines.vllm_attempts import Attempts
from workers.engines.vllm_ids import CALIBRATION_PREFIX, CURRENT_ATTEMPT
from workers.engines.vllm_sequences import Generated, Sequence
from workers.steps import StepRecord
from workers.types import Progress, SequenceUsage

SALT = bytes(range(16))


class Closed:
    """Attempts and what closed of them."""

    def __init__(self) -> None:
        self.closed: dict[str, tuple[SequenceUsage, ...]] = {}
        self.now_s = 10.0
        self.attempts = Attempts(self._on_closed, clock=lambda: self.now_s)

    def _on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        assert attempt_id not in self.closed, "closed twice"
        self.closed[attempt_id] = sequences

    def run(
        self, engine_id: str, *, attempt_id: str | None, external_id: str = "x", prompt: int = 4, **fields: Any
    ) -> Sequence:
        """vLLM registers an engine request in an attempt's context."""
        token = CURRENT_ATTEMPT.set(attempt_id)
        sequence = Sequence(engine_id=engine_id, prompt_tokens=prompt, **fields)
        self.attempts.opened(sequence, external_id=external_id)
        CURRENT_ATTEMPT.reset(token)
        assert sequence is self.attempts.find(engine_id)
        return sequence

    def output(self, sequence: Sequence, *, is_final: bool = False) -> None:
        sequence.generated_tokens += 1
        sequence.is_prefill_over = True
        sequence.has_final_output = is_final
        self.attempts.output_arrived(sequence)

    def end_there(self, sequence: Sequence) -> None:
        sequence.is_ended_there = True
        self.attempts.ended_there(sequence)


@pytest.fixture
def closed() -> Closed:
    """One open attempt, "a"."""
    closed = Closed()
    closed.attempts.open("a", SALT)
    return closed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closing record is given up after 20 ms here."""
    monkeypatch.setattr(vllm_attempts, "LOST_AFTER_S", 0.02)
    monkeypatch.setattr(vllm_attempts, "FLUSH_S", 0.001)


@pytest.mark.parametrize("order", ["asgi, there, here", "here, there, asgi", "there, asgi, here", "there, here, asgi"])
async def test_an_attempt_closes_when_all_its_ends_are_here(closed: Closed, order: str) -> None:
    """Three channels, no order between them: the last one closes it, at once."""
    sequence = closed.run("e", attempt_id="a")
    for end in order.split(", "):
        assert not closed.closed
        match end:
            case "asgi":
                closed.attempts.asgi_ended("a")
            case "here":
                closed.output(sequence, is_final=True)
            case _:
                closed.end_there(sequence)
    assert ["e"] == [usage.engine_request_id for usage in closed.closed["a"]]
    assert closed.closed["a"][0].exact
    assert 0 == closed.attempts.num_open_sequences


async def test_an_attempt_without_an_engine_request_closes_at_once(closed: Closed) -> None:
    """Refused by vLLM, or aborted before it asked for anything; also one whose request was never built."""
    closed.attempts.asgi_ended("a")
    closed.attempts.asgi_ended("never opened")
    assert {"a": (), "never opened": ()} == closed.closed


async def test_what_does_not_come_is_declared_lost(closed: Closed) -> None:
    """After the bound the attempt closes, not exact; a straggler's end is no second one."""
    done, lost = closed.run("done", attempt_id="a"), closed.run("lost", attempt_id="a")
    closed.output(done, is_final=True)
    closed.end_there(done)
    closed.attempts.asgi_ended("a")
    assert not closed.closed
    await asyncio.sleep(0.03)
    assert [True, False] == [usage.exact for usage in closed.closed["a"]]
    assert 0 == closed.attempts.num_open_sequences
    closed.output(lost, is_final=True)
    closed.end_there(lost)
    assert closed.attempts.find("lost") is None


async def test_the_context_says_who_pays(closed: Closed) -> None:
    """Whatever vLLM calls the request; without a context its id does; calibration has no payer."""
    closed.attempts.open("b", SALT)
    assert "a" == closed.run("e1", attempt_id="a", external_id="resp_f00_0").payer
    assert "b" == closed.run("e2", attempt_id=None, external_id="cmpl-b-0").payer
    assert None is closed.run("e3", attempt_id=None, external_id=f"{CALIBRATION_PREFIX}1").payer
    assert None is closed.run("e4", attempt_id="gone", external_id="made-up").payer
    assert None is closed.attempts.find_or_adopt("warm-up", 5).payer


async def test_children_share_a_prompt_and_lists_have_several(closed: Closed) -> None:
    """The index rises with each new prompt."""
    indexes = [
        closed.run(name, attempt_id="a", external_id=external_id).prompt_index
        for name, external_id in (("0_x", "cmpl-a-0"), ("1_x", "cmpl-a-0"), ("y", "cmpl-a-1"))
    ]
    assert [0, 0, 1] == indexes


async def test_choices_are_told_in_the_order_of_the_answer(closed: Closed) -> None:
    """vLLM takes the children of two prompts alternately, and may take the second prompt first."""
    for engine_id, external_id, choice in (
        ("0_y", "cmpl-a-1", 0), ("0_x", "cmpl-a-0", 0), ("1_y", "cmpl-a-1", 1), ("1_x", "cmpl-a-0", 1),
    ):  # fmt: skip
        closed.run(engine_id, attempt_id="a", external_id=external_id, choice=choice)
    closed.attempts.engine_died()
    closed.attempts.asgi_ended("a")
    told = [(usage.engine_request_id, usage.prompt_index) for usage in closed.closed["a"]]
    assert [("0_x", 0), ("1_x", 0), ("0_y", 1), ("1_y", 1)] == told


async def test_a_text_is_stated_under_its_attempts_salt(closed: Closed) -> None:
    """Also of a sequence that never came to an end here; nothing is stated, or kept, of what nobody asked for."""
    reads: list[bool] = []

    def read(is_whole: bool) -> Generated:
        reads.append(is_whole)
        return Generated("so far", 0)

    closed.run("e", attempt_id="a", read=read)
    assert None is closed.run("ours", attempt_id=None, external_id=f"{CALIBRATION_PREFIX}1", read=read).read
    closed.attempts.engine_died()
    closed.attempts.asgi_ended("a")
    usage = closed.closed["a"][0]
    assert ([False], stated_of(SALT, b"so far")) == (reads, (usage.output_bytes, usage.output_digest))


async def test_progress_says_what_moved(closed: Closed) -> None:
    """Once for each change, prompts counted once for children; nothing before the first token is computed."""
    first = closed.run("0_e", attempt_id="a", external_id="p", prompt=6)
    second = closed.run("1_e", attempt_id="a", external_id="p", prompt=6)
    closed.attempts.find_or_adopt("0_e", 6)
    assert [] == closed.attempts.progress()
    closed.output(first)
    closed.output(second)
    assert [Progress("a", 6, 0, 12, 2)] == closed.attempts.progress()
    assert [] == closed.attempts.progress()


async def test_a_dead_engine_closes_whatever_ends(closed: Closed) -> None:
    """Ended attempts at once, running ones with their end; nobody waits for records that cannot come."""
    closed.attempts.open("b", SALT)
    closed.output(closed.run("e1", attempt_id="a"))
    closed.run("e2", attempt_id="b")
    closed.attempts.asgi_ended("a")
    closed.attempts.engine_died()
    assert ["a"] == list(closed.closed)
    closed.attempts.asgi_ended("b")
    assert [False, False] == [usages[0].exact for usages in closed.closed.values()]
    assert 1 == closed.closed["a"][0].generated_tokens


async def test_what_nobody_waits_for_is_bounded(closed: Closed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adopted and lost requests go first; open ones stay."""
    monkeypatch.setattr(vllm_attempts, "MAX_FORGOTTEN", 3)
    closed.run("open", attempt_id="a")
    for number in range(10):
        closed.attempts.find_or_adopt(f"stranger-{number}", 1)
    assert closed.attempts.find("open") is not None
    assert closed.attempts.find("stranger-0") is None
    assert 1 == closed.attempts.num_open_sequences


async def test_without_a_hook_the_outputs_close_an_attempt(closed: Closed) -> None:
    """Nobody will tell the scheduler's side: the end here is the end, never exact; steps are made up."""
    steps: list[StepRecord] = []
    before = closed.run("before", attempt_id="a")
    closed.attempts.use_aggregate(AggregateSteps(on_step=steps.append))
    after = closed.run("after", attempt_id="a", prompt=8)
    closed.attempts.asgi_ended("a")
    for sequence in (before, after):
        closed.output(sequence, is_final=True)
        closed.attempts.outputs_arrived(12.0, [(sequence, 1)])
    await asyncio.sleep(0.01)
    for sequence in (before, after):
        closed.attempts.ended_here(sequence)
    assert [False, False] == [usage.exact for usage in closed.closed["a"]]
    assert [(10.0, 12.0, [4, 8])] == [(s.started_s, s.ended_s, s.prefill_tokens.tolist()) for s in steps]
