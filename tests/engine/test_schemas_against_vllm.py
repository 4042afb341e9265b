"""Every field of the installed vLLM's bodies is allowed, operator-only or unsupported, by name: none is forgotten."""

from typing import Any

import msgspec
import pytest

from scheduler.api.schemas import DROPPED, OPERATOR_ONLY, UNSUPPORTED, ChatBody, CompletionBody

pytest.importorskip("vllm", reason="vLLM is not installed")

OURS = {"safety_identifier", "prompt_cache_key", "metadata", "store", "service_tier"}
"""OpenAI's fields that vLLM does not know: read here, never sent on."""


def vllm_fields(route: str) -> set[str]:
    """Names that vLLM's own model of the body takes, aliases included."""
    if route == "chat":
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest as Model
    else:
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest as Model
    names: set[str] = set()
    for name, field in Model.model_fields.items():
        names.add(field.alias or name)
    return names


@pytest.mark.parametrize(("route", "body"), [("chat", ChatBody), ("completion", CompletionBody)])
def test_every_field_of_vllm_is_decided(route: str, body: Any) -> None:
    """A new version of vLLM brings new fields: somebody decides about each before a client can send it."""
    allowed = {field.name for field in msgspec.structs.fields(body)}
    theirs = vllm_fields(route)
    undecided = theirs - allowed - OPERATOR_ONLY.keys() - UNSUPPORTED.keys()
    assert set() == undecided


@pytest.mark.parametrize(("route", "body"), [("chat", ChatBody), ("completion", CompletionBody)])
def test_every_allowed_field_is_one_of_vllm_or_is_dropped(route: str, body: Any) -> None:
    """What the engine would not understand is not sent to it."""
    allowed = {field.name for field in msgspec.structs.fields(body)}
    assert allowed - vllm_fields(route) <= OURS & set(DROPPED)


@pytest.mark.parametrize("body", [ChatBody, CompletionBody])
def test_no_field_is_allowed_and_forbidden(body: Any) -> None:
    """One decision a field."""
    allowed = {field.name for field in msgspec.structs.fields(body)}
    assert not allowed & (OPERATOR_ONLY.keys() | UNSUPPORTED.keys())


def test_the_salt_that_the_relay_sets_is_a_field_of_vllm() -> None:
    """Tenants' prefix caches are kept apart with it."""
    assert "cache_salt" in vllm_fields("chat") & vllm_fields("completion")
