"""What a client may write: the allow-list of fields of each route, their types and bounds; and the body that results.

Called by ``scheduler.api.openai``. The list is vLLM's schema without what only the operator may set; a test compares
it with the installed vLLM. It must never know a key, a worker or a queue, and no message of it repeats a prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.api.errors import ApiError
from scheduler.api.json_shape import MAX_DEPTH, has_duplicate_keys, is_too_deep

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_TOOLS = 128
MAX_MESSAGES = 10_000
MAX_PROMPTS = 64
MAX_WORD_CHARS = 256
MEDIA_TOKENS = 4096
"""Bound of one image, sound or video in the prompt; its own bytes are not text."""
TEMPLATE_TOKENS = 1024
TEMPLATE_TOKENS_PER_MESSAGE = 64
"""Bounds of what a chat template adds; the first step's count replaces them."""

_Count = Annotated[int, Meta(ge=1)]
_Word = Annotated[str, Meta(max_length=MAX_WORD_CHARS)]
_Flag = bool | None | UnsetType
_Number = float | None | UnsetType
_Object = dict[str, Any] | None | UnsetType
_TokenIds = list[int] | None | UnsetType
_Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None | UnsetType
_Stop = str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None | UnsetType
_Tier = Literal["auto", "default", "flex", "priority"] | None | UnsetType


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    include_usage: bool | None | UnsetType = UNSET
    continuous_usage_stats: bool | None | UnsetType = UNSET


class _Sampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields that both routes share."""

    model: _Word
    frequency_penalty: _Number = UNSET
    presence_penalty: _Number = UNSET
    logit_bias: Annotated[dict[str, float], Meta(max_length=1024)] | None | UnsetType = UNSET
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None | UnsetType = UNSET
    max_tokens: _Count | None | UnsetType = UNSET
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None | UnsetType = UNSET
    stop: _Stop = UNSET
    stream: _Flag = UNSET
    stream_options: StreamOptions | None | UnsetType = UNSET
    stream_interval: _Count | None | UnsetType = UNSET
    temperature: _Number = UNSET
    top_p: _Number = UNSET
    top_k: int | None | UnsetType = UNSET
    min_p: _Number = UNSET
    repetition_penalty: _Number = UNSET
    repetition_detection: _Object = UNSET
    stop_token_ids: _TokenIds = UNSET
    include_stop_str_in_output: _Flag = UNSET
    ignore_eos: _Flag = UNSET
    min_tokens: Annotated[int, Meta(ge=0)] | None | UnsetType = UNSET
    skip_special_tokens: _Flag = UNSET
    spaces_between_special_tokens: _Flag = UNSET
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None | UnsetType = UNSET
    truncation_side: Literal["left", "right"] | None | UnsetType = UNSET
    prompt_logprobs: _Logprobs = UNSET
    logprob_token_ids: Annotated[list[int], Meta(max_length=128)] | None | UnsetType = UNSET
    allowed_token_ids: _TokenIds = UNSET
    bad_words: Annotated[list[str], Meta(max_length=1024)] | None | UnsetType = UNSET
    echo: _Flag = UNSET
    add_special_tokens: _Flag = UNSET
    response_format: _Object = UNSET
    structured_outputs: _Object = UNSET
    thinking_token_budget: Annotated[int, Meta(ge=-1)] | None | UnsetType = UNSET
    return_tokens_as_token_ids: _Flag = UNSET
    return_token_ids: _Flag = UNSET
    return_token_offsets: _Flag = UNSET
    # Ours to read; the engine never sees them (see DROPPED).
    service_tier: _Tier = UNSET
    user: _Word | None | UnsetType = UNSET
    safety_identifier: _Word | None | UnsetType = UNSET
    prompt_cache_key: _Word | None | UnsetType = UNSET
    metadata: Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None | UnsetType = UNSET
    store: Literal[False] | None | UnsetType = UNSET


class CompletionBody(_Sampling, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """``/v1/completions``."""

    prompt: str | list[Any]
    logprobs: _Logprobs = UNSET
    suffix: str | None | UnsetType = UNSET


class ChatBody(_Sampling, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """``/v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: _Count | None | UnsetType = UNSET
    logprobs: _Flag = UNSET
    top_logprobs: _Logprobs = UNSET
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None | UnsetType = UNSET
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None | UnsetType = UNSET
    parallel_tool_calls: _Flag = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None | UnsetType = UNSET
    include_reasoning: _Flag = UNSET
    add_generation_prompt: _Flag = UNSET
    continue_final_message: _Flag = UNSET
    documents: Annotated[list[dict[str, str]], Meta(max_length=1024)] | None | UnsetType = UNSET
    chat_template_kwargs: _Object = UNSET
    return_prompt_text: _Flag = UNSET


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
"""vLLM's fields that only the operator may set, and why where that is not plain."""

UNSUPPORTED = {
    "use_beam_search": "its hidden sequences would run outside the token limit",
    "length_penalty": "it belongs to beam search",
}

DROPPED = ("service_tier", "user", "safety_identifier", "prompt_cache_key", "metadata", "store")
"""OpenAI's fields that are accepted and not sent on."""

PART_KINDS = frozenset({"text", "refusal", "image_url", "audio_url", "video_url", "input_audio"})
"""What a message may be made of. Not among them: tensors (``image_embeds``…), which the engine would unpickle."""
_PART_KEYS = PART_KINDS | {"type"}

_chat_decoder = msgspec.json.Decoder(ChatBody)
_completion_decoder = msgspec.json.Decoder(CompletionBody)
_encode = msgspec.json.Encoder().encode

_UNKNOWN = re.compile(r"unknown field `([^`]*)`(?: - at `\$(.*)`)?", re.DOTALL)
_AT = re.compile(r"^(.*?)(?: - at `\$\.?([^`]*)`)?$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """An admitted body."""

    path: str
    model: str
    is_stream: bool
    includes_usage: bool
    service_tier: str | None
    num_sequences: int
    """Choices × prompts."""
    max_output_tokens: int | None
    """Of one sequence, as the client limited it."""
    text_bytes: int
    media: int
    messages: int
    body: bytes
    """Admitted JSON without a token limit, for ``render``."""

    def prompt_tokens_bound(self, expansion: int) -> int:
        """No prompt of this body has more tokens. ``expansion``: characters the tokenizer's normaliser makes of one
        at most (none 1, NFC 3, NFKC 11); a token stands for at least one byte of what it makes.
        """
        template = TEMPLATE_TOKENS + TEMPLATE_TOKENS_PER_MESSAGE * self.messages
        return self.text_bytes * expansion + MEDIA_TOKENS * self.media + template

    def render(self, max_output_tokens: int) -> bytes:
        """The engine's body with its token limit."""
        name = b"max_completion_tokens" if self.path == CHAT_PATH else b"max_tokens"
        return b'%b,"%b":%d}' % (self.body[:-1], name, max_output_tokens)


CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"


def parse(path: str, body: bytes, *, max_output_tokens: int) -> Ask:
    """Checks everything that can be told without an engine. Raises: ApiError 400, naming the field."""
    if is_too_deep(body):
        raise _invalid(f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="json_too_deep")
    fields = _decode(path, body)
    limit = fields.max_tokens or None
    media = 0
    if isinstance(fields, ChatBody):
        limit = fields.max_completion_tokens or limit
        fields.max_completion_tokens = UNSET
        media, media_bytes = _check_messages(fields.messages)
        num_prompts, messages = 1, len(fields.messages)
    else:
        num_prompts, messages, media_bytes = _check_prompt(fields.prompt), 0, 0
    if limit is not None and limit > max_output_tokens:
        raise _invalid(f"max_tokens: at most {max_output_tokens} are served here.", param="max_tokens")
    is_stream = fields.stream is True
    if fields.stream_options and not is_stream:
        raise _invalid("stream_options: only allowed together with stream.", param="stream_options")
    options = fields.stream_options
    tier = fields.service_tier or None
    fields.max_tokens = UNSET
    for name in DROPPED:
        setattr(fields, name, UNSET)
    try:
        admitted = _encode(fields)
    except (ValueError, OverflowError, RecursionError):
        raise _invalid("The body holds a number or a character that JSON cannot carry.", code="invalid_json") from None
    return Ask(
        path=path,
        model=fields.model,
        is_stream=is_stream,
        includes_usage=isinstance(options, StreamOptions) and options.include_usage is True,
        service_tier=tier,
        num_sequences=(fields.n or 1) * num_prompts,
        max_output_tokens=limit,
        text_bytes=len(admitted) - media_bytes,
        media=media,
        messages=messages,
        body=admitted,
    )


def _decode(path: str, body: bytes) -> ChatBody | CompletionBody:
    decoder = _chat_decoder if path == CHAT_PATH else _completion_decoder
    try:
        fields: ChatBody | CompletionBody = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except UnicodeDecodeError:
        raise _invalid("The body is not valid UTF-8.", code="invalid_json") from None
    except (msgspec.DecodeError, RecursionError):
        # Its message names a place and a rule, but may quote; ours does not.
        raise _invalid("The body is not valid JSON.", code="invalid_json") from None
    if has_duplicate_keys(body):
        raise _invalid("The JSON holds the same key twice in one object.", code="duplicate_key")
    return fields


def _field_error(message: str) -> ApiError:
    """msgspec's words for a wrong field, which name types and bounds and never a value, as OpenAI's."""
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        name = unknown[1][:64]
        if unknown[2]:
            return _invalid(
                f"Unknown field in {unknown[2].strip('.')}.", param=unknown[2].strip("."), code="unknown_parameter"
            )
        if name in OPERATOR_ONLY:
            reason = OPERATOR_ONLY[name]
            return _invalid(
                f"{name}: only the operator may set this{f'; {reason}' if reason else ''}.",
                param=name,
                code="operator_only_parameter",
            )
        if name in UNSUPPORTED:
            return _invalid(f"{name}: not served here; {UNSUPPORTED[name]}.", param=name, code="unsupported_parameter")
        return _invalid(f"Unknown parameter: {name!r}.", param=name, code="unknown_parameter")
    match = _AT.match(message)
    assert match is not None
    words, where = match[1], match[2] or ""
    missing = re.search(r"missing required field `([a-z_]+)`", words)
    if missing is not None:
        where = missing[1]
        words = "is missing"
    words = words.replace("`", "").replace("Expected", "expected")
    name = where.partition(".")[0].partition("[")[0] or None
    return _invalid(f"{where or 'body'}: {words[:300]}.", param=name)


def _check_prompt(prompt: str | list[Any]) -> int:
    """How many prompts it holds. Raises: ApiError."""
    if isinstance(prompt, str):
        return 1
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return 1
    if kinds == {str} or (kinds == {list} and all(set(map(type, tokens)) == {int} for tokens in prompt)):
        if len(prompt) > MAX_PROMPTS:
            raise _invalid(f"prompt: at most {MAX_PROMPTS} prompts in one request.", param="prompt")
        return len(prompt)
    raise _invalid("prompt: expected text, a list of texts, or lists of token ids.", param="prompt")


def _check_messages(messages: list[dict[str, Any]]) -> tuple[int, int]:
    """Media in the messages: how many, and their bytes. Raises: ApiError for addresses and tensors."""
    media = media_bytes = 0
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise _invalid(f"messages[{index}].role: is missing.", param="messages")
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise _invalid(f"messages[{index}].content: expected text or a list of parts.", param="messages")
        for part in content:
            size = _check_part(part, index)
            media_bytes += size
            media += size > 0
    return media, media_bytes


def _check_part(part: object, index: int) -> int:
    """Bytes of media in one part of a message, 0 for text."""
    if isinstance(part, str):
        return 0
    if not isinstance(part, dict) or not part.keys() <= _PART_KEYS or part.get("type", "text") not in PART_KINDS:
        allowed = ", ".join(sorted(PART_KINDS))
        raise _invalid(f"messages[{index}].content: parts may be {allowed}.", param="messages")
    size = 0
    for kind in ("image_url", "audio_url", "video_url"):
        value = part.get(kind)
        if value is None:
            continue
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str) or not url.startswith("data:"):
            raise _invalid(
                f"messages[{index}].content: {kind} must be a data: URL; addresses are not fetched here.",
                param="messages",
                code="remote_media_refused",
            )
        size += len(url)
    sound = part.get("input_audio")
    if isinstance(sound, dict) and isinstance(sound.get("data"), str):
        size += len(sound["data"])
    return size


def _invalid(message: str, *, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)
