"""Who goes first: strict bands but for age, a tenant's own requests as they came, and who has to make room for whom.

A judge of ``scheduler.simulation.checker``. It must never read the core's state. Whose turn it is among tenants is
``checker_shares``' affair.

Somebody is overtaken where a worker is given to a request although another waits that goes before it and might have
been given the same worker: of the same model, allowed into the worker's zone, and not failed there before. Of a better
band it goes before everybody, of the same band before what its own tenant asked later of the same workers.
"""

from __future__ import annotations

from scheduler.core.actions import Abort, Dispatch
from scheduler.core.request import Band
from scheduler.simulation.checker_books import PREEMPTED, Asked, Books, Site, line_of
from scheduler.simulation.checker_lives import SLACK_S
from scheduler.simulation.trace import Decided, Event, Restarted


class Order:
    """Reads starts and preemptions against everybody who waits."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._num_passed: dict[str, list[int]] = {}
        """By model and band: starts of better bands since its own last one."""
        self._emptied: set[str] = set()
        """Workers where somebody has to make room because of the event before."""

    def see(self, event: Event) -> None:
        if not isinstance(event, Decided):
            self._emptied.clear()
        match event:
            case Decided(action=Dispatch() as dispatch):
                self._dispatch(dispatch)
            case Decided(action=Abort(reason=reason) as abort) if reason == PREEMPTED:
                self._preempt(abort)
            case Restarted():
                self._num_passed.clear()
            case _:
                pass

    # -- starts

    def _dispatch(self, dispatch: Dispatch) -> None:
        books, chosen = self._books, self._books.asked.get(dispatch.request_id)
        site = books.sites.get(dispatch.worker_id)
        if chosen is None or site is None:
            return
        request = chosen.request
        is_aged = self._is_aged(chosen)
        for other in books.waiting.values():
            asked = other.request
            if other is chosen or asked.model != request.model or asked.band > request.band:
                continue
            if asked.band < request.band:
                goes_before = not is_aged
            else:
                is_own = asked.tenant == request.tenant and line_of(asked) == line_of(request)
                goes_before = is_own and other.place < chosen.place
            if goes_before and self._may_have(other, site):
                books.expect(False, f"{request.request_id}: overtook {asked.request_id}")
                break
        self._count(request.model, request.band)

    def _may_have(self, other: Asked, site: Site) -> bool:
        return self._books.may_run(other.request, site.zone) and site.life not in other.failed_on

    def _is_aged(self, chosen: Asked) -> bool:
        """A lower band gets every so many starts while its oldest has waited for so long."""
        books, request = self._books, chosen.request
        passed = self._num_passed.get(request.model, [0] * len(Band))[request.band]
        if passed < books.rules.ageing_every - 1:
            return False
        line = line_of(request)
        oldest_s = min(asked.submitted_s for asked in books.waiting.values() if line_of(asked.request) == line)
        return books.now_s - oldest_s >= books.rules.ageing_s - SLACK_S

    def _count(self, model: str, band: int) -> None:
        passed = self._num_passed.setdefault(model, [0] * len(Band))
        passed[band] = 0
        for lower in range(band + 1, len(Band)):
            passed[lower] += 1

    # -- preemptions

    def _preempt(self, abort: Abort) -> None:
        """Only batch-class work, of which nobody saw a byte, for somebody better who waits and may run there."""
        books, attempt = self._books, self._books.attempts.get(abort.attempt_id)
        if attempt is None:
            return
        name, request = abort.attempt_id, attempt.asked.request
        books.expect(request.band == Band.FLEX, f"{name}: had to make room, and is no batch work")
        books.expect(not attempt.has_first_byte, f"{name}: had to make room after its first byte")
        books.expect(attempt.outcome is None and not attempt.has_stopped, f"{name}: had to make room, and was ending")
        site = books.sites.get(attempt.worker_id)
        better = (
            [] if site is None else [each for each in books.waiting.values() if self._gains(each, request.band, site)]
        )
        books.expect(bool(better), f"{name}: had to make room for nobody")
        self._emptied.add(attempt.worker_id)
        num_waiting = sum(asked.request.band < request.band for asked in books.waiting.values())
        books.expect(len(self._emptied) <= max(num_waiting, 1), f"{name}: more make room than wait for it")

    def _gains(self, asked: Asked, band: int, site: Site) -> bool:
        request = asked.request
        return request.band < band and request.model in site.models and self._may_have(asked, site)
