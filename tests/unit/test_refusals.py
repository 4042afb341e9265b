"""Refusals: one word, one status, and when to come back."""

import inspect

import pytest

from scheduler.core import refusals
from scheduler.core.actions import Rejection

ALL = [
    refusals.queue_full(7),
    refusals.queue_timeout(600.0, 9),
    refusals.no_worker("m", 60.0),
    refusals.model_not_found("m"),
    refusals.shutting_down(),
    refusals.ledger_unavailable(),
    refusals.deadline_exceeded(1.25),
    refusals.deadline_infeasible(0.1, 2.0),
    refusals.data_residency_mismatch(["north", "south"]),
]


def test_every_refusal_is_looked_at_here() -> None:
    """A new word needs a status and a test."""
    names = {name for name, function in inspect.getmembers(refusals, inspect.isfunction)}
    assert names == {rejection.reason for rejection in ALL}


@pytest.mark.parametrize("rejection", ALL, ids=lambda rejection: rejection.reason)
def test_the_reason_is_the_function_s_name_and_the_message_a_sentence(rejection: Rejection) -> None:
    """Response, metric and log use the same word."""
    assert rejection.reason.replace("_", "").isalpha()
    assert rejection.message.endswith(".")


@pytest.mark.parametrize("rejection", ALL, ids=lambda rejection: rejection.reason)
def test_whoever_may_come_back_is_told_when(rejection: Rejection) -> None:
    """503 carries Retry-After; what would fail again does not."""
    assert (rejection.status == 503) == (rejection.retry_after_s is not None)


def test_statuses() -> None:
    """Overload is 503, an unknown model 404, time that ran out 504, data that may be nowhere 403."""
    assert [503, 503, 503, 404, 503, 503, 504, 504, 403] == [rejection.status for rejection in ALL]


def test_numbers_are_in_the_message() -> None:
    """An operator reads what was waited for, and how long."""
    assert "600 s" in refusals.queue_timeout(600.0, 9).message
    assert "'m'" in refusals.no_worker("m", 60.0).message
    assert "60 s" in refusals.no_worker("m", 60.0).message
    assert "0.100 s" in refusals.deadline_infeasible(0.1, 2.0).message
    assert "2.000 s" in refusals.deadline_infeasible(0.1, 2.0).message


def test_where_workers_are_is_said_to_whom_none_may_serve() -> None:
    """And that no zone may hold the data, where there is no worker at all."""
    assert "north, south" in refusals.data_residency_mismatch(["north", "south"]).message
    assert "No zone" in refusals.data_residency_mismatch([]).message
