"""Prompts of about the wanted length, repeatable, sharing prefixes only where the trace says so."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench.prompts import WORDS, Prompts, TokenFit, body
from scheduler.bench.workload import Planned

PROMPTS = Prompts(seed=7)


def planned(index: int, input_tokens: int, blocks: tuple[int, ...] = ()) -> Planned:
    return Planned(index=index, due_s=0.0, input_tokens=input_tokens, output_tokens=8, blocks=blocks)


def shared_words(one: str, two: str) -> int:
    """Length of the common prefix in words."""
    count = 0
    for left, right in zip(one.split(), two.split(), strict=False):
        if left != right:
            return count
        count += 1
    return count


@given(tokens=st.integers(1, 3_000), index=st.integers(0, 10_000))
def test_a_prompt_has_the_words_asked_for(tokens: int, index: int) -> None:
    """Without a fit, a word counts as a token."""
    assert len(PROMPTS.text(planned(index, tokens)).split()) == tokens


def test_a_prompt_longer_than_the_pool_is_still_whole() -> None:
    """A very long prompt wraps around."""
    assert len(PROMPTS.text(planned(0, 200_000)).split()) == 200_000


def test_prompts_repeat_by_seed_and_differ_by_index() -> None:
    """The same seed and index give the same text; another index shares no useful prefix."""
    one, two = PROMPTS.text(planned(1, 300)), PROMPTS.text(planned(2, 300))
    assert one == Prompts(seed=7).text(planned(1, 300))
    assert one != Prompts(seed=8).text(planned(1, 300))
    assert shared_words(one, two) < 4


def test_equal_blocks_are_equal_text() -> None:
    """Two prompts that share two of three blocks share exactly these 1,024 words as a prefix."""
    one = PROMPTS.text(planned(1, 1500, (10, 11, 12)))
    two = PROMPTS.text(planned(2, 1500, (10, 11, 13)))
    assert 1024 <= shared_words(one, two) < 1030
    assert len(one.split()) == len(two.split()) == 1500


def test_a_shorter_last_block_is_a_prefix_of_the_whole_one() -> None:
    """A prompt that ends inside a block starts that block like the others."""
    short, whole = PROMPTS.text(planned(1, 700, (3, 4))), PROMPTS.text(planned(2, 1024, (3, 4)))
    assert shared_words(short, whole) == 700


def test_what_the_blocks_do_not_cover_is_unique() -> None:
    """A prompt longer than its blocks is filled up, and not with shared text."""
    one, two = (PROMPTS.text(planned(index, 700, (5,))) for index in (1, 2))
    assert len(one.split()) == 700
    assert 512 <= shared_words(one, two) < 518


def test_the_fit_turns_tokens_into_words() -> None:
    """A template of 20 tokens and 1.5 tokens a word: 320 tokens are 200 words."""
    fit = TokenFit.through((10, 35), (110, 185))
    assert fit == TokenFit(template_tokens=20, tokens_per_word=1.5, measured=True)
    assert fit.words(320) == 200
    assert fit.words(1) == 1
    prompts = Prompts(seed=0, fit=fit)
    assert len(prompts.text(planned(0, 320)).split()) == 200


def test_blocks_shrink_with_the_fit() -> None:
    """A block is 512 tokens of the server's, however many words that takes."""
    prompts = Prompts(seed=0, fit=TokenFit(template_tokens=0, tokens_per_word=2.0, measured=True))
    one, two = (prompts.text(planned(index, 1024, (1, block))) for index, block in ((1, 2), (2, 3)))
    assert 256 <= shared_words(one, two) < 262


@pytest.mark.parametrize("many", [(272, 16), (272, 100_000), (272, 272 * 9)])
def test_a_senseless_count_gives_no_fit(many: tuple[int, int]) -> None:
    """A server that counts no or wild prompt tokens does not decide the prompt's length."""
    assert TokenFit.through((16, 16), many) == TokenFit()


def test_words_are_plain_and_distinct() -> None:
    """The vocabulary is lower-case ASCII without repeats, so that a tokenizer takes each as one token."""
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


def test_a_chat_body_asks_for_a_stream_with_usage_and_the_exact_length() -> None:
    """ignore_eos and min_tokens make the output as long as planned."""
    asked = json.loads(body("hi", endpoint="chat", model="m", output_tokens=9, exact_output=True, temperature=None))
    assert asked == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_completion_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "min_tokens": 9,
    }


def test_a_service_tier_is_sent_where_one_is_asked_for() -> None:
    """Absent otherwise: a server need not know it."""
    words = {"endpoint": "chat", "model": "m", "output_tokens": 9, "exact_output": False, "temperature": None}
    asked = [json.loads(body("hi", service_tier=tier, **words)) for tier in ("flex", None)]  # type: ignore[arg-type]
    assert "flex" == asked[0]["service_tier"]
    assert {key: value for key, value in asked[0].items() if key != "service_tier"} == asked[1]


def test_a_completions_body_without_exact_output_has_only_standard_fields() -> None:
    """A server that knows nothing of vLLM's fields is asked in the standard's words."""
    asked = json.loads(
        body("hi", endpoint="completions", model="m", output_tokens=9, exact_output=False, temperature=0.0)
    )
    assert asked == {
        "model": "m",
        "prompt": "hi",
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    }
