"""The step hook's work in vLLM's engine process: from what the scheduler decided to one small message a step.

Called by ``workers.engines.vllm_step_hook`` between the lines of vLLM's scheduler. It must never import vLLM, block the
engine or raise into it: what cannot be sent is counted and the next message tells the members anew.

Median cost matters here (``benchmarks/step_hook.py``): while requests only come and go, a step costs one comparison of
two dictionaries, one encoding and one ``send``; nothing is done for each sequence.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from workers.engines.vllm_messages import (
    MAX_MESSAGE_BYTES,
    SOCKET_VARIABLE,
    EndedRow,
    Joined,
    Newcomer,
    StepMessage,
    Tokens,
    encode,
)

logger = logging.getLogger("jouleway.step_hook")

SEND_BUFFER_BYTES = 4 << 20
"""Asked for; the kernel grants what its limits allow (hundreds of messages at least)."""


class NewRequest(Protocol):
    """vLLM's NewRequestData: scheduled for the first time, or again after a preemption."""

    req_id: str
    num_computed_tokens: int

    @property
    def prompt_len(self) -> int: ...


class CachedRequests(Protocol):
    """vLLM's CachedRequestData."""

    req_ids: list[str]
    resumed_req_ids: set[str]
    num_computed_tokens: list[int]


class Scheduled(Protocol):
    """vLLM's SchedulerOutput, as far as it is read here."""

    @property
    def scheduled_new_reqs(self) -> Sequence[NewRequest]: ...

    @property
    def scheduled_cached_reqs(self) -> CachedRequests: ...

    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int
    scheduled_spec_decode_tokens: dict[str, list[int]]
    finished_req_ids: set[str]


class Stopped(Protocol):
    """vLLM's Request, ended from outside."""

    request_id: str
    num_computed_tokens: int
    num_in_flight_tokens: int
    num_output_tokens: int
    num_preemptions: int


class StepTap:
    """Follows one scheduler. ``send`` takes the bytes and says whether they left."""

    def __init__(self, send: Callable[[bytes], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._number = 0
        self._in_flight: deque[tuple[Scheduled, float]] = deque()
        self._done_s = 0.0
        self._before: dict[str, int] = {}
        """Tokens by request of the step told last, without those that ended since."""
        self._uneven: list[str] = []
        """Of these, who computed other than 1 token."""
        self._slots: dict[str, int] = {}
        self._next_slot = 0
        self._stopped: dict[str, EndedRow] = {}
        self._ended: dict[str, None] = {}
        """Ended and not told yet, oldest first: a step in flight may still hold them."""
        self._told: set[str] = set()
        """Ended and told since the last schedule: it will name them once more."""
        self._must_be_whole = True

    # -- between the lines of the scheduler

    def scheduled(self, output: Scheduled) -> None:
        """A step was decided; it is in flight from now on."""
        self._in_flight.append((output, self._clock()))
        if output.finished_req_ids:
            self._end(output.finished_req_ids)
        self._told.clear()

    def stopped(self, requests: Iterable[Stopped]) -> None:
        """Requests were ended from outside, not by their own output."""
        for request in requests:
            computed = request.num_computed_tokens - request.num_in_flight_tokens
            self._stopped[request.request_id] = EndedRow(
                slot=0,
                is_stopped=True,
                output_tokens=request.num_output_tokens,
                computed=None if request.num_preemptions else computed,
            )
            self._end((request.request_id,))

    def returned(self) -> None:
        """The model's output is here: the step ends now, before the scheduler books it."""
        self._done_s = self._clock()

    def booked(
        self,
        output: Scheduled,
        *,
        finished: AbstractSet[str],
        sampled: Callable[[str], int],
        emitted: Callable[[str], int],
        counts: tuple[int, int],
        kv_used_ratio: float,
    ) -> None:
        """The scheduler booked the step: tell it.

        ``finished``: ended since the last schedule. ``sampled`` and ``emitted``: output tokens of a request that the
        model gave and that left the scheduler in this step; asked for rows with drafts only.
        """
        scheduled_s = self._take(output)
        rows = output.num_scheduled_tokens
        message = StepMessage(
            number=self._number,
            num_running=counts[0],
            num_waiting=counts[1],
            kv_used_ratio=kv_used_ratio,
        )
        # Before the step's own endings are noted: these rows had ended when the step came back.
        overrun = [name for name in self._ended if name in rows] if self._ended else []
        if finished:
            self._end(finished)
        ended = self._ended_now() if self._ended else []
        if rows:
            message.scheduled_s, message.done_s = scheduled_s, self._done_s
            self._tell_rows(message, output, rows, ended)
            if overrun:
                message.overrun = [Tokens(self._slots[name], rows[name]) for name in overrun]
            if output.scheduled_spec_decode_tokens:
                self._tell_drafts(message, output.scheduled_spec_decode_tokens, set(overrun), sampled, emitted)
        if ended:
            self._tell_ended(message, ended)
        if rows or ended:
            self._leave(message, rows, ended)

    # -- what changed

    def _tell_rows(self, message: StepMessage, output: Scheduled, rows: dict[str, int], ended: list[str]) -> None:
        """Who joined, left, or computed other than 1 token. The whole batch is looked at by comparing dictionaries."""
        new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
        starts = {request.req_id: request.num_computed_tokens for request in new}
        for request in new:
            if request.req_id not in self._slots or self._must_be_whole:
                message.newcomers.append(
                    Newcomer(self._slot(request.req_id), request.req_id, request.prompt_len)
                )  # fmt: skip
        if self._must_be_whole or cached.resumed_req_ids or rows != self._expected(starts, rows, ended):
            self._tell_all_rows(message, cached, rows, starts)
            return
        slots = self._slots
        if ended:
            message.left = [slots[name] for name in ended if name in self._before and name not in rows]
        if starts:
            message.joined = [Joined(slots[name], start) for name, start in starts.items()]
        if output.total_num_scheduled_tokens != len(rows):
            candidates = dict.fromkeys((*self._uneven, *starts))
            self._uneven = [name for name in candidates if rows.get(name, 1) != 1]
            message.tokens = [Tokens(slots[name], rows[name]) for name in self._uneven]
        else:
            self._uneven = []

    def _expected(self, starts: dict[str, int], rows: dict[str, int], ended: list[str]) -> dict[str, int]:
        """The step before: with newcomers, without those that ended, other rows than plain decodes as they are now."""
        expected = self._before
        if starts or self._uneven or ended:
            expected = expected.copy()
            for name in (*self._uneven, *starts):
                expected[name] = rows.get(name, 0)
            for name in ended:
                if name not in rows:
                    expected.pop(name, None)
        return expected

    def _tell_all_rows(
        self, message: StepMessage, cached: CachedRequests, rows: dict[str, int], starts: dict[str, int]
    ) -> None:
        """The same by looking at each row: after a drop, a preemption, a pause."""
        message.is_whole = self._must_be_whole
        slots, resumed = self._slots, cached.resumed_req_ids
        before = {} if message.is_whole else self._before
        joined = [name for name in rows if name not in before or name in starts or name in resumed]
        all_starts = {**dict(zip(cached.req_ids, cached.num_computed_tokens, strict=False)), **starts}
        for name in joined:
            if name not in slots:
                message.newcomers.append(Newcomer(self._slot(name), name, 0))
        message.joined = [Joined(slots[name], all_starts[name]) for name in joined]
        message.left = [slots[name] for name in before if name not in rows]
        self._uneven = [name for name, tokens in rows.items() if tokens != 1]
        message.tokens = [Tokens(slots[name], rows[name]) for name in self._uneven]

    def _tell_drafts(
        self,
        message: StepMessage,
        drafts: Mapping[str, Sequence[int]],
        overrun: set[str],
        sampled: Callable[[str], int],
        emitted: Callable[[str], int],
    ) -> None:
        """Of a row of 1 + k drafts, k + 1 − sampled were rejected, and sampled − emitted lie beyond the stop."""
        for name, tokens in drafts.items():
            num_sampled = sampled(name)
            if name in overrun or not num_sampled:
                continue
            num_rejected = max(len(tokens) + 1 - num_sampled, 0)
            num_beyond = max(num_sampled - emitted(name), 0)
            if num_rejected:
                message.rejected.append(Tokens(self._slots[name], num_rejected))
            if num_beyond:
                message.overrun.append(Tokens(self._slots[name], num_beyond))

    def _ended_now(self) -> list[str]:
        """Those that no step in flight holds any more."""
        return [
            name
            for name in self._ended
            if not any(name in output.num_scheduled_tokens for output, _ in self._in_flight)
        ]

    def _tell_ended(self, message: StepMessage, names: list[str]) -> None:
        for name in names:
            if name not in self._slots:
                # It never ran, or was told before a drop: the other side must still learn that nothing will come.
                message.newcomers.append(Newcomer(self._slot(name), name, 0))
            stopped = self._stopped.get(name)
            slot = self._slots[name]
            message.ended.append(
                EndedRow(slot)
                if stopped is None
                else EndedRow(slot, is_stopped=True, output_tokens=stopped.output_tokens, computed=stopped.computed)
            )

    def _end(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._told:
                self._ended[name] = None

    def _slot(self, name: str) -> int:
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = self._next_slot
            self._next_slot += 1
        return slot

    def _take(self, output: Scheduled) -> float:
        """When this step was scheduled; steps come back in order."""
        while self._in_flight:
            oldest, scheduled_s = self._in_flight.popleft()
            if oldest is output:
                return scheduled_s
        return self._done_s

    def _leave(self, message: StepMessage, rows: dict[str, int], ended: list[str]) -> None:
        """Sends; on failure the endings wait for the next message, which tells the members anew."""
        self._number += 1
        if not self._send(encode(message)):
            self._must_be_whole = True
            self._slots = {}
            return
        if rows:
            self._before = rows
            self._must_be_whole = False
        if ended:
            self._before = self._before.copy()
            for name in ended:
                self._before.pop(name, None)
                del self._slots[name], self._ended[name]
                self._stopped.pop(name, None)
                self._told.add(name)


class StepSocket:
    """The way out: a connected Unix socket that keeps message borders; never waits."""

    def __init__(self, path: str) -> None:
        """Raises: OSError when nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._socket.settimeout(5.0)
            self._socket.connect(path)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def send(self, message: bytes) -> bool:
        """False when the reader is behind or gone, or the message is too large."""
        if len(message) > MAX_MESSAGE_BYTES:
            return False
        try:
            self._socket.send(message)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """The reader sees the end, and falls back to what it can count itself."""
        with contextlib.suppress(OSError):
            self._socket.close()


def open_tap() -> tuple[StepTap, StepSocket] | None:
    """The tap of this process, or None where nobody listens: then vLLM runs unmetered by the hook."""
    path = os.environ.get(SOCKET_VARIABLE, "")
    if not path:
        return None
    try:
        step_socket = StepSocket(path)
    except OSError as error:
        logger.warning("the step hook does not run: %s", type(error).__name__)
        return None
    return StepTap(step_socket.send), step_socket
