"""Reasoning tokens are what vLLM's own parser counts, or 0 where nobody tells."""

from types import SimpleNamespace
from typing import Any

import pytest

from workers.engines.vllm_reasoning import Reasoning

THINKS = {"chat_template_kwargs": {"enable_thinking": True}}


class Parser:
    """Counts what stands before the token 9, where the template lets the model think."""

    def __init__(
        self, tokenizer: str, tools: object, *, chat_template_kwargs: dict[str, Any], model_config: str
    ) -> None:
        assert ("tokenizer", None, "config") == (tokenizer, tools, model_config)
        self.thinks = chat_template_kwargs["enable_thinking"]

    def count_reasoning_tokens(self, token_ids: list[int]) -> int:
        return token_ids.index(9) if self.thinks else 0


def chat(*, has_parser: bool = True, parser: type = Parser) -> Any:
    """vLLM's serving object, as far as it is asked."""
    return SimpleNamespace(
        _include_reasoning_tokens_details=has_parser,
        parser_cls=parser,
        renderer=SimpleNamespace(tokenizer="tokenizer"),
        model_config="config",
    )


def test_the_parser_is_asked_with_the_requests_own_arguments() -> None:
    """Whether a template lets a model think is one of them."""
    reasoning = Reasoning()
    reasoning.ask(chat())
    assert 3 == reasoning.count(THINKS, [1, 2, 3, 9, 5])
    assert 0 == reasoning.count({"chat_template_kwargs": {"enable_thinking": False}}, [1, 2, 3, 9, 5])


@pytest.mark.parametrize("asked", [None, chat(has_parser=False), SimpleNamespace()])
def test_without_a_parser_nobody_tells(asked: Any) -> None:
    """A model that does not generate, or does not reason."""
    reasoning = Reasoning()
    assert 0 == reasoning.count(THINKS, [1, 9])
    reasoning.ask(asked)
    assert 0 == reasoning.count(THINKS, [1, 9])


def test_a_route_without_a_parser_has_no_reasoning() -> None:
    """Completions; and what generated nothing."""
    reasoning = Reasoning()
    reasoning.ask(chat())
    assert (0, 0) == (reasoning.count(None, [1, 9]), reasoning.count(THINKS, []))


def test_a_parser_that_fails_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    """An answer does not fail of it; the log names the type of the error only."""

    class Broken(Parser):
        def count_reasoning_tokens(self, token_ids: list[int]) -> int:
            raise ValueError("a text that must not leave")

    reasoning = Reasoning()
    reasoning.ask(chat(parser=Broken))
    assert [0, 0] == [reasoning.count(THINKS, [1, 9]) for _ in range(2)]
    assert ["reasoning tokens are not counted: ValueError"] == caplog.messages
