"""Every field of the installed vLLM's bodies is allowed, operator-only or unsupported, by name: none is forgotten."""

from typing import Any, get_args

import msgspec
import pytest

from scheduler.api.schema_fields import OPERATOR_ONLY
from scheduler.api.schemas import ROUTES

pytest.importorskip("vllm", reason="vLLM is not installed")


def vllm_models(path: str) -> tuple[Any, ...]:
    """vLLM's own models of the body; some routes take several."""
    match path:
        case "/v1/chat/completions":
            from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

            return (ChatCompletionRequest,)
        case "/v1/completions":
            from vllm.entrypoints.openai.completion.protocol import CompletionRequest

            return (CompletionRequest,)
        case "/v1/embeddings":
            from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest

            return get_args(get_args(EmbeddingRequest)[0])
        case "/v1/responses":
            from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

            return (ResponsesRequest,)
        case "/v1/messages":
            from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest

            return (AnthropicMessagesRequest,)
    raise AssertionError(path)


def vllm_fields(path: str) -> set[str]:
    """Names that vLLM's models take, aliases included."""
    return {field.alias or name for model in vllm_models(path) for name, field in model.model_fields.items()}


def allowed(path: str) -> set[str]:
    return {field.name for field in msgspec.structs.fields(ROUTES[path].fields)}


@pytest.mark.parametrize("path", ROUTES)
def test_every_field_of_vllm_is_decided(path: str) -> None:
    """A new version of vLLM brings new fields: somebody decides about each before a client can send it."""
    undecided = vllm_fields(path) - allowed(path) - OPERATOR_ONLY.keys() - ROUTES[path].unsupported.keys()
    assert set() == undecided


@pytest.mark.parametrize("path", ROUTES)
def test_every_allowed_field_is_one_of_vllm_or_is_dropped(path: str) -> None:
    """What the engine would not understand is not sent to it."""
    assert set() == allowed(path) - vllm_fields(path) - set(ROUTES[path].dropped)


@pytest.mark.parametrize("path", ROUTES)
def test_no_field_is_allowed_and_forbidden(path: str) -> None:
    """One decision a field."""
    assert not allowed(path) & (OPERATOR_ONLY.keys() | ROUTES[path].unsupported.keys())


@pytest.mark.parametrize("path", ROUTES)
def test_the_salt_that_the_relay_sets_is_a_field_of_vllm(path: str) -> None:
    """Tenants' prefix caches are kept apart with it."""
    assert "cache_salt" in vllm_fields(path)
