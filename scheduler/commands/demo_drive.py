"""Sends the demo's plan over HTTP to the own endpoint and notes what each request met.

Called by ``scheduler.commands.demo``. It must never look inside the service: it is a client like any other, and it
keeps no text of a prompt or an answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from scheduler.commands.demo_requests import DemoRequest
from scheduler.commands.http_client import BadAnswer, events, open_request

REQUEST_TIMEOUT_S = 180.0


@dataclass(slots=True, kw_only=True)
class Met:
    """What one request met, as the client saw it; filled while it runs."""

    request: DemoRequest
    status: int = 0
    ttft_s: float | None = None
    """First event of a stream that was answered with 200; None for whole answers."""
    took_s: float = 0.0
    num_events: int = 0
    was_aborted: bool = False
    error: str = ""
    """Empty when all went as planned; else a reason, never a text of the model."""


def _reason_of(status: int, body: bytes) -> str:
    """Status and code of an OpenAI error body; its message may repeat what was sent, so it is left out."""
    try:
        error = json.loads(body)["error"]
        return f"status {status}, {error.get('code') or error.get('type')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"status {status}"


async def _read_stream(met: Met, chunks: AsyncIterator[bytes], since_s: Callable[[], float]) -> None:
    async for event in events(chunks):
        if event == "[DONE]":
            return
        if event.startswith('{"error"'):
            met.error = "an error event in the stream"
        met.num_events += 1
        if met.ttft_s is None:
            met.ttft_s = since_s()
        if met.request.abort_after_chunks is not None and met.num_events >= met.request.abort_after_chunks:
            met.was_aborted = True
            return
    met.error = met.error or "the stream ended without [DONE]"


async def send(url: str, request: DemoRequest, model: str, *, clock: Callable[[], float]) -> Met:
    """One request to its end, or to the moment it hangs up on purpose. Never raises for what the server does."""
    met = Met(request=request)
    started_s = clock()
    body = json.dumps(request.payload(model)).encode()
    headers = {"Authorization": f"Bearer {request.api_key}"}
    try:
        async with (
            asyncio.timeout(REQUEST_TIMEOUT_S),
            open_request(url + request.path, method="POST", body=body, headers=headers) as (answer, chunks),
        ):
            met.status = answer.status
            if answer.status == 200 and request.is_stream:
                await _read_stream(met, chunks, lambda: clock() - started_s)
            else:
                whole = b"".join([chunk async for chunk in chunks])
                met.num_events = 1
                met.error = "" if answer.status == 200 else _reason_of(answer.status, whole)
    except (OSError, BadAnswer, TimeoutError, asyncio.IncompleteReadError) as error:
        met.error = f"{type(error).__name__}: {error}"
    met.took_s = clock() - started_s
    return met


async def drive(
    url: str,
    plan: Sequence[DemoRequest],
    model: str,
    *,
    clock: Callable[[], float],
    on_met: Callable[[Met], None],
    speed: float = 1.0,
) -> list[Met]:
    """The whole plan, each request at its own time; ``on_met`` is called as each one ends. In the plan's order."""

    async def one(request: DemoRequest) -> Met:
        await asyncio.sleep(request.starts_after_s / speed)
        met = await send(url, request, model, clock=clock)
        on_met(met)
        return met

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(request)) for request in plan]
    return [task.result() for task in tasks]
