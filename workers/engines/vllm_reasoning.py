"""How many tokens of an answer were reasoning: vLLM's own reasoning parser is asked, as its usage asks it.

Called by ``workers.engines.vllm``, once a sequence, when it has ended. Where no parser is configured, or the route has
none (completions), nobody tells and the count is 0. It must never keep a token's id.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("jouleway.vllm")


class Reasoning:
    """Counts with the parser of vLLM's chat route, once it stands."""

    def __init__(self) -> None:
        self._chat: Any = None

    def ask(self, chat: Any) -> None:
        """From here on ``chat`` is asked: vLLM's serving object; None where a model does not generate."""
        self._chat = chat if getattr(chat, "_include_reasoning_tokens_details", False) else None

    def count(self, parser_kwargs: dict[str, Any] | None, token_ids: list[int]) -> int:
        """Of one sequence's output. ``parser_kwargs``: what vLLM made its parser with; None: the route has none."""
        chat = self._chat
        if chat is None or parser_kwargs is None or not token_ids:
            return 0
        try:
            parser = chat.parser_cls(chat.renderer.tokenizer, None, model_config=chat.model_config, **parser_kwargs)
            return int(parser.count_reasoning_tokens(token_ids))
        except Exception as error:  # a parser of a model family: an answer must not fail of it
            logger.warning("reasoning tokens are not counted: %s", type(error).__name__)
            self._chat = None
            return 0
