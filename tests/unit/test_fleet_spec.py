"""Fleets as people write them: GPUs become engines by the catalogue; what cannot be says what to write."""

import pytest

from scheduler.catalogue import load_catalogue
from scheduler.fleet_spec import FleetError, parse, with_blocks, workers_of

CATALOGUE = load_catalogue()


@pytest.mark.parametrize(
    ("fleet", "parts"),
    [
        ("h100x8", [("h100", 8)]),
        ("h100x4,b200x4", [("h100", 4), ("b200", 4)]),
        (" H100 x 2 , B200×1", [("H100", 2), ("B200", 1)]),
        ("rtx4090x2", [("rtx4090", 2)]),
        ("A100-80GBx16", [("A100-80GB", 16)]),
    ],
)
def test_a_fleet_is_gpus_and_counts(fleet: str, parts: list[tuple[str, int]]) -> None:
    assert parts == [(gpu.strip(), count) for gpu, count in parse(fleet.replace(" x ", "x"))]


@pytest.mark.parametrize("fleet", ["", "h100", "8xh100x", "h100x0", "h100x-1", "h100x1.5", "h100x8,", "h100x100001"])
def test_other_words_are_no_fleet(fleet: str) -> None:
    with pytest.raises(FleetError, match=r"is no GPU and a count; write h100x8"):
        parse(fleet)


def test_gpus_are_counted_not_engines() -> None:
    """70B takes four H100 an engine, 8B one; watts and curves are the engine's."""
    big = workers_of(CATALOGUE, "h100x32", "llama-3.1-70b")
    assert [("h100-000", 4), ("h100-007", 4)] == [(each.worker_id, each.num_gpus) for each in (big[0], big[-1])]
    assert 4 * 119.0 == big[0].draw.idle_watts
    assert 0.0164704 == pytest.approx(big[0].options.time_t0_s)
    assert 8 == len(workers_of(CATALOGUE, "h100x8", "meta-llama/Llama-3.1-8B-Instruct"))


def test_a_mixed_fleet_is_numbered_through() -> None:
    """From where the caller says, so that several models' engines have names of their own."""
    found = workers_of(CATALOGUE, "h100x4,b200x2", "llama-3.1-8b", first_number=10)
    assert ["h100-010", "h100-013", "b200-014", "b200-015"] == [found[place].worker_id for place in (0, 3, 4, 5)]
    assert {"llama-3.1-8b"} == {each.model for each in found}


@pytest.mark.parametrize(
    ("fleet", "model", "words"),
    [
        ("z900x8", "llama-3.1-8b", r"fleet 'z900x8': GPU 'z900' is not in .*known: H100"),
        ("h100x8", "llama-9", r"model 'llama-9' is not in .*known: llama-3.1-8b"),
        ("h100x2", "llama-3.1-70b", r"does not fit: an engine of it takes 4 × H100 .* and there are 2 .* at least 4"),
        ("h100x30", "llama-3.1-70b", r"takes 4 × H100, so 2 of 30 would be left over; write h100x28 or h100x32"),
        ("l40sx8", "llama-3.1-8b", r"has no curve of llama-3.1-8b on L40S"),
    ],
)
def test_a_fleet_that_cannot_hold_the_model_says_what_would(fleet: str, model: str, words: str) -> None:
    with pytest.raises(FleetError, match=words):
        workers_of(CATALOGUE, fleet, model)


def test_engines_learn_the_blocks_of_a_trace() -> None:
    """Nothing else of them changes."""
    (before,) = workers_of(CATALOGUE, "h100x1", "llama-3.1-8b")
    (after,) = with_blocks([before], 512)
    assert (16, 512) == (before.options.block_tokens, after.options.block_tokens)
    assert before == with_blocks([after], 16)[0]
