"""The hook's messages become step records; the round trip with the hook is in ``test_vllm_step_tap.py``."""

import msgspec
import pytest

from workers.engines.vllm_feed import StepFeed
from workers.engines.vllm_messages import EndedRow, Joined, Newcomer, StepMessage, Tokens, encode
from workers.engines.vllm_sequences import Sequence
from workers.steps import StepRecord


class Known:
    """Sequences by engine id."""

    def __init__(self) -> None:
        self.sequences: dict[str, Sequence] = {}
        self.ended: list[str] = []

    def find_or_adopt(self, engine_id: str, prompt_tokens: int) -> Sequence:
        return self.sequences.setdefault(
            engine_id, Sequence(engine_id=engine_id, payer=f"pays-{engine_id}", prompt_tokens=prompt_tokens)
        )

    def ended_there(self, sequence: Sequence) -> None:
        self.ended.append(sequence.engine_id)


class Fed:
    """A feed and what came out of it."""

    def __init__(self) -> None:
        self.known = Known()
        self.steps: list[StepRecord] = []
        self.dropped: list[int] = []
        self.feed = StepFeed(self.known, on_step=self.steps.append, on_dropped=self.dropped.append)
        self.number = 0

    def take(self, **fields: object) -> None:
        self.feed.take(encode(StepMessage(number=self.number, **fields)))  # type: ignore[arg-type]
        self.number += 1


@pytest.fixture
def fed() -> Fed:
    """One prompt of 100 tokens in a chunk of 64, and one that decodes."""
    fed = Fed()
    fed.take(
        scheduled_s=1.0, done_s=1.1, is_whole=True, newcomers=[Newcomer(0, "p", 100), Newcomer(1, "d", 8)],
        joined=[Joined(0, 16), Joined(1, 0)], tokens=[Tokens(0, 64), Tokens(1, 8)], num_running=2, kv_used_ratio=0.1,
    )  # fmt: skip
    return fed


def test_a_step_has_a_row_for_each_sequence(fed: Fed) -> None:
    """Who pays, prefill, decode, what was there before."""
    fed.take(scheduled_s=1.1, done_s=1.3, tokens=[Tokens(0, 20)])
    fed.take(scheduled_s=1.3, done_s=1.4)
    assert ("pays-p", "pays-d") == fed.steps[0].payers
    assert [[64, 8], [20, 0], [0, 0]] == [step.prefill_tokens.tolist() for step in fed.steps]
    assert [[0, 0], [0, 1], [1, 1]] == [step.decode_tokens.tolist() for step in fed.steps]
    assert [[16, 0], [80, 8], [100, 9]] == [step.context_tokens.tolist() for step in fed.steps]
    assert [1, 2, 3] == [step.step for step in fed.steps]


def test_steps_follow_each_other_in_time(fed: Fed) -> None:
    """Scheduled while the one before ran: it began when that ended."""
    fed.take(scheduled_s=1.05, done_s=1.3)
    fed.take(scheduled_s=1.5, done_s=1.6)
    assert [(1.0, 1.1), (1.1, 1.3), (1.5, 1.6)] == [(step.started_s, step.ended_s) for step in fed.steps]


def test_an_ending_without_a_step_is_no_step(fed: Fed) -> None:
    """An idle engine still says who ended."""
    fed.take(ended=[EndedRow(1)])
    assert 1 == len(fed.steps)
    assert ["d"] == fed.known.ended
    fed.take(scheduled_s=2.0, done_s=2.1, tokens=[Tokens(0, 20)])
    assert ("pays-p",) == fed.steps[-1].payers


def test_counts_are_written_back_when_the_batch_changes(fed: Fed) -> None:
    """A long run of even steps moves one counter; the sequences learn of it at the end."""
    fed.take(scheduled_s=1.1, done_s=1.2, tokens=[Tokens(0, 20)])
    for number in range(50):
        fed.take(scheduled_s=2.0 + number, done_s=2.5 + number)
    assert 9 == fed.known.sequences["d"].position
    fed.take(scheduled_s=90.0, done_s=90.1, left=[1])
    assert (59, 135) == (fed.known.sequences["d"].position, fed.known.sequences["p"].scheduled_tokens)


def test_a_gap_in_the_numbers_is_counted_and_makes_nobody_exact(fed: Fed) -> None:
    """Also whoever is told of for the first time in the message after the gap."""
    fed.number += 3
    fed.take(scheduled_s=2.0, done_s=2.1, is_whole=True, newcomers=[Newcomer(7, "n", 5)], joined=[Joined(7, 5)])
    assert [3] == fed.dropped
    assert [False] * 3 == [sequence.is_exact for sequence in fed.known.sequences.values()]
    assert ("pays-n",) == fed.steps[-1].payers


def test_load_is_what_the_scheduler_said_last(fed: Fed) -> None:
    """Running, waiting, KV in use."""
    fed.take(num_running=1, num_waiting=4, kv_used_ratio=0.75, ended=[EndedRow(0)])
    assert (1, 4, 0.75) == (fed.feed.num_running, fed.feed.num_waiting, fed.feed.kv_used_ratio)


def test_what_is_no_message_is_an_error(fed: Fed) -> None:
    """Its caller decides what becomes of the feed."""
    with pytest.raises(msgspec.DecodeError):
        fed.feed.take(b"\xc1")
