"""`POST /v1/jouleway/outcomes`: what came of a request or a task of the caller's own.

Called by ``scheduler.api.app``. It must never tell another tenant's request from one that never was, and takes no free
text: a verdict, a score, a label of one word.

The answer leaves once the outcome is durable. The same post with the same ``id`` is one outcome however often it comes;
another verdict is a correction, a row of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from scheduler.accounting.outcomes import (
    MAX_OUTCOMES,
    SCORE_PPM,
    Facts,
    IdReused,
    Outcome,
    OutcomeLog,
    TooMany,
    Verdict,
    decide,
    id_of,
)
from scheduler.api.access import Caller
from scheduler.api.errors import ApiError, asking_the_ledger
from scheduler.api.exchange import REQUEST_ID
from scheduler.api.json_shape import has_duplicate_keys

OUTCOMES_PATH = "/v1/jouleway/outcomes"
MAX_BODY_BYTES = 4096
MAX_OPEN = 256
"""Posts that are being looked up or wait for the disk, of everybody."""
MAX_OPEN_PER_TENANT = 64
BUSY_RETRY_AFTER_S = 1
SECOND_US = 1_000_000

_WORD = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*\Z"


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    accepted: bool
    request_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]+\Z", max_length=128)] | None = None
    task: Annotated[str, Meta(pattern=_WORD, max_length=128)] | None = None
    score: Annotated[float, Meta(ge=0, le=1)] | None = None
    label: Annotated[str, Meta(pattern=_WORD, max_length=64)] | None = None
    id: Annotated[str, Meta(pattern=r"^[\x21-\x7e]+\Z", max_length=128)] | None = None


EXPECTED = {
    "accepted": "true or false",
    "request_id": "the x-request-id of an answer",
    "task": "1 to 128 letters, digits or any of . _ : / @ + -",
    "score": "a number from 0 to 1",
    "label": "one word of up to 64 letters, digits or any of . _ : / @ + -",
    "id": "1 to 128 visible ASCII characters",
}
"""Of each field, what a refusal says; never what was sent."""

_decode = msgspec.json.Decoder(_Body).decode


def read(body: bytes) -> tuple[Verdict, str | None]:
    """The verdict and the id that its sender gave it. Raises: ApiError 400; 404 for what can be no request's id."""
    try:
        fields = _decode(body)
        if has_duplicate_keys(body):
            raise ApiError(400, "The JSON holds the same key twice in one object.", code="duplicate_key")
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    if (fields.request_id is None) == (fields.task is None):
        raise ApiError(400, "Give exactly one of request_id and task.", code="invalid_value", param="request_id")
    if fields.request_id is not None and not REQUEST_ID.fullmatch(fields.request_id):
        raise not_found()
    score_ppm = None if fields.score is None else round(fields.score * SCORE_PPM)
    verdict = Verdict(
        request_id=fields.request_id,
        task=fields.task,
        accepted=fields.accepted,
        score_ppm=score_ppm,
        label=fields.label or "",
    )
    return verdict, fields.id


def _field_error(text: str) -> ApiError:
    """The field is at the end of msgspec's message, or quoted in it; what is no field of ours is not repeated."""
    named = (name for name in EXPECTED if f"`$.{name}`" in text or f"required field `{name}`" in text)
    name = next(named, None)
    if name is None:
        message = f"Expected a JSON object of {', '.join(EXPECTED)}, and nothing else."
        return ApiError(400, message, code="invalid_value")
    return ApiError(400, f"{name}: expected {EXPECTED[name]}.", code="invalid_value", param=name)


class OutcomeDesk:
    """Takes outcomes of all tenants, one after the other; their disk is waited for together."""

    def __init__(self, log: OutcomeLog, *, unix_clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._unix_clock = unix_clock
        self._turn = asyncio.Lock()
        self._open: dict[str, int] = {}

    async def take(self, body: bytes, caller: Callable[[], Caller]) -> bytes:
        """The answer as JSON, once it is durable. ``caller``: as the key stands when it is asked, which may raise.

        Raises: ApiError 400, 401, 404, 409, 422, 503.
        """
        verdict, given_id = read(body)
        tenant = caller().tenant
        if self._open.get(tenant, 0) >= MAX_OPEN_PER_TENANT or sum(self._open.values()) >= MAX_OPEN:
            message = "Too many outcomes are on their way."
            raise ApiError(503, message, code="outcomes_busy", retry_after_s=BUSY_RETRY_AFTER_S)
        self._open[tenant] = self._open.get(tenant, 0) + 1
        try:
            with asking_the_ledger():
                async with self._turn:  # nobody else's row comes between what was looked up and what is written
                    outcome, is_new = await self._book(verdict, given_id, caller)
                # A repeat waits too: the first one may not be durable yet.
                await self._log.commit()
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
        return msgspec.json.encode(told(outcome, is_new=is_new))

    async def _book(self, verdict: Verdict, given_id: str | None, caller: Callable[[], Caller]) -> tuple[Outcome, bool]:
        facts, same_id, latest = await asyncio.to_thread(self._look, verdict, given_id, caller().tenant)
        # Once more, for it may be long ago: from here to the row nobody else comes in.
        tenant = caller().tenant
        if facts is None or facts.tenant != tenant:
            raise not_found(is_foreign=facts is not None)
        at_us = int(self._unix_clock() * SECOND_US)
        try:
            outcome, change = decide(verdict, facts, given_id=given_id, same_id=same_id, latest=latest, at_us=at_us)
        except IdReused:
            message = "This id was used with another verdict: one id, one verdict."
            raise ApiError(422, message, code="outcome_id_reused", param="id") from None
        except TooMany:
            message = f"This was judged {MAX_OUTCOMES} times, which is as often as it may be."
            raise ApiError(409, message, code="too_many_outcomes") from None
        if change is not None:
            self._log.append(outcome, change)
        return outcome, change is not None

    def _look(
        self, verdict: Verdict, given_id: str | None, tenant: str
    ) -> tuple[Facts | None, Outcome | None, Outcome | None]:
        """What it is about, the outcome of the same id, the latest one; of what is another tenant's nothing more."""
        if verdict.request_id is not None:
            facts = self._log.find(verdict.request_id)
        else:
            assert verdict.task is not None
            facts = self._log.find_task(tenant, verdict.task)
        if facts is None or facts.tenant != tenant:
            return facts, None, None
        same_id = None if given_id is None else self._log.with_id(id_of(tenant, given_id))
        return facts, same_id, self._log.latest(tenant, request_id=verdict.request_id, task=verdict.task)


def not_found(*, is_foreign: bool = False) -> ApiError:
    """The same words for what is somebody else's, which only the audit log tells."""
    message = "There is no such request or task."
    return ApiError(404, message, code="request_not_found", is_denial=lambda: is_foreign)


def told(outcome: Outcome, *, is_new: bool) -> dict[str, object]:
    """What the sender gets to know."""
    verdict = outcome.verdict
    return {
        "object": "jouleway.outcome",
        "id": outcome.outcome_id,
        "request_id": verdict.request_id,
        "task": verdict.task,
        "accepted": verdict.accepted,
        "score": None if verdict.score_ppm is None else verdict.score_ppm / SCORE_PPM,
        "label": verdict.label or None,
        "created_unix_s": outcome.at_us // SECOND_US,
        "replaces": outcome.replaces,
        "is_new": is_new,
    }
