"""One engine request's two sides: what each event adds, and when both are complete."""

from workers.digests import stated_of
from workers.engines.vllm_sequences import Generated, Sequence


def sequence(*, prompt: int = 10, cached: int = 0) -> Sequence:
    one = Sequence(engine_id="e", payer="a", prompt_tokens=prompt)
    one.starts_at(cached)
    return one


def test_a_plain_life_keeps_the_identity() -> None:
    """Prompt in two chunks, then a position for every output but the last."""
    one = sequence(cached=4)
    assert (3, 0, 0) == one.computed(3)
    assert (3, 0, 0) == one.computed(3)
    for _ in range(4):
        assert (0, 1, 0) == one.computed(1)
    one.generated_tokens, one.is_prefill_over, one.has_final_output, one.is_ended_there = 5, True, True, True
    usage = one.usage()
    assert (6, 5, 10) == (usage.computed_prompt_tokens, usage.generated_tokens, usage.scheduled_tokens)
    assert (0, True) == (usage.token_difference, usage.exact)


def test_a_repetition_is_neither_prefill_nor_decode() -> None:
    """After a preemption, what was known is computed again; a chunk may hold both kinds."""
    one = sequence()
    one.computed(10)
    one.computed(1)
    one.starts_at(0)
    assert (0, 1, 11) == one.computed(12)
    assert (23, 11) == (one.scheduled_tokens, one.recomputed_tokens)


def test_a_preempted_prompt_may_find_more_in_the_cache() -> None:
    """What somebody else computed meanwhile was never scheduled here: it is cached, not computed."""
    one = sequence(prompt=100)
    one.computed(32)
    one.starts_at(64)
    assert (36, 0, 0) == one.computed(36)
    one.generated_tokens, one.is_prefill_over = 1, True
    assert (32, 68, 0) == (one.usage().cached_tokens, one.computed_prompt_tokens, one.usage().token_difference)


def test_rejected_drafts_give_their_positions_back() -> None:
    """The position is computed again, as a first time."""
    one = sequence()
    one.computed(10)
    one.computed(4)
    one.rejected(2)
    assert (0, 1, 0) == one.computed(1)
    assert (15, 2, 13) == (one.scheduled_tokens, one.rejected_tokens, one.position)


def test_an_abort_in_prefill_takes_the_engines_word() -> None:
    """The left side is what the engine says it had computed, not the sum of what was scheduled."""
    one = sequence(prompt=100, cached=16)
    one.computed(32)
    one.computed(32)
    one.dropped(32)
    one.is_ended_there, one.stopped_output_tokens, one.stopped_computed = True, 0, 48
    assert (32, 32, 0) == (one.computed_prompt_tokens, one.overrun_tokens, one.usage().token_difference)
    one.stopped_computed = 40
    assert -8 == one.usage().token_difference


def test_late_outputs_are_overrun() -> None:
    """Two outputs beyond the stop string: two positions that nobody asked for."""
    one = sequence()
    one.computed(10)
    for _ in range(4):
        one.computed(1)
    one.generated_tokens, one.late_tokens, one.is_prefill_over = 3, 2, True
    assert (2, 0) == (one.overrun_tokens, one.usage().token_difference)


def test_it_is_closed_when_both_sides_are_complete() -> None:
    """Its end there, and its last output here (or, stopped from outside, as many outputs as were put out)."""
    one = sequence()
    one.has_final_output = True
    assert not one.is_closed
    one.is_ended_there = True
    assert one.is_closed
    other = sequence()
    other.is_ended_there, other.stopped_output_tokens = True, 3
    other.generated_tokens, other.late_tokens = 1, 1
    assert not other.is_closed
    assert not other.usage().exact
    other.late_tokens = 2
    assert other.is_closed


def test_a_text_is_stated_once_and_let_go_of() -> None:
    """What follows the first seal changes nothing; counts of the parser never exceed what was generated."""
    asked: list[bool] = []

    def read(is_whole: bool) -> Generated:
        asked.append(is_whole)
        return Generated("größer", reasoning_tokens=7)

    one = sequence()
    one.salt, one.read, one.generated_tokens = b"salt", read, 5
    one.image_tokens, one.audio_tokens = 3, 2
    one.seal(is_whole=True)
    one.seal(is_whole=False)
    assert ([True], None) == (asked, one.read)
    usage, stated = one.usage(), stated_of(b"salt", "größer".encode())
    assert (8, stated.digest, 5) == (usage.output_bytes, usage.output_digest, usage.reasoning_tokens)
    assert (3, 2) == (usage.image_tokens, usage.audio_tokens)


def test_what_generates_nothing_has_no_digest() -> None:
    """An embedding."""
    one = sequence()
    one.seal(is_whole=True)
    assert (0, "") == (one.usage().output_bytes, one.usage().output_digest)
