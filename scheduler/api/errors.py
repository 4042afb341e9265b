"""OpenAI's error bodies: all four keys, a code that is a word or null, never a prompt, never more than 4 KiB.

Called by every file of ``scheduler.api``. It must never know a request's body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from scheduler.accounting.errors import LedgerError

MAX_MESSAGE_CHARS = 1000
MAX_BODY_BYTES = 4096
MAX_WORD_CHARS = 80
LEDGER_RETRY_AFTER_S = 5

KIND_BY_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """Ends a request before an engine saw it. ``code`` is the word that metrics and the log also use."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None,
        param: str | None = None,
        retry_after_s: int | None = None,
        should_retry: bool | None = None,
        kind: str | None = None,
        budget: dict[str, object] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        is_denial: Callable[[], bool] = lambda: False,
    ) -> None:
        """``kind``: OpenAI's ``type`` where it is not that of the status. ``budget``: what refused, as figures.
        ``is_denial``: whether the audit log has it whatever its status; asked when the answer has left.
        """
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.kind = kind
        self.budget = budget
        self.headers = headers
        self.is_denial = is_denial

    def body(self) -> bytes:
        """The JSON."""
        return _bounded(self.message, self._object)

    def event(self) -> bytes:
        """The same inside a stream that has begun: openai-python raises APIError on it."""
        return b"data: " + self.body() + b"\n\n"

    def _object(self, message: str) -> dict[str, dict[str, object]]:
        fields = error_object(self.status, message, code=self.code, param=self.param, kind=self.kind)
        if self.budget is not None:
            fields["error"]["budget"] = self.budget
        return fields

    def header_list(self) -> list[tuple[bytes, bytes]]:
        """What the status needs beside the body."""
        headers = list(self.headers)
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(int(self.retry_after_s), 1)).encode()))
        if self.should_retry is not None:
            headers.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        return headers


@contextmanager
def asking_the_ledger() -> Iterator[None]:
    """Around whatever reads or writes it. Raises: ApiError 503 for a LedgerError."""
    try:
        yield
    except LedgerError:
        raise ledger_unavailable() from None


def ledger_unavailable() -> ApiError:
    """Its database is away; where that lies is nobody's business."""
    message = "The ledger cannot be reached at the moment."
    return ApiError(503, message, code="ledger_unavailable", retry_after_s=LEDGER_RETRY_AFTER_S)


def kind_of(status: int) -> str:
    """OpenAI's ``type`` for a status."""
    return SERVER if status >= 500 else KIND_BY_STATUS.get(status, INVALID)


def error_object(
    status: int, message: str, *, code: str | None, param: str | None = None, kind: str | None = None
) -> dict[str, dict[str, object]]:
    """``{"error": {...}}`` as a value."""
    shortened = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
    return {
        "error": {
            "message": shortened,
            "type": kind or kind_of(status),
            "param": None if param is None else param[:MAX_WORD_CHARS],
            "code": None if code is None else code[:MAX_WORD_CHARS],
        }
    }


def error_body(status: int, message: str, *, code: str | None, param: str | None = None) -> bytes:
    """The JSON of an error."""
    return _bounded(message, lambda text: error_object(status, text, code=code, param=param))


def _bounded(message: str, fields_of: Callable[[str], object]) -> bytes:
    body = msgspec.json.encode(fields_of(message))
    if len(body) > MAX_BODY_BYTES:  # escapes take up to six bytes a character
        body = msgspec.json.encode(fields_of(f"{message[: MAX_MESSAGE_CHARS // 3]}…"))
    return body


class _EngineError(msgspec.Struct):
    message: str = ""
    param: str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError = msgspec.field(default_factory=_EngineError)


_decode_engine_error = msgspec.json.Decoder(_EngineErrorBody).decode


def engine_error(status: int, body: bytes) -> ApiError:
    """An engine's error as one of ours: vLLM's ``code`` is a number, its types are class names.

    A 400 passes its message, which tells the client what to change; of a 5xx nothing of the engine is shown.
    """
    if status >= 500:
        return ApiError(status, "The engine failed on this request.", code="engine_error")
    try:
        error = _decode_engine_error(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        error = _EngineError()
    if status == 404 and not error.message:
        return ApiError(404, "This model does not serve this route.", code="route_not_served", param="model")
    message = error.message or "The engine refused this request."
    lowered = message.lower()
    is_length = "context length" in lowered or "max_model_len" in lowered
    code = "context_length_exceeded" if is_length else "model_not_found" if status == 404 else None
    return ApiError(status, message, code=code, param=error.param)
