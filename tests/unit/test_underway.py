"""What the dispatcher keeps: a request begins without anything, and two of them are never taken for one."""

from types import SimpleNamespace
from typing import cast

from scheduler.connection import Connection
from scheduler.streams import Stream, Submission
from scheduler.underway import Live, Running
from tests.core_words import request


def live() -> Live:
    submission = Submission(request=request(), path="/v1/x", render=lambda *caps: b"")
    return Live(submission, Stream("r", on_close=lambda *words: None))


def test_a_request_begins_uncharged_and_unheld() -> None:
    """The first attempt holds, the last one is charged."""
    each = live()
    assert (None, False) == (each.charge, each.is_held)


def test_an_attempt_begins_unheard() -> None:
    """Nothing was said to it, nothing of it was sent on."""
    running = Running(live(), cast(Connection, SimpleNamespace(worker_id="w")))
    assert (None, False, False) == (running.started, running.has_sent, running.is_muted)


def test_each_is_itself_alone() -> None:
    """Equal values are no equality: they are found by id, and changed."""
    first, second = live(), live()
    assert first != second
    connection = cast(Connection, SimpleNamespace(worker_id="w"))
    assert 2 == len({Running(first, connection), Running(first, connection)})
