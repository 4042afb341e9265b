"""The allow-list of ``/v1/responses``, without a memory: what would be kept, looked up or fetched is refused by name.

Called by ``scheduler.api.schemas``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.api.media import NO_MEDIA, Media, image_of_url
from scheduler.api.schema_fields import (
    MAX_MESSAGES,
    Bias,
    Content,
    Count,
    Flag,
    Logprobs,
    Metadata,
    Number,
    Object,
    Objects,
    Route,
    Seed,
    Stop,
    Tier,
    TokenIds,
    Word,
    invalid,
)

RESPONSES_PATH = "/v1/responses"

ITEM_KINDS = (
    "custom_tool_call",
    "custom_tool_call_output",
    "function_call",
    "function_call_output",
    "message",
    "reasoning",
)
"""What an input may hold. Not among them: references to what a server keeps, and outputs of tools that run there."""
PART_KINDS = ("input_image", "input_text", "output_text", "reasoning_text", "refusal", "summary_text", "text")
STATEFUL = ("store", "background", "previous_response_id")
"""Fields that ask for a memory, unless they say no to it."""
TOOL_KINDS = ("custom", "function", "namespace")
"""Tools that the client runs; all others would run on the server, or fetch."""

Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponsesBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's schema minus what only the operator may set and what needs a store."""

    model: Word
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None | UnsetType = UNSET
    max_output_tokens: Count | None | UnsetType = UNSET
    max_tool_calls: Count | None | UnsetType = UNSET
    metadata: Metadata = UNSET
    logit_bias: Bias = UNSET
    parallel_tool_calls: Flag = UNSET
    reasoning: Object = UNSET
    include_reasoning: Flag = UNSET
    include: list[Include] | None | UnsetType = UNSET
    stream: Flag = UNSET
    temperature: Number = UNSET
    text: Object = UNSET
    tool_choice: str | dict[str, Any] | None | UnsetType = UNSET
    tools: Objects = UNSET
    top_logprobs: Logprobs = UNSET
    top_p: Number = UNSET
    top_k: int | None | UnsetType = UNSET
    min_p: Number = UNSET
    truncation: Literal["auto", "disabled"] | None | UnsetType = UNSET
    skip_special_tokens: Flag = UNSET
    include_stop_str_in_output: Flag = UNSET
    presence_penalty: Number = UNSET
    frequency_penalty: Number = UNSET
    repetition_penalty: Number = UNSET
    seed: Seed = UNSET
    stop: Stop = UNSET
    stop_token_ids: TokenIds = UNSET
    ignore_eos: Flag = UNSET
    structured_outputs: Object = UNSET
    chat_template_kwargs: Object = UNSET
    store: Flag = UNSET
    background: Flag = UNSET
    previous_response_id: str | None | UnsetType = UNSET
    # Ours to read.
    service_tier: Tier = UNSET
    user: Word | None | UnsetType = UNSET
    safety_identifier: Word | None | UnsetType = UNSET
    prompt_cache_key: Word | None | UnsetType = UNSET


_DEFAULTS = tuple(name for name in ResponsesBody.__struct_fields__ if name not in ("model", "input"))


def _read(fields: ResponsesBody) -> Content:
    limit = fields.max_output_tokens or None
    fields.max_output_tokens = UNSET
    for name in _DEFAULTS:  # null is as good as absent, but not to vLLM
        if getattr(fields, name) is None:
            setattr(fields, name, UNSET)
    for name in STATEFUL:
        if getattr(fields, name) not in (UNSET, False):
            raise invalid(
                f"{name}: not served here; nothing is kept between requests.", param=name, code="unsupported_parameter"
            )
    fields.store = False  # vLLM's own default is to keep it
    if isinstance(fields.tools, list):
        _check_tools(fields.tools)
    media, num_messages = NO_MEDIA, 1
    if isinstance(fields.input, list):
        num_messages = len(fields.input)
        for index, item in enumerate(fields.input):
            media = _with_item(media, item, f"input[{index}]")
    return Content(
        num_sequences=1,
        max_output_tokens=limit,
        limit_param="max_output_tokens",
        num_messages=num_messages + (fields.instructions is not UNSET),
        media=media,
    )


RESPONSES = Route(
    path=RESPONSES_PATH,
    fields=ResponsesBody,
    read=_read,
    limit_name="max_output_tokens",
    dropped=("service_tier", "user", "safety_identifier", "prompt_cache_key", "background", "previous_response_id"),
    unsupported={
        "conversation": "nothing is kept between requests",
        "previous_input_messages": "send the whole conversation as input",
        "prompt": "no templates are kept here",
        "enable_response_messages": "the answer does not repeat the prompt",
    },
)


def _check_tools(tools: list[dict[str, Any]]) -> None:
    for index, tool in enumerate(tools):
        if tool.get("type") not in TOOL_KINDS:
            raise invalid(
                f"tools[{index}].type: {', '.join(TOOL_KINDS)} are served; no tool runs here.",
                param="tools",
                code="unsupported_tool",
            )


def _with_item(media: Media, item: dict[str, Any], where: str) -> Media:
    """One item of the input. Raises: ApiError."""
    kind = item.get("type", "message")
    if kind not in ITEM_KINDS:
        raise invalid(f"{where}.type: may be {', '.join(ITEM_KINDS)}.", param="input")
    if kind == "message" and not isinstance(item.get("role"), str):
        raise invalid(f"{where}.role: is missing.", param="input")
    for name in ("content", "output", "summary"):
        parts = item.get(name)
        if parts is None or isinstance(parts, str):
            continue
        if not isinstance(parts, list):
            raise invalid(f"{where}.{name}: expected text or a list of parts.", param="input")
        for part in parts:
            media = _with_part(media, part, f"{where}.{name}")
    return media


def _with_part(media: Media, part: object, where: str) -> Media:
    if not isinstance(part, dict) or part.get("type") not in PART_KINDS:
        raise invalid(f"{where}: parts may be {', '.join(PART_KINDS)}.", param="input")
    if part["type"] != "input_image":
        return media
    if part.get("file_id") is not None:
        raise invalid(f"{where}: no files are kept here; send the image as a data: URL.", param="input")
    image = image_of_url(part.get("image_url"), where=f"{where}: image_url", param="input")
    return media.with_more(image, "input")
