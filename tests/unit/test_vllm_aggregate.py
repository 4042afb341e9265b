"""Steps made up from outputs: they cover the busy time, and every token that was put out."""

from workers.engines.vllm_aggregate import AggregateSteps
from workers.engines.vllm_sequences import Sequence
from workers.steps import StepRecord


def steps_of() -> tuple[AggregateSteps, list[StepRecord]]:
    steps: list[StepRecord] = []
    return AggregateSteps(on_step=steps.append), steps


def running(name: str, *, prompt: int = 10, cached: int = 0) -> Sequence:
    return Sequence(engine_id=name, payer=name, prompt_tokens=prompt, cached_tokens=cached)


def test_outputs_made_together_are_one_step() -> None:
    """vLLM hands a large step on in parts; the first output of a sequence stands for its prompt."""
    aggregate, steps = steps_of()
    a, b = running("a", cached=4), running("b")
    aggregate.opened(1.0)
    aggregate.outputs(2.0, [(a, 1)])
    aggregate.outputs(2.0, [(b, 1)])
    aggregate.outputs(2.5, [(a, 1), (b, 1)])
    aggregate.flush(is_idle=False)
    assert [("a", "b"), ("a", "b")] == [step.payers for step in steps]
    assert [[6, 10], [0, 0]] == [step.prefill_tokens.tolist() for step in steps]
    assert [[0, 0], [1, 1]] == [step.decode_tokens.tolist() for step in steps]
    assert [[4, 0], [10, 10]] == [step.context_tokens.tolist() for step in steps]


def test_steps_cover_the_busy_time_and_not_the_idle() -> None:
    """A step begins where the one before ended, or when work arrived at an idle engine."""
    aggregate, steps = steps_of()
    a, b = running("a"), running("b")
    aggregate.opened(1.0)
    aggregate.outputs(2.0, [(a, 1)])
    aggregate.outputs(3.0, [(a, 1)])
    aggregate.flush(is_idle=True)
    aggregate.opened(8.0)
    aggregate.opened(8.5)
    aggregate.outputs(9.0, [(b, 1)])
    aggregate.flush(is_idle=True)
    assert [(1.0, 2.0), (2.0, 3.0), (8.0, 9.0)] == [(step.started_s, step.ended_s) for step in steps]


def test_several_tokens_of_one_output_are_several_positions() -> None:
    """Accepted drafts; the first output computes one position less than it puts out."""
    aggregate, steps = steps_of()
    a = running("a")
    aggregate.opened(1.0)
    aggregate.outputs(2.0, [(a, 3)])
    aggregate.outputs(3.0, [(a, 2)])
    aggregate.flush(is_idle=True)
    assert [(10, 2), (0, 2)] == [(int(s.prefill_tokens[0]), int(s.decode_tokens[0])) for s in steps]


def test_nothing_put_out_is_no_step() -> None:
    """Only a final output without tokens (an embedding) counts."""
    aggregate, steps = steps_of()
    a = running("a")
    aggregate.opened(1.0)
    aggregate.outputs(2.0, [(a, 0)])
    aggregate.flush(is_idle=False)
    assert [] == steps
    a.has_final_output = True
    aggregate.outputs(3.0, [(a, 0)])
    aggregate.flush(is_idle=True)
    assert [10] == [int(step.prefill_tokens[0]) for step in steps]
