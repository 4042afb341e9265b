"""What attempts say reaches whoever asked, once, in order, and only while they may speak."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.answers import Answers
from scheduler.core.actions import Action
from scheduler.streams import MAX_UNREAD_BYTES, Body, Head, Stream
from scheduler.underway import Live, Running
from workers.types import Abort, Chunk, Ended, Outcome, Output, Started

HEADERS = [(b"content-type", b"text/event-stream")]


class Core:
    """What is asked of the core; every order it gives is a word."""

    def __init__(self) -> None:
        self.may_speak = True
        self.said: list[tuple[Any, ...]] = []

    def answers(self, attempt_id: str) -> bool:
        return self.may_speak

    def on_first_byte(self, attempt_id: str, now_s: float) -> None:
        self.said.append(("first byte", attempt_id, now_s))

    def on_ended(self, attempt_id: str, outcome: Outcome, cause: str, now_s: float) -> list[str]:
        self.said.append(("ended", attempt_id, outcome, cause))
        return [f"after {attempt_id}"]

    def cancel(self, request_id: str, reason: str, now_s: float, *, by_client: bool = True) -> list[str]:
        self.said.append(("cancel", request_id, reason, by_client))
        return [f"cancel {request_id}"]


class Desk:
    """Answers of one attempt, ``a-1``."""

    def __init__(self) -> None:
        self.core, self.applied = Core(), list[Any]()
        self.sent: list[Abort] = []
        self.connection: Any = SimpleNamespace(send=self.sent.append)
        self.stream = Stream("a", on_close=lambda request_id, reason: None)
        submission: Any = None
        self.running = Running(Live(submission, self.stream), self.connection)
        core: Any = self.core
        self.answers = Answers(core, {"a-1": self.running}, apply=self._apply, clock=lambda: 9.0)

    def _apply(self, actions: Iterable[Action]) -> None:
        self.applied += actions

    def hear(self, *outputs: Output) -> None:
        self.answers.take(self.connection, outputs, 5.0)


async def test_a_head_leaves_with_the_first_byte() -> None:
    """Until then the request may still be tried elsewhere."""
    desk = Desk()
    desk.hear(Started("a-1", 200, HEADERS))
    assert (None, []) == (await desk.stream.next(0.0), desk.core.said)
    desk.hear(Chunk("a-1", b"one "), Chunk("a-1", b"two"))
    assert Head(200, HEADERS) == await desk.stream.next(0.0)
    assert Body(b"one two") == await desk.stream.next(0.0)
    assert [("first byte", "a-1", 5.0)] == desk.core.said


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_an_end_is_told_to_the_core_and_a_head_without_a_body_leaves_where_it_is_an_answer(
    outcome: Outcome,
) -> None:
    desk = Desk()
    desk.hear(Started("a-1", 204, HEADERS), Ended("a-1", outcome, "why"))
    is_answer = outcome in (Outcome.COMPLETED, Outcome.REFUSED)
    assert (Head(204, HEADERS) if is_answer else None) == await desk.stream.next(0.0)
    assert ("ended", "a-1", outcome, "why") == desk.core.said[-1]
    assert ["after a-1"] == desk.applied


@pytest.mark.parametrize("why", ["no start", "status 500", "taken back"])
async def test_who_may_not_speak_is_not_heard(why: str) -> None:
    """An engine's own failure, an attempt that was replaced, bytes before a status."""
    desk = Desk()
    desk.core.may_speak = why != "taken back"
    if why != "no start":
        desk.hear(Started("a-1", 500 if why == "status 500" else 200, HEADERS))
    desk.hear(Chunk("a-1", b"x"), Ended("a-1", Outcome.COMPLETED))
    assert None is await desk.stream.next(0.0)
    assert [("ended", "a-1", Outcome.COMPLETED, "")] == desk.core.said


@pytest.mark.parametrize(
    ("is_held", "expected"),
    [(False, ("cancel", "a", "slow_reader", True)), (True, ("cancel", "a", "ledger_unavailable", False))],
)
async def test_a_reader_that_is_too_slow_is_cancelled_once_and_its_attempt_muted(
    is_held: bool, expected: tuple[Any, ...]
) -> None:
    """Where it is we who keep it from reading, it is not the client's fault."""
    desk = Desk()
    if is_held:
        desk.stream.hold_back()
    desk.hear(Started("a-1", 200, HEADERS), Chunk("a-1", b"x" * MAX_UNREAD_BYTES))
    desk.hear(Chunk("a-1", b"y"), Chunk("a-1", b"z"))
    assert [expected] == [said for said in desk.core.said if said[0] == "cancel"]
    assert (["cancel a"], True) == (desk.applied, desk.running.is_muted)


async def test_what_is_held_back_is_a_first_byte_when_it_is_let_go() -> None:
    """Nobody saw it before: until then it may be tried again."""
    desk = Desk()
    desk.stream.hold_back()
    desk.hear(Started("a-1", 200, HEADERS), Chunk("a-1", b"x"))
    assert [] == desk.core.said
    desk.stream.let_go()
    assert [("first byte", "a-1", 9.0)] == desk.core.said


async def test_a_stranger_is_told_once_to_end() -> None:
    """An attempt that nobody here owns: of an earlier control plane, or given up."""
    desk = Desk()
    desk.hear(
        Started("b-1", 200, HEADERS), Chunk("b-1", b"x"), Ended("b-1", Outcome.ABORTED), Ended("c-1", Outcome.FAILED)
    )
    assert [Abort(attempt_id="b-1", reason="orphaned")] == desk.sent
    assert ([], []) == (desk.core.said, desk.applied)
