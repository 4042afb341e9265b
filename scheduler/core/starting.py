"""A request becomes an attempt: a worker is chosen for it and its credit is claimed there.

Owned by ``scheduler.core.scheduler``. It must never know why a request was next, or how an attempt ends.
"""

from __future__ import annotations

from scheduler.core.actions import Dispatch
from scheduler.core.admission import Admission
from scheduler.core.attempts import Attempt, Entry, dispatch_of, work_of
from scheduler.core.cluster import Cluster
from scheduler.core.placement import place
from scheduler.core.running import Running


class Starter:
    """Places one request at a time, on the cluster as it stands."""

    def __init__(self, cluster: Cluster, admission: Admission, running: Running) -> None:
        self._cluster = cluster
        self._admission = admission
        self._running = running

    def start(self, entry: Entry, now_s: float) -> Dispatch | None:
        """The order to send it; None where nobody has room, and then nothing changes."""
        request, estimates = entry.request, self._admission.estimates_of(entry.request.model)
        prompt_tokens = estimates.prompt_tokens(request)
        output_tokens = min(estimates.output_tokens(request), entry.granted_tokens * request.num_sequences)
        work = work_of(request, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        placement = place(self._cluster, request.model, work, avoid=entry.avoid)
        if placement is None:
            return None
        entry.num_attempts += 1
        attempt = Attempt(
            attempt_id=f"{request.request_id}-{entry.num_attempts}",
            entry=entry,
            worker=placement.worker,
            started_s=now_s,
            last_sign_s=now_s,
            prompt_tokens=prompt_tokens,
            expected_tokens=output_tokens,
        )
        entry.attempt = attempt
        entry.tries.append(attempt)
        entry.end_wait(now_s)
        self._running.start(attempt)
        self._admission.left_queue(request.band, now_s)
        return dispatch_of(attempt, placement)
