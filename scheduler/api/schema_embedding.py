"""The allow-list of ``/v1/embeddings``: texts or tokens in, nothing is generated.

Called by ``scheduler.api.schemas``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.api.schema_completion import count_prompts
from scheduler.api.schema_fields import Content, Count, Flag, Route, Tier, Word

EMBEDDING_PATH = "/v1/embeddings"
MAX_INPUTS = 2048
"""OpenAI's bound; clients send batches of this size."""


class EmbeddingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's schema minus what only the operator may set."""

    model: Word
    input: str | list[Any]
    dimensions: Count | None | UnsetType = UNSET
    encoding_format: Literal["float", "base64"] | UnsetType = UNSET
    embed_dtype: Literal["float32", "float16", "bfloat16"] | UnsetType = UNSET
    endianness: Literal["native", "big", "little"] | UnsetType = UNSET
    use_activation: Flag = UNSET
    add_special_tokens: bool | UnsetType = UNSET
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None | UnsetType = UNSET
    truncation_side: Literal["left", "right"] | None | UnsetType = UNSET
    # Ours to read.
    service_tier: Tier = UNSET
    user: Word | None | UnsetType = UNSET


def _read(fields: EmbeddingBody) -> Content:
    num_inputs = count_prompts(fields.input, name="input", most=MAX_INPUTS)
    return Content(num_sequences=num_inputs, max_output_tokens=0)


EMBEDDING = Route(
    path=EMBEDDING_PATH,
    fields=EmbeddingBody,
    read=_read,
    limit_name=None,
    dropped=("service_tier", "user"),
    unsupported={
        "padding": "a padded prompt has more tokens than its text",
        "messages": "send texts or tokens as input",
        "add_generation_prompt": "it belongs to messages",
        "continue_final_message": "it belongs to messages",
        "chat_template_kwargs": "it belongs to messages",
    },
)
