"""Where nothing may run: filters that no score overrides, zones that data may not enter, bounds of the queue.

A judge of ``scheduler.simulation.checker``. It must never read the core's state.
"""

from __future__ import annotations

from scheduler.core.actions import Dispatch, Reject
from scheduler.core.request import Band, Request
from scheduler.simulation.checker_books import Asked, Books, Site, line_of
from scheduler.simulation.checker_lives import SLACK_S
from scheduler.simulation.trace import Decided, Event, Submitted

MISMATCH = "data_residency_mismatch"
QUEUE_FULL = "queue_full"
ROUNDING = 1e-6


class Places:
    """Reads where attempts were sent, and who was refused for where its data may go."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._newcomer = ""
        """Submitted by the last event, and neither started nor refused so far."""

    def see(self, event: Event) -> None:
        if self._newcomer and not isinstance(event, Decided):
            self._queued(self._newcomer)
        match event:
            case Submitted(request=request):
                self._newcomer = request.request_id
                self._admitted(request)
            case Decided(action=Dispatch() as dispatch):
                self._dispatch(dispatch)
            case Decided(action=Reject(request_id=request_id, rejection=rejection)):
                if rejection.reason == MISMATCH:
                    self._refused(request_id)
                elif rejection.reason == QUEUE_FULL:
                    self._shed(request_id)
            case Decided():
                pass
            case _:
                self._newcomer = ""

    def _dispatch(self, dispatch: Dispatch) -> None:
        books, attempt_id, worker_id = self._books, dispatch.attempt_id, dispatch.worker_id
        site, asked = books.sites.get(worker_id), books.asked.get(dispatch.request_id)
        if site is None or asked is None:
            books.expect(False, f"{attempt_id}: sent to {worker_id}, which is not there")
            return
        request = asked.request
        books.expect(site.is_ready, f"{attempt_id}: sent to {worker_id}, which is not ready")
        books.expect(request.model in site.models, f"{attempt_id}: sent where its model is not served")
        self._expect_room(attempt_id, asked, site)
        silent_s = books.now_s - site.heard_s
        jumped_s, by_s = books.jump_s
        jump_s = by_s if books.now_s - jumped_s <= SLACK_S else 0.0
        books.expect(silent_s <= books.limits.silent_s + SLACK_S + jump_s, f"{attempt_id}: sent to a silent worker")
        books.expect(
            books.may_run(request, site.zone), f"{attempt_id}: sent into {site.zone}, where its data may not go"
        )

    def _expect_room(self, attempt_id: str, asked: Asked, site: Site) -> None:
        """Lower bands leave a share of it alone until they are aged; an idle worker has room for anything."""
        books, request, num_running = self._books, asked.request, len(site.running)
        books.expect(num_running < site.max_running, f"{attempt_id}: sent to a full worker")
        num_sequences = sum(attempt.asked.request.num_sequences for attempt in site.running.values())
        is_full = num_running > 0 and num_sequences + request.num_sequences > site.max_sequences
        books.expect(not is_full, f"{attempt_id}: sent to a worker without room for its sequences")
        if request.band == Band.PRIORITY or not num_running or self._may_be_aged(asked):
            return
        share_ratio = 1 - books.rules.reserve_ratio
        is_left = num_running < share_ratio * site.max_running
        is_left &= num_sequences + request.num_sequences <= share_ratio * site.max_sequences + ROUNDING
        books.expect(is_left, f"{attempt_id}: took what is kept for the first band")

    def _may_be_aged(self, asked: Asked) -> bool:
        """Whether somebody of its line and band has waited so long that its turn is anybody's guess here."""
        books, line = self._books, line_of(asked.request)
        of_line = (each for each in books.waiting.values() if line_of(each.request) == line)
        return any(books.now_s - each.submitted_s >= books.rules.ageing_s - SLACK_S for each in of_line)

    # -- residency: refused only where nobody may, and at once

    def _refused(self, request_id: str) -> None:
        books, asked = self._books, self._books.asked.get(request_id)
        if asked is not None:
            request = asked.request
            zones = [site.zone for site in books.sites.values() if request.model in site.models]
            is_right = not any(books.may_run(request, zone) for zone in zones)
            books.expect(is_right, f"{request_id}: refused for its data, although a worker may run it")

    def _admitted(self, request: Request) -> None:
        books = self._books
        if request.request_id in books.verdicts:
            return
        zones = books.zones.get(request.model, set()) | books.rules.model_zones.get(request.model, frozenset())
        is_right = not zones or any(books.may_run(request, zone) for zone in zones)
        books.expect(is_right, f"{request.request_id}: waits for a worker that no zone may hold")

    # -- the queue's bounds

    def _queued(self, request_id: str) -> None:
        """It stayed: its band had room for it."""
        books, self._newcomer = self._books, ""
        newcomer = books.waiting.get(request_id)
        if newcomer is None or newcomer.num_attempts:
            return
        waiting = books.waiting.values()
        limits, band = books.limits.queue, newcomer.request.band
        in_band = [asked for asked in waiting if asked.request.band == band]
        is_bounded = len(in_band) <= limits.max_requests and len(waiting) <= limits.max_total_requests
        books.expect(is_bounded, f"{request_id}: waits in a queue that is full")
        in_bytes = sum(asked.request.body_bytes for asked in in_band)
        books.expect(len(in_band) == 1 or in_bytes <= limits.max_bytes, f"{request_id}: waits in a queue that is full")

    def _shed(self, request_id: str) -> None:
        """Who goes because of a newcomer is none of a better band, nor of its own where its tenant has no more."""
        books, newcomer = self._books, self._books.asked.get(self._newcomer)
        shed = books.waiting.get(request_id)
        if newcomer is None or shed is None:
            books.expect(False, f"{request_id}: had to leave a queue in which it did not wait, or for nobody")
            return
        band, num = newcomer.request.band, [0] * len(Band)
        for asked in books.waiting.values():
            num[asked.request.band] += asked is not newcomer
        if shed is newcomer:
            lower_bands = sum(num[band + 1 :])
            is_full = num[band] >= books.limits.queue.max_requests or not lower_bands
            is_full |= sum(num[: band + 1]) >= books.limits.queue.max_total_requests
            books.expect(
                is_full or self._is_heavy(newcomer), f"{request_id}: refused, although lower bands could leave"
            )
            return
        is_last = not any(num[shed.request.band + 1 :])
        is_own = shed.request.band == band and shed.request.tenant != newcomer.request.tenant
        books.expect((shed.request.band > band and is_last) or is_own, f"{request_id}: shed before lower bands")

    def _is_heavy(self, asked: Asked) -> bool:
        """Whether its bytes alone may have filled a band."""
        limits = self._books.limits.queue
        return asked.request.body_bytes * len(self._books.waiting) > min(limits.max_bytes, limits.max_total_bytes)
