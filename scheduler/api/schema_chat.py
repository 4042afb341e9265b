"""The allow-list of ``/v1/chat/completions``: vLLM's fields, and what a message may be made of.

Called by ``scheduler.api.schemas``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from scheduler.api.media import NO_MEDIA, Media, image_of_url, sound_of_base64, sound_of_url
from scheduler.api.schema_fields import (
    MAX_MESSAGES,
    SAMPLING_DROPPED,
    SAMPLING_UNSUPPORTED,
    Content,
    Count,
    Flag,
    Logprobs,
    Object,
    Objects,
    Route,
    Sampling,
    invalid,
)

CHAT_PATH = "/v1/chat/completions"

PART_KINDS = ("audio_url", "image_url", "input_audio", "refusal", "text")
"""What a message may be made of. Not among them: tensors (``image_embeds``…), which the engine would unpickle, and
videos, whose frames nothing bounds before they are decoded."""
_PART_KEYS = {*PART_KINDS, "type"}


class ChatBody(Sampling, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's schema minus what only the operator may set."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None | UnsetType = UNSET
    logprobs: Flag = UNSET
    top_logprobs: Logprobs = UNSET
    tools: Objects = UNSET
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None | UnsetType = UNSET
    parallel_tool_calls: Flag = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None | UnsetType = UNSET
    include_reasoning: Flag = UNSET
    add_generation_prompt: Flag = UNSET
    continue_final_message: Flag = UNSET
    documents: Annotated[list[dict[str, str]], Meta(max_length=1024)] | None | UnsetType = UNSET
    chat_template_kwargs: Object = UNSET
    return_prompt_text: Flag = UNSET


def _read(fields: ChatBody) -> Content:
    limit, limit_param = fields.max_completion_tokens or None, "max_completion_tokens"
    if limit is None:
        limit, limit_param = fields.max_tokens or None, "max_tokens"
    fields.max_completion_tokens = fields.max_tokens = UNSET
    return Content(
        num_sequences=fields.n or 1,
        max_output_tokens=limit,
        limit_param=limit_param,
        num_messages=len(fields.messages),
        media=_media_of(fields.messages),
    )


CHAT = Route(
    path=CHAT_PATH,
    fields=ChatBody,
    read=_read,
    limit_name="max_completion_tokens",
    dropped=SAMPLING_DROPPED,
    unsupported=SAMPLING_UNSUPPORTED,
)


def _media_of(messages: list[dict[str, Any]]) -> Media:
    """Raises: ApiError for a message without form, addresses and tensors."""
    media = NO_MEDIA
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise invalid(f"messages[{index}].role: is missing.", param="messages")
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise invalid(f"messages[{index}].content: expected text or a list of parts.", param="messages")
        for part in content:
            if not isinstance(part, str):
                media = _with_part(media, part, f"messages[{index}].content")
    return media


def _with_part(media: Media, part: object, where: str) -> Media:
    if not isinstance(part, dict) or not part.keys() <= _PART_KEYS or part.get("type", "text") not in PART_KINDS:
        raise invalid(f"{where}: parts may be {', '.join(PART_KINDS)}.", param="messages")
    for kind, read in (("image_url", image_of_url), ("audio_url", sound_of_url)):
        value = part.get(kind)
        if value is not None:
            url = value.get("url") if isinstance(value, dict) else value
            media = media.with_more(read(url, where=f"{where}: {kind}", param="messages"), "messages")
    sound = part.get("input_audio")
    if sound is not None:
        data = sound.get("data") if isinstance(sound, dict) else None
        media = media.with_more(sound_of_base64(data, where=f"{where}: input_audio.data", param="messages"), "messages")
    return media
