"""What attempts say on its way to whoever asked: heads, bodies and ends, each attempt heard as long as it may speak.

Owned by ``scheduler.dispatcher``. It must never know an account, a ledger or what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from scheduler.connection import Connection
from scheduler.core.actions import Action
from scheduler.core.scheduler import Scheduler
from scheduler.strangers import Strangers
from scheduler.streams import Head
from scheduler.underway import Running
from workers.types import Abort, Chunk, Ended, Outcome, Output, Started


class Answers:
    """``running``: attempts that are not settled, the dispatcher's. ``apply`` carries out what the core decides."""

    def __init__(
        self,
        core: Scheduler,
        running: Mapping[str, Running],
        *,
        apply: Callable[[Iterable[Action]], None],
        clock: Callable[[], float],
    ) -> None:
        self._core = core
        self._running = running
        self._apply = apply
        self._clock = clock
        self._strangers = Strangers()

    def take(self, connection: Connection, outputs: Iterable[Output], now_s: float) -> None:
        """All of one report, in order. Who speaks and is not known is told to end."""
        for output in outputs:
            running = self._running.get(output.attempt_id)
            if running is None:
                if self._strangers.must_abort(output):
                    connection.send(Abort(attempt_id=output.attempt_id, reason="orphaned"))
                continue
            match output:
                case Chunk(body=body):
                    self._on_chunk(running, output.attempt_id, body, now_s)
                case Started():
                    running.started = output
                case Ended(attempt_id=attempt_id, outcome=outcome, cause=cause):
                    if outcome in (Outcome.COMPLETED, Outcome.REFUSED):
                        self._send_head(running, attempt_id, now_s)
                    self._apply(self._core.on_ended(attempt_id, outcome, cause, now_s))

    def _on_chunk(self, running: Running, attempt_id: str, body: bytes, now_s: float) -> None:
        """Bytes to the reader. What an engine says with a status of 500 or more stays here: it is tried again."""
        if running.is_muted or not (running.has_sent or self._send_head(running, attempt_id, now_s)):
            return
        stream = running.live.stream
        if not stream.put_body(body):
            running.is_muted = True
            if stream.is_held:  # it is we who keep it from reading
                self._apply(self._core.cancel(stream.request_id, "ledger_unavailable", now_s, by_client=False))
            else:
                self._apply(self._core.cancel(stream.request_id, "slow_reader", now_s))

    def _send_head(self, running: Running, attempt_id: str, now_s: float) -> bool:
        """Status and headers leave with the first byte; False if this attempt may not speak."""
        if running.has_sent:
            return True
        started = running.started
        if started is None or started.status >= 500 or not self._core.answers(attempt_id):
            return False
        running.has_sent = True
        live = running.live
        live.speaker, stream = running, live.stream
        if stream.is_held:  # nobody sees it yet: it may still be tried again, and whom it keeps waiting does not pay
            stream.on_let_go = lambda: self._core.on_first_byte(attempt_id, self._clock())
        else:
            self._core.on_first_byte(attempt_id, now_s)
        stream.put_head(Head(started.status, started.headers))
        return True
