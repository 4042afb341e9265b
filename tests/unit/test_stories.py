"""The life of a request with its costs: measured where posted, predicted before, nothing where nothing is known."""

from typing import Any

from scheduler.accounting.settlement import Charge, RequestDetails
from scheduler.stories import with_costs
from tests.scripted_link import posting_of
from workers.types import Grade, Outcome

STORY: dict[str, Any] = {"request_id": "a", "attempts": [{"attempt_id": "a-1"}, {"attempt_id": "a-2"}]}


def charge(attempt_id: str, **fields: Any) -> Charge:
    return Charge(
        request_id="a", attempt_id=attempt_id, tenant="alpha", model="m", worker_id="w-0", outcome=Outcome.COMPLETED,
        input_tokens=7, cached_tokens=0, output_tokens=3, provisional_mj=1_500, provisional_gpu_us=2_000_000,
        grade=Grade.B, cost_nano=42, **fields,
    )  # fmt: skip


def costs(story: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("attempt_id", "energy_joules", "gpu_seconds", "cost_nano", "grade", "is_final")
    return [tuple(attempt[name] for name in names) for attempt in story["attempts"]]


def test_nothing_is_known_of_what_was_not_charged() -> None:
    """None is not 0: it has not been measured."""
    story = with_costs(STORY, None)
    assert [("a-1", None, None, None, None, False), ("a-2", None, None, None, None, False)] == costs(story)
    assert not story["is_final"]


def test_a_charge_says_what_was_predicted_and_a_posting_what_was_measured() -> None:
    """Each attempt by itself; the whole is final when every charged one is."""
    details = RequestDetails(request_id="a", tenant="alpha", charges={"a-1": charge("a-1"), "a-2": charge("a-2")})
    details.postings["a-1"] = posting_of("a-1", 900, 500_000, grade=Grade.A)
    story = with_costs(STORY, details)
    assert [("a-1", 0.9, 0.5, 42, "A", True), ("a-2", 1.5, 2.0, 42, "B", False)] == costs(story)
    assert not story["is_final"]
    details.postings["a-2"] = posting_of("a-2")
    assert with_costs(STORY, details)["is_final"]


def test_the_story_itself_is_left_alone() -> None:
    """The core's memory hands it out again."""
    with_costs(STORY, None)
    assert {"attempt_id": "a-1"} == STORY["attempts"][0]
