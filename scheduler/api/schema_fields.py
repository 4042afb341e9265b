"""What the routes' allow-lists share: kinds of fields, what only the operator may set, and the words of a refusal.

Called by ``scheduler.api.schemas`` and the files of the routes. No message of it repeats what was sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.api.errors import ApiError
from scheduler.api.media import NO_MEDIA, Media

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_TOOLS = 128
MAX_MESSAGES = 10_000
MAX_WORD_CHARS = 256

Count = Annotated[int, Meta(ge=1)]
Word = Annotated[str, Meta(max_length=MAX_WORD_CHARS)]
Flag = bool | None | UnsetType
Number = float | None | UnsetType
Object = dict[str, Any] | None | UnsetType
TokenIds = list[int] | None | UnsetType
Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None | UnsetType
Stop = str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None | UnsetType
Tier = Literal["auto", "default", "flex", "priority"] | None | UnsetType
Bias = Annotated[dict[str, float], Meta(max_length=1024)] | None | UnsetType
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None | UnsetType
Objects = Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None | UnsetType
Metadata = Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None | UnsetType


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    include_usage: Flag = UNSET
    continuous_usage_stats: Flag = UNSET


class Sampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields that chats and completions share."""

    model: Word
    frequency_penalty: Number = UNSET
    presence_penalty: Number = UNSET
    logit_bias: Bias = UNSET
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None | UnsetType = UNSET
    max_tokens: Count | None | UnsetType = UNSET
    seed: Seed = UNSET
    stop: Stop = UNSET
    stream: Flag = UNSET
    stream_options: StreamOptions | None | UnsetType = UNSET
    stream_interval: Count | None | UnsetType = UNSET
    temperature: Number = UNSET
    top_p: Number = UNSET
    top_k: int | None | UnsetType = UNSET
    min_p: Number = UNSET
    repetition_penalty: Number = UNSET
    repetition_detection: Object = UNSET
    stop_token_ids: TokenIds = UNSET
    include_stop_str_in_output: Flag = UNSET
    ignore_eos: Flag = UNSET
    min_tokens: Annotated[int, Meta(ge=0)] | None | UnsetType = UNSET
    skip_special_tokens: Flag = UNSET
    spaces_between_special_tokens: Flag = UNSET
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None | UnsetType = UNSET
    truncation_side: Literal["left", "right"] | None | UnsetType = UNSET
    prompt_logprobs: Logprobs = UNSET
    logprob_token_ids: Annotated[list[int], Meta(max_length=128)] | None | UnsetType = UNSET
    allowed_token_ids: TokenIds = UNSET
    bad_words: Annotated[list[str], Meta(max_length=1024)] | None | UnsetType = UNSET
    echo: Flag = UNSET
    add_special_tokens: Flag = UNSET
    response_format: Object = UNSET
    structured_outputs: Object = UNSET
    thinking_token_budget: Annotated[int, Meta(ge=-1)] | None | UnsetType = UNSET
    return_tokens_as_token_ids: Flag = UNSET
    return_token_ids: Flag = UNSET
    return_token_offsets: Flag = UNSET
    # Ours to read; the engine never sees them (see SAMPLING_DROPPED).
    service_tier: Tier = UNSET
    user: Word | None | UnsetType = UNSET
    safety_identifier: Word | None | UnsetType = UNSET
    prompt_cache_key: Word | None | UnsetType = UNSET
    metadata: Metadata = UNSET
    store: Literal[False] | None | UnsetType = UNSET


SAMPLING_DROPPED = ("service_tier", "user", "safety_identifier", "prompt_cache_key", "metadata", "store")
SAMPLING_UNSUPPORTED = {
    "use_beam_search": "its hidden sequences would run outside the token limit",
    "length_penalty": "it belongs to beam search",
}

OPERATOR_ONLY = {
    "priority": "use service_tier",
    "cache_salt": "the operator keeps tenants' caches apart with it",
    "kv_transfer_params": "",
    "ec_transfer_params": "",
    "vllm_xargs": "",
    "chat_template": "a template is code that runs in the engine",
    "request_id": "ids are made here",
    "session_id": "",
    "watermarking": "",
    "media_io_kwargs": "",
    "mm_processor_kwargs": "",
    "mm_payload": "",
    "return_mm_kwargs": "",
    "prompt_embeds": "tensors from outside are not loaded",
    "routed_experts_prompt_start": "",
}
"""vLLM's fields that only the operator may set, on any route, and why where that is not plain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a route finds in its fields."""

    num_sequences: int
    max_output_tokens: int | None
    """None: the client set no limit."""
    limit_param: str = "max_tokens"
    """Under which name it was given."""
    num_messages: int = 0
    media: Media = NO_MEDIA


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One POST route and its allow-list."""

    path: str
    fields: type[msgspec.Struct]
    read: Callable[[Any], Content]
    """Checks the decoded fields beyond their types, and takes out what ``Ask`` keeps. Raises: ApiError."""
    limit_name: str | None
    dropped: tuple[str, ...]
    """Accepted, and not sent on."""
    unsupported: Mapping[str, str]
    """Refused, and why."""


def invalid(message: str, *, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """A body that cannot be served as it is."""
    return ApiError(400, message, code=code, param=param)


_UNKNOWN = re.compile(r"unknown field `([^`]*)`(?: - at `\$(.*)`)?", re.DOTALL)
_AT = re.compile(r"^(.*?)(?: - at `\$\.?([^`]*)`)?$", re.DOTALL)


def field_error(message: str, unsupported: Mapping[str, str]) -> ApiError:
    """msgspec's words for a wrong field, which name types and bounds and never a value, as OpenAI's."""
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        return _unknown_field(unknown[1][:64], (unknown[2] or "").strip("."), unsupported)
    match = _AT.match(message)
    assert match is not None
    words, where = match[1], match[2] or ""
    missing = re.search(r"missing required field `([a-z_]+)`", words)
    if missing is not None:
        where = missing[1]
        words = "is missing"
    words = words.replace("`", "").replace("Expected", "expected")
    name = where.partition(".")[0].partition("[")[0] or None
    return invalid(f"{where or 'body'}: {words[:300]}.", param=name)


def _unknown_field(name: str, where: str, unsupported: Mapping[str, str]) -> ApiError:
    if where:
        return invalid(f"Unknown field in {where}.", param=where, code="unknown_parameter")
    if name in unsupported:
        return invalid(f"{name}: not served here; {unsupported[name]}.", param=name, code="unsupported_parameter")
    if name in OPERATOR_ONLY:
        reason = OPERATOR_ONLY[name]
        message = f"{name}: only the operator may set this{f'; {reason}' if reason else ''}."
        return invalid(message, param=name, code="operator_only_parameter")
    return invalid(f"Unknown parameter: {name!r}.", param=name, code="unknown_parameter")
