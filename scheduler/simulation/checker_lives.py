"""One life, one end: every request ends once, every attempt is settled once, by who owes it, in bounded time.

A judge of ``scheduler.simulation.checker``. It must never read the core's state.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.core.actions import Abort, Dispatch, Finish, Payer, Reject, Settle
from scheduler.simulation.checker_books import CLIENT_GONE, Asked, Attempt, Books
from scheduler.simulation.trace import Decided, Event, FirstByte, Stopped
from workers.types import Outcome

SLACK_S = 0.25
"""Clocks of the core are ticks."""

ANSWERED = (Outcome.COMPLETED, Outcome.REFUSED)


class Lives:
    """Reads requests and attempts from their first to their last word."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def see(self, event: Event) -> None:
        match event:
            case FirstByte(attempt_id=attempt_id):
                self._show(attempt_id)
            case Decided(action=Dispatch() as dispatch):
                self._dispatch(dispatch)
            case Decided(action=Settle() as settle):
                self._settle(settle)
            case Decided(action=Abort() as abort):
                self._abort(abort)
            case Decided(action=Reject(request_id=request_id)):
                self._reject(request_id)
            case Decided(action=Finish() as finish):
                self._finish(finish)
            case Stopped():
                self._stop(event)
            case _:
                pass

    def _show(self, attempt_id: str) -> None:
        books, attempt = self._books, self._books.attempts.get(attempt_id)
        if attempt is None:
            books.expect(False, f"{attempt_id}: bytes of an attempt that was never sent")
            return
        books.expect(not attempt.num_settles, f"{attempt_id}: bytes after its settlement")
        took_back = attempt.has_stopped and not attempt.is_answer
        books.expect(not took_back, f"{attempt_id}: bytes of an attempt that no longer answers")

    def _dispatch(self, dispatch: Dispatch) -> None:
        books, attempt_id = self._books, dispatch.attempt_id
        asked = books.asked.get(dispatch.request_id)
        if asked is None:
            books.expect(False, f"{attempt_id}: sent, but its request was never submitted")
            return
        request, limits = asked.request, books.limits
        books.expect(attempt_id not in books.attempts, f"{attempt_id}: sent twice")
        books.expect(not asked.num_ends, f"{attempt_id}: sent after its request's end")
        books.expect(not asked.has_first_byte, f"{attempt_id}: a second try after the first byte")
        is_free = asked.waits_since_s is not None or bool(asked.num_ends)
        books.expect(is_free, f"{attempt_id}: sent while another attempt may answer")
        is_early = request.deadline_s is None or books.now_s < request.deadline_s
        books.expect(is_early, f"{attempt_id}: sent after its deadline")
        cap_tokens, most_tokens = dispatch.max_output_tokens, request.max_output_tokens
        is_cap = min(most_tokens, 1) <= cap_tokens <= most_tokens and cap_tokens == books.caps[request.request_id]
        books.expect(is_cap and dispatch.priority == request.band, f"{attempt_id}: wrong cap or priority")
        most_attempts = 1 + limits.max_retries + limits.max_bounces + asked.num_preemptions
        books.expect(asked.num_attempts < most_attempts, f"{attempt_id}: one try too many")
        self._wait_ended(asked, attempt_id)

    def _settle(self, settle: Settle) -> None:
        books, attempt_id = self._books, settle.attempt_id
        attempt = books.attempts.get(attempt_id)
        if attempt is None:
            books.expect(False, f"{attempt_id}: settled but never sent")
            return
        books.expect(not attempt.num_settles, f"{attempt_id}: settled twice")
        request, tokens = attempt.asked.request, settle.tokens
        is_own = attempt.usage == tokens if settle.is_exact else attempt.usage is None
        books.expect(is_own, f"{attempt_id}: settled by {tokens}, its worker counted {attempt.usage}")
        most_tokens = books.caps[request.request_id] * request.num_sequences
        books.expect(tokens.output_tokens <= most_tokens, f"{attempt_id}: more output than its cap")
        is_input = tokens.cached_tokens <= tokens.input_tokens <= request.prompt_tokens_bound
        books.expect(is_input, f"{attempt_id}: more input than its prompt can have")
        payer = self._payer_of(attempt, settle)
        books.expect(settle.payer is payer, f"{attempt_id}: {settle.payer} pays what the {payer} owes")
        cost_nano = 0
        if settle.payer is Payer.REQUEST:
            cost_nano = request.rates.cost_nano(
                input_tokens=tokens.input_tokens,
                cached_tokens=tokens.cached_tokens,
                output_tokens=tokens.output_tokens,
            )
        books.expect(settle.cost_nano == cost_nano, f"{attempt_id}: its price is not that of its tokens")

    def _payer_of(self, attempt: Attempt, settle: Settle) -> Payer:
        """Who saw a byte pays; so does who was answered, and whose own client broke off what was to answer.

        Not whose answer came after the order to end it: nobody saw it.
        """
        was_answered = settle.outcome in ANSWERED and not attempt.is_aborted
        is_owed = attempt.is_answer and (was_answered or attempt.is_cancelled)
        return Payer.REQUEST if is_owed or attempt.has_first_byte else Payer.OPERATOR

    def _abort(self, abort: Abort) -> None:
        attempt = self._books.attempts.get(abort.attempt_id)
        is_open = attempt is not None and not attempt.num_settles
        self._books.expect(is_open, f"{abort.attempt_id}: aborted after its settlement, or never sent")

    def _reject(self, request_id: str) -> None:
        asked = self._end(request_id)
        if asked is not None:
            self._books.expect(not asked.has_first_byte, f"{request_id}: refused after its first byte")

    def _finish(self, finish: Finish) -> None:
        books, request_id = self._books, finish.request_id
        if self._end(request_id) is None:
            return
        if finish.attempt_id is None:
            is_cancel = finish.outcome is Outcome.ABORTED and bool(finish.cause)
            books.expect(is_cancel, f"{request_id}: ended without an attempt, and nobody cancelled it")
            return
        attempt = books.attempts.get(finish.attempt_id)
        if attempt is None or attempt.settle is None:
            books.expect(False, f"{request_id}: ended before {finish.attempt_id} was settled")
            return
        is_same = finish.outcome is attempt.settle.outcome or finish.outcome in (Outcome.ABORTED, Outcome.FAILED)
        books.expect(is_same, f"{request_id}: ended as {finish.outcome}, its attempt as {attempt.settle.outcome}")
        is_cut = attempt.is_cancelled and finish.cause == CLIENT_GONE
        is_whole = attempt.outcome is Outcome.COMPLETED and not is_cut and finish.outcome is not Outcome.ABORTED
        books.expect(
            not is_whole or finish.outcome is Outcome.COMPLETED,
            f"{request_id}: was answered and ended as {finish.outcome}",
        )

    def _end(self, request_id: str) -> Asked | None:
        books, asked = self._books, self._books.asked.get(request_id)
        if asked is None:
            books.expect(False, f"{request_id}: ended but never submitted")
            return None
        books.expect(not asked.num_ends, f"{request_id}: ended twice")
        self._wait_ended(asked, request_id)
        return asked

    def _wait_ended(self, asked: Asked, name: str) -> None:
        """Not longer than it may; what a jump of the clock added is noticed by the next tick."""
        books, since_s = self._books, asked.waits_since_s
        jumped_s, by_s = books.jump_s
        late_s = by_s if books.now_s - jumped_s <= SLACK_S else 0.0
        is_bounded = since_s is None or books.now_s - since_s <= books.limits.max_wait_s + SLACK_S + late_s
        books.expect(is_bounded, f"{name}: waited too long")

    def _stop(self, end: Stopped) -> None:
        books = self._books
        books.expect((end.num_open, end.num_running) == (0, 0), "something is still open")
        owned = {worker_id: tokens for worker_id, tokens in end.credit_tokens.items() if any(tokens)}
        books.expect(not owned, f"credit is still owned: {owned}")
        self._expect_none((name for name, asked in books.asked.items() if not asked.num_ends), "never ended")
        attempts = books.attempts.items()
        self._expect_none((name for name, attempt in attempts if not attempt.num_settles), "never settled")
        self._expect_none((name for name, attempt in attempts if not attempt.is_posted), "never booked")

    def _expect_none(self, names: Iterable[str], breach: str) -> None:
        for name in names:
            self._books.expect(False, f"{name}: {breach}")
