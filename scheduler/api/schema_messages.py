"""The allow-list of ``/v1/messages``, Anthropic's words for a chat, as vLLM reads them.

Called by ``scheduler.api.schemas``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.api.media import NO_MEDIA, Media, image_of_base64
from scheduler.api.schema_fields import (
    MAX_MESSAGES,
    MAX_STOPS,
    Content,
    Count,
    Flag,
    Number,
    Object,
    Objects,
    Route,
    Word,
    invalid,
)

MESSAGES_PATH = "/v1/messages"

BLOCK_KINDS = ("image", "redacted_thinking", "text", "thinking", "tool_reference", "tool_result", "tool_use")
"""What a message may be made of."""


class MessagesBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's schema minus what only the operator may set."""

    model: Word
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count | UnsetType
    system: str | Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)] | None | UnsetType = UNSET
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOPS)] | None | UnsetType = UNSET
    stream: Flag = UNSET
    temperature: Number = UNSET
    top_k: int | None | UnsetType = UNSET
    top_p: Number = UNSET
    tool_choice: Object = UNSET
    tools: Objects = UNSET
    thinking: Object = UNSET
    output_config: Object = UNSET
    chat_template_kwargs: Object = UNSET
    # Ours to read.
    service_tier: Literal["auto", "standard_only", "default", "flex", "priority"] | None | UnsetType = UNSET
    metadata: Object = UNSET


def _read(fields: MessagesBody) -> Content:
    limit = fields.max_tokens
    assert isinstance(limit, int), "the decoder takes a number only"
    fields.max_tokens = UNSET
    if fields.service_tier == "standard_only":
        fields.service_tier = "default"
    media = NO_MEDIA
    for index, message in enumerate(fields.messages):
        if not isinstance(message.get("role"), str):
            raise invalid(f"messages[{index}].role: is missing.", param="messages")
        media = _with_blocks(media, message.get("content"), f"messages[{index}].content", "messages")
    num_messages = len(fields.messages)
    if isinstance(fields.system, list):
        num_messages += len(fields.system)
        media = _with_blocks(media, fields.system, "system", "system")
    return Content(num_sequences=1, max_output_tokens=limit, num_messages=num_messages + 1, media=media)


MESSAGES = Route(
    path=MESSAGES_PATH,
    fields=MessagesBody,
    read=_read,
    limit_name="max_tokens",
    dropped=("service_tier", "metadata"),
    unsupported={
        "container": "no tool runs here",
        "context_management": "nothing is kept between requests",
        "mcp_servers": "no tool runs here",
    },
)


def _with_blocks(media: Media, blocks: object, where: str, param: str) -> Media:
    """Text, or blocks; a tool's result holds blocks again. Raises: ApiError."""
    if isinstance(blocks, str):
        return media
    if not isinstance(blocks, list):
        raise invalid(f"{where}: expected text or a list of blocks.", param=param)
    for block in blocks:
        if not isinstance(block, dict) or block.get("type") not in BLOCK_KINDS:
            raise invalid(f"{where}: blocks may be {', '.join(BLOCK_KINDS)}.", param=param)
        if block["type"] == "image":
            media = media.with_more(_image_of(block.get("source"), where, param), param)
        elif block["type"] == "tool_result" and block.get("content") is not None:
            media = _with_blocks(media, block["content"], f"{where}: tool_result", param)
    return media


def _image_of(source: object, where: str, param: str) -> Media:
    if not isinstance(source, dict) or source.get("type") != "base64":
        raise invalid(
            f"{where}: an image's source must be base64; addresses are not fetched here.",
            param=param,
            code="remote_media_refused",
        )
    return image_of_base64(source.get("data"), where=f"{where}: image", param=param)
