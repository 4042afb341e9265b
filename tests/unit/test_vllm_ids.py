"""Engine ids of vLLM, read back to the attempt they belong to."""

import pytest

from workers.engines.vllm_ids import attempt_of, prompt_number


@pytest.mark.parametrize(
    ("external_id", "attempt"),
    [
        ("chatcmpl-a-1", "a-1"),
        ("cmpl-a-1-0", "a-1"),
        ("cmpl-a-1-12", "a-1"),
        ("1_chatcmpl-a-1", "a-1"),
        ("chatcmpl-a-1-deadbeef", "a-1"),
        ("chatcmpl-a-2", None),
        ("resp_abc_0", None),
        ("whatever", None),
    ],
)
def test_an_id_names_its_attempt(external_id: str, attempt: str | None) -> None:
    """Prompts of a list, children and hash suffixes; a stranger's id names nobody."""
    assert attempt == attempt_of(external_id, {"a-1": None})


def test_the_longest_open_attempt_wins() -> None:
    """An attempt id that looks like another one's prompt is not mistaken for it."""
    assert "a-1" == attempt_of("cmpl-a-1", {"a": None, "a-1": None})


@pytest.mark.parametrize(
    ("external_id", "number"),
    [("cmpl-a-1-0", 0), ("cmpl-a-1-12", 12), ("cmpl-a", None), ("chatcmpl-a-1", None), ("resp_abc_0", None)],
)
def test_a_completions_id_names_its_prompt(external_id: str, number: int | None) -> None:
    """Only there: an attempt's id may end in a number too."""
    assert number == prompt_number(external_id)
