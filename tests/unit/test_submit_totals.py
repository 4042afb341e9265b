"""What answers took is summed in integers, whatever the dialect; what is not said is counted as not said."""

import msgspec
import pytest

from scheduler.commands.submit_totals import Answer, Totals


def totals(*bodies: object) -> Totals:
    made = Totals()
    for body in bodies:
        made.add(msgspec.convert(body, Answer))
    return made


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}},
        {"input_tokens": 7, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 3}},
        {"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 3},
    ],
    ids=["chat", "responses", "messages"],
)
def test_tokens_of_every_dialect(usage: dict[str, object]) -> None:
    """Three spellings, one sum."""
    summed = totals({"usage": usage}, {"usage": usage})
    assert (14, 6, 10) == (summed.input_tokens, summed.cached_tokens, summed.output_tokens)


def test_joules_and_money_are_exact() -> None:
    """Ten times a tenth is one; the grade is the worst of all."""
    note = {"energy_joules": 0.1, "gpu_seconds": 0.01, "grade": "A", "cost_nano": 1, "currency": "EUR"}
    summed = totals(*[{"jouleway": note}] * 9, {"jouleway": {**note, "grade": "D"}})
    assert (1000, 100_000, 10, "D") == (summed.energy_mj, summed.gpu_us, summed.cost_nano, summed.grade)
    assert "0.000000 EUR" == summed.money()
    assert {"energy_joules": 1.0, "cost_nano": 10, "currency": "EUR"}.items() <= summed.to_json().items()


def test_what_no_answer_says_is_no_zero() -> None:
    """No joules and no price are None and a dash, and how many said nothing shows."""
    summed = totals({}, {"usage": None}, {"jouleway": {"grade": "A"}})
    summed.add(None)
    assert (0, 4) == (summed.num_metered, summed.num_unmetered)
    assert (None, None, None) == (summed.grade, summed.cost_nano, summed.to_json()["energy_joules"])
    assert "–" == summed.money()
