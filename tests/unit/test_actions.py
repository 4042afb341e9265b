"""The core's decisions are plain values."""

import dataclasses

import pytest

from scheduler.core.actions import Abort, Dispatch, Finish, Payer, Reject, Rejection, Settle, Tokens
from workers.types import Outcome

EXAMPLES = [
    Dispatch(request_id="r", attempt_id="r-1", worker_id="w", max_output_tokens=5, priority=1, reason="why"),
    Abort(attempt_id="r-1", worker_id="w", reason="why"),
    Settle(
        request_id="r", attempt_id="r-1", worker_id="w", payer=Payer.REQUEST, outcome=Outcome.COMPLETED, cause="",
        tokens=Tokens(),
    ),
    Reject(request_id="r", rejection=Rejection(reason="queue_full", status=503, message="full")),
    Finish(request_id="r", attempt_id=None, outcome=Outcome.ABORTED, cause="client_gone"),
]  # fmt: skip


@pytest.mark.parametrize("action", EXAMPLES, ids=lambda action: type(action).__name__)
def test_a_decision_cannot_be_changed(action: object) -> None:
    """Whoever carries it out sees what was decided."""
    field = dataclasses.fields(action)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(action, field, "else")


def test_equal_decisions_are_equal() -> None:
    """Two runs can be compared action by action."""
    assert EXAMPLES == [dataclasses.replace(action) for action in EXAMPLES]  # type: ignore[type-var]


def test_a_settlement_is_exact_unless_said_otherwise() -> None:
    """And an attempt that computed nothing is billed for nothing."""
    settle = EXAMPLES[2]
    assert isinstance(settle, Settle)
    assert settle.is_exact
    assert (0, 0, 0, None) == dataclasses.astuple(settle.tokens)
