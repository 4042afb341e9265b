"""How many tokens a prompt really has, asked of an engine: only where its bound alone was refused by a budget.

Called by ``scheduler.api.openai``. It must never read a text, and it is no way around a data class: the question goes
only where the request itself might run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from scheduler.api.exchange import new_request_id as random_request_id
from scheduler.api.intake import Admitted
from scheduler.api.schema_chat import CHAT_PATH
from scheduler.api.schema_completion import COMPLETION_PATH
from scheduler.api.schema_embedding import EMBEDDING_PATH
from scheduler.api.schema_messages import MESSAGES_PATH
from scheduler.core.request import Request
from scheduler.streams import Body, End, Head, Stream, Submission
from workers.types import Outcome

TIMEOUT_S = 2.0
MAX_COUNTS_PER_TENANT = 2
"""At once; a refused tenant must not keep tokenizers busy."""
MAX_ASKED_PER_TENANT = 256
"""Counted or waiting for their turn; whoever comes then keeps the bound of its prompt."""
MAX_ANSWER_BYTES = 32 << 20

TOKENIZE_PATH = "/tokenize"
COUNT_PATH = "/v1/messages/count_tokens"

_Raw = msgspec.Raw | msgspec.UnsetType


class _ChatFields(msgspec.Struct, omit_defaults=True):
    """What decides how a chat is rendered; passed on as it stands."""

    model: _Raw = msgspec.UNSET
    messages: _Raw = msgspec.UNSET
    tools: _Raw = msgspec.UNSET
    add_generation_prompt: _Raw = msgspec.UNSET
    continue_final_message: _Raw = msgspec.UNSET
    add_special_tokens: _Raw = msgspec.UNSET
    chat_template_kwargs: dict[str, Any] | None | msgspec.UnsetType = msgspec.UNSET
    # These two reach the template through chat_template_kwargs; the counting route knows no other way.
    documents: Any = msgspec.UNSET
    reasoning_effort: Any = msgspec.UNSET


class _TextFields(msgspec.Struct, omit_defaults=True):
    model: _Raw = msgspec.UNSET
    prompt: Any = msgspec.UNSET
    input: Any = msgspec.UNSET
    add_special_tokens: _Raw = msgspec.UNSET


class _MessagesFields(msgspec.Struct, omit_defaults=True):
    model: _Raw = msgspec.UNSET
    messages: _Raw = msgspec.UNSET
    system: _Raw = msgspec.UNSET
    tools: _Raw = msgspec.UNSET
    tool_choice: _Raw = msgspec.UNSET


class _Counted(msgspec.Struct):
    """vLLM's answer on either route."""

    count: int | None = None
    input_tokens: int | None = None


_encode = msgspec.json.Encoder().encode
_decode_chat = msgspec.json.Decoder(_ChatFields).decode
_decode_text = msgspec.json.Decoder(_TextFields).decode
_decode_messages = msgspec.json.Decoder(_MessagesFields).decode
_decode_counted = msgspec.json.Decoder(_Counted).decode


def fits_prompt_tokens(end: End | None) -> int | None:
    """The longest prompt that the budget would have taken, where its bound was refused; None: counting is no use."""
    rejection = None if end is None else end.rejection
    if rejection is None or rejection.shortage is None:
        return None
    return rejection.shortage.fits_prompt_tokens or None


def question_of(path: str, body: bytes) -> tuple[str, bytes] | None:
    """Route and body that ask how many tokens the prompt in ``body`` (admitted JSON) has; None where nothing can."""
    if path == CHAT_PATH:
        chat = _decode_chat(body)
        extra = {"documents": chat.documents, "reasoning_effort": chat.reasoning_effort}
        given = {name: value for name, value in extra.items() if value not in (None, msgspec.UNSET)}
        if given:
            chat.chat_template_kwargs = {**(chat.chat_template_kwargs or {}), **given}
        chat.documents = chat.reasoning_effort = msgspec.UNSET
        return TOKENIZE_PATH, _encode(chat)
    if path in (COMPLETION_PATH, EMBEDDING_PATH):
        text = _decode_text(body)
        text.prompt, text.input = text.input if path == EMBEDDING_PATH else text.prompt, msgspec.UNSET
        return (TOKENIZE_PATH, _encode(text)) if isinstance(text.prompt, str) else None
    return (COUNT_PATH, _encode(_decode_messages(body))) if path == MESSAGES_PATH else None


class _Turns:
    """Of one tenant."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.free = asyncio.Semaphore(MAX_COUNTS_PER_TENANT)


class Counting:
    """Asks; bounded in time, and in number for each tenant."""

    def __init__(
        self,
        *,
        submit: Callable[[Submission], Stream],
        clock: Callable[[], float],
        timeout_s: float = TIMEOUT_S,
        new_request_id: Callable[[], str] = random_request_id,
    ) -> None:
        self._submit = submit
        self._clock = clock
        self._timeout_s = timeout_s
        self._new_request_id = new_request_id
        self._tenants: dict[str, _Turns] = {}
        """Only those that ask now."""

    async def prompt_tokens(self, admitted: Admitted) -> int | None:
        """Tokens of its prompt, media at their bound; None where no engine said so in time."""
        request, ask = admitted.request, admitted.ask
        question = question_of(ask.path, ask.body)
        if question is None:
            return None
        turns = self._tenants.setdefault(request.tenant, _Turns())
        if turns.num_asked >= MAX_ASKED_PER_TENANT:
            return None
        turns.num_asked += 1
        try:
            async with asyncio.timeout(self._timeout_s), turns.free:
                counted = await self._ask(request, *question)
        except TimeoutError:
            return None
        finally:
            turns.num_asked -= 1
            if not turns.num_asked:
                del self._tenants[request.tenant]
        return None if counted is None else counted + ask.media_tokens

    async def _ask(self, request: Request, path: str, body: bytes) -> int | None:
        now_s = self._clock()
        deadline_s = now_s + self._timeout_s
        question = Request(
            request_id=self._new_request_id(),
            tenant=request.tenant,
            project=request.project,
            key_id=request.key_id,
            model=request.model,
            band=request.band,
            prompt_tokens_bound=0,
            max_output_tokens=0,
            arrival_s=now_s,
            arrival_unix_s=request.arrival_unix_s,
            deadline_s=deadline_s if request.deadline_s is None else min(deadline_s, request.deadline_s),
            body_bytes=len(body),
            data_class=request.data_class,
            zones=request.zones,
            is_counting=True,
        )
        stream = self._submit(Submission(request=question, path=path, render=lambda *_: body))
        try:
            return await _read(stream)
        finally:
            stream.close("counted")


async def _read(stream: Stream) -> int | None:
    parts: list[bytes] = []
    num_bytes, status = 0, 0
    while not isinstance(item := await stream.next(), End):
        if isinstance(item, Head):
            status = item.status
        elif isinstance(item, Body):
            num_bytes += len(item.data)
            if num_bytes > MAX_ANSWER_BYTES:
                return None
            parts.append(item.data)
    if item.outcome is not Outcome.COMPLETED or status != 200:
        return None
    try:
        counted = _decode_counted(b"".join(parts))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return counted.input_tokens if counted.count is None else counted.count
