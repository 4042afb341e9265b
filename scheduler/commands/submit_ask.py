"""One job of `jouleway submit`: asked, asked again where that can help, and what became of it.

Called by ``scheduler.commands.submit_run``. It must never know a file.

Every try of a job carries the same idempotency key, made of the input's digest and the custom_id: where an answer was
lost on the way, the server says that it ran, and does not run it again.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from scheduler.commands.http_client import BadAnswer, Reply, fetch
from scheduler.commands.submit_file import Job
from scheduler.commands.submit_output import ANSWER_LOST
from scheduler.commands.submit_totals import Answer

IDEMPOTENCY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "x-jouleway-replayed"
DEADLINE_HEADER = "x-jouleway-deadline-s"
METERING_HEADER = "x-jouleway-metering"
TASK_HEADER = "x-jouleway-task"
REQUEST_ID_HEADER = "x-request-id"
QUOTA_CODE = "insufficient_quota"

TRANSIENT = frozenset({408, 409, 429, 502, 503, 504})
"""Asked again, unless the server says ``x-should-retry: false``. 409: an earlier try of the same job still runs."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0
LEAST_WINDOW_S = 0.001
"""After its end lines are refused by the server, in its words."""
GRACE_S = 60.0
"""For the word of a server that a deadline has passed."""


class Ending(StrEnum):
    """What became of a job."""

    DONE = "done"
    LOST = "answer_lost"
    """It ran, and its text reached nobody."""
    FAILED = "failed"
    """This job alone: asking again would end the same."""
    UNAVAILABLE = "unavailable"
    """The server could not, for longer than we wait."""
    QUOTA = "quota"
    KEY = "key"
    """The key is refused: every other job would be."""
    LEFT = "left"
    """Not run: we were asked to stop while it waited for its next try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One job's end, in the shapes of OpenAI's batch output."""

    ending: Ending
    response: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    answer: Answer | None = None
    num_retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How all jobs are asked."""

    url: str
    key: str
    digest: str
    """Of the input."""
    service_tier: str = "flex"
    task: str = ""
    timeout_s: float = 3600.0
    """Of one try; longer where it may wait for a cheaper hour."""
    due_s: float | None = None
    """When every line must have its answer, on the monotonic clock; None = nothing is said of it."""
    max_blind_tries: int = 8
    """Of one job, without a word from the server when to come again."""
    patience_s: float = 3600.0
    """The longest that one job waits between its tries, all together."""


def idempotency_key(digest: str, custom_id: str) -> str:
    """The same in every run over the same input."""
    return "jw-" + hashlib.sha256(f"{digest}\0{custom_id}".encode()).hexdigest()[:40]


def body_of(job: Job, service_tier: str) -> bytes:
    """The job's body, with our service tier where it names none."""
    if job.has_tier:
        return job.body
    return job.body.rstrip()[:-1] + b',"service_tier":%b}' % msgspec.json.encode(service_tier)


async def ask(job: Job, manner: Manner, *, pause: Callable[[float], Awaitable[bool]], rng: random.Random) -> Outcome:
    """``pause`` waits so many seconds and says whether to go on."""
    headers = {
        "Authorization": f"Bearer {manner.key}",
        IDEMPOTENCY_HEADER: idempotency_key(manner.digest, job.custom_id),
        METERING_HEADER: "1",
        **({TASK_HEADER: manner.task} if manner.task else {}),
    }
    body = body_of(job, manner.service_tier)
    num_retries = num_blind = 0
    waited_s = 0.0
    while True:
        reply: Reply | None = None
        words, timeout_s = "", manner.timeout_s
        if manner.due_s is not None:
            left_s = max(manner.due_s - time.monotonic(), LEAST_WINDOW_S)
            headers[DEADLINE_HEADER] = f"{left_s:.3f}"
            timeout_s = max(timeout_s, left_s + GRACE_S)
        try:
            reply = await fetch(manner.url + job.url, method="POST", payload=body, headers=headers, timeout_s=timeout_s)
        except TimeoutError:
            return _unanswered(Ending.FAILED, "timeout", f"no answer in {timeout_s:g} s", num_retries)
        except (OSError, BadAnswer) as error:
            words = f"{manner.url} gave no answer: {error or type(error).__name__}"
        if reply is not None and not _may_try_again(reply):
            return _outcome(reply, num_retries)
        said_s = _retry_after_s(reply)
        num_blind += said_s is None
        wait_s = _wait_s(said_s, num_blind, rng)
        if num_blind == manner.max_blind_tries or waited_s + wait_s > manner.patience_s:
            if reply is not None:
                return _outcome(reply, num_retries)
            return _unanswered(Ending.UNAVAILABLE, "unavailable", words, num_retries)
        if not await pause(wait_s):
            return Outcome(ending=Ending.LEFT, num_retries=num_retries)
        waited_s += wait_s
        num_retries += 1


def _may_try_again(reply: Reply) -> bool:
    asked = reply.headers.get("x-should-retry")
    if reply.status < 400 or asked == "false" or _code(reply) == QUOTA_CODE:
        return False
    return reply.status in TRANSIENT or asked == "true"


def _retry_after_s(reply: Reply | None) -> int | None:
    """Whole seconds, as our server says them; None where nothing is said."""
    said = reply.headers.get("retry-after", "") if reply is not None else ""
    return int(said) if said.isascii() and said.isdecimal() and len(said) <= 9 else None


def _wait_s(said_s: int | None, num_blind: int, rng: random.Random) -> float:
    """Never earlier than the server says; without its word twice as long each time. Never all jobs at once."""
    if said_s is not None:
        return said_s + rng.random()
    return min(FIRST_BACKOFF_S * 2.0 ** (num_blind - 1), MAX_BACKOFF_S) * (0.5 + rng.random() / 2)


def _outcome(reply: Reply, num_retries: int) -> Outcome:
    """What a last answer means."""
    response = {
        "status_code": reply.status,
        "request_id": reply.headers.get(REQUEST_ID_HEADER, ""),
        "body": _one_line(reply.body),
    }
    if response["body"] is None:
        message = f"status {reply.status} with a body that is no JSON object"
        return _unanswered(
            Ending.UNAVAILABLE if reply.status in TRANSIENT else Ending.FAILED, "bad_answer", message, num_retries
        )
    if not 200 <= reply.status < 300:
        return Outcome(ending=_ending(reply), response=response, num_retries=num_retries)
    answer = _read(reply.body)
    if reply.headers.get(REPLAYED_HEADER) == "1":
        message = (
            "this line ran before and was paid for, but its text reached nobody and is not kept; "
            "to have it again, submit it in another file"
        )
        return Outcome(
            ending=Ending.LOST,
            response=response,
            error={"code": ANSWER_LOST, "message": message},
            answer=answer,
            num_retries=num_retries,
        )
    return Outcome(ending=Ending.DONE, response=response, answer=answer, num_retries=num_retries)


def _ending(reply: Reply) -> Ending:
    if reply.status == 401:
        return Ending.KEY
    if reply.status == 429 and _code(reply) == QUOTA_CODE:
        return Ending.QUOTA
    return Ending.UNAVAILABLE if _may_try_again(reply) else Ending.FAILED


def _unanswered(ending: Ending, code: str, message: str, num_retries: int) -> Outcome:
    return Outcome(ending=ending, error={"code": code, "message": message}, num_retries=num_retries)


def _code(reply: Reply) -> str | None:
    """The word of an error body of ours or of OpenAI's."""
    try:
        value = msgspec.json.decode(reply.body)
        code = value["error"]["code"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) else None


def _one_line(body: bytes) -> msgspec.Raw | None:
    """The body as it came, on one line; None where it is no JSON object."""
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        body.decode("utf-8")
        return msgspec.Raw(msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read(body: bytes) -> Answer | None:
    """None where it says nothing that we understand."""
    try:
        return msgspec.json.decode(body, type=Answer)
    except msgspec.DecodeError:
        return None
