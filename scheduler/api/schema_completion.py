"""The allow-list of ``/v1/completions``: vLLM's fields, and the four forms of a prompt.

Called by ``scheduler.api.schemas``.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from scheduler.api.schema_fields import (
    SAMPLING_DROPPED,
    SAMPLING_UNSUPPORTED,
    Content,
    Logprobs,
    Route,
    Sampling,
    invalid,
)

COMPLETION_PATH = "/v1/completions"
MAX_PROMPTS = 64


class CompletionBody(Sampling, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's schema minus what only the operator may set."""

    prompt: str | list[Any]
    logprobs: Logprobs = UNSET
    suffix: str | None | UnsetType = UNSET


def _read(fields: CompletionBody) -> Content:
    limit = fields.max_tokens or None
    fields.max_tokens = UNSET
    num_prompts = count_prompts(fields.prompt, name="prompt", most=MAX_PROMPTS)
    return Content(num_sequences=(fields.n or 1) * num_prompts, max_output_tokens=limit)


COMPLETION = Route(
    path=COMPLETION_PATH,
    fields=CompletionBody,
    read=_read,
    limit_name="max_tokens",
    dropped=SAMPLING_DROPPED,
    unsupported=SAMPLING_UNSUPPORTED,
)


def count_prompts(prompt: str | list[Any], *, name: str, most: int) -> int:
    """How many prompts a field holds: a text, tokens, or a list of either. Raises: ApiError."""
    if isinstance(prompt, str):
        return 1
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return 1
    if kinds == {str} or (kinds == {list} and all(set(map(type, tokens)) == {int} for tokens in prompt)):
        if len(prompt) > most:
            raise invalid(f"{name}: at most {most} in one request.", param=name)
        return len(prompt)
    raise invalid(f"{name}: expected text, a list of texts, or lists of token ids.", param=name)
