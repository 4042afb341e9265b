"""Completions: OpenAI's four forms of a prompt, and how many sequences they are."""

import pytest

from scheduler.api.schema_completion import COMPLETION_PATH, MAX_PROMPTS
from tests.schema_bodies import admitted, refused, sent


def test_a_completion_with_several_prompts_is_that_many_sequences() -> None:
    """Choices × prompts."""
    ask = admitted(COMPLETION_PATH, prompt=["a", "b", "c"], n=2, max_tokens=5)
    assert (6, 5) == (ask.num_sequences, ask.max_output_tokens)
    assert 7 == sent(ask)["max_tokens"]


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], ["a", "b"], [[1, 2], [3]]])
def test_a_prompt_is_text_or_tokens_one_or_many(prompt: object) -> None:
    """OpenAI's four forms."""
    assert prompt == sent(admitted(COMPLETION_PATH, prompt=prompt))["prompt"]


@pytest.mark.parametrize(
    "prompt", [[], [1, "x"], [[1], "x"], [[1, "x"]], [[]], [1.5], [None], {"a": 1}, 5, None, [True]]
)
def test_a_prompt_of_another_form_is_refused(prompt: object) -> None:
    """Mixed and empty lists would be counted wrong."""
    assert "prompt" == refused(COMPLETION_PATH, prompt=prompt).param


def test_too_many_prompts_are_refused() -> None:
    """Each is a sequence in the engine."""
    assert MAX_PROMPTS == admitted(COMPLETION_PATH, prompt=["a"] * MAX_PROMPTS).num_sequences
    assert "prompt" == refused(COMPLETION_PATH, prompt=["a"] * (MAX_PROMPTS + 1)).param
