"""Writes prompts of about a wanted number of tokens, without a tokenizer, and the request bodies around them.

Called by ``scheduler.bench.client``. It must never know a clock or the network: same seed, same bytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import msgspec

from scheduler.bench.workload import BLOCK_TOKENS, Planned

Endpoint = Literal["chat", "completions"]

_VOCABULARY = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education foot boy age policy process music market sense nation plan "
    "college interest death experience effect use class control care field development role effort rate heart drug "
    "show leader light voice wife police mind price report decision son view relationship town road arm difference "
    "value building action season society tax director position player record paper space ground form event"
)
WORDS = tuple(_VOCABULARY.split())
"""Common words, each one token (with the space before it) in the byte-pair vocabularies in use."""
POOL_WORDS = 1 << 17
NONCE_WORDS = 4
"""Words in front of a unique prompt that keep it from sharing a prefix by accident (about 10⁸ combinations)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFit:
    """Prompt tokens = template + per word · words, as the server itself counts them; measured before a run."""

    template_tokens: float = 0.0
    tokens_per_word: float = 1.0
    measured: bool = False

    @staticmethod
    def through(few: tuple[int, int], many: tuple[int, int]) -> TokenFit:
        """The line through two points (words, prompt tokens); the plain guess where they make no sense."""
        per_word = (many[1] - few[1]) / (many[0] - few[0])
        if not 0.5 <= per_word <= 8:
            return TokenFit()
        return TokenFit(template_tokens=few[1] - per_word * few[0], tokens_per_word=per_word, measured=True)

    def words(self, tokens: int) -> int:
        """Words of a prompt that the server will count as about ``tokens`` (at least 1)."""
        return max(1, round((tokens - self.template_tokens) / self.tokens_per_word))


class Prompts:
    """Prompt texts by seed. Blocks with equal ids are equal text, so that a server's prefix cache works as traced."""

    def __init__(self, *, seed: int | str, fit: TokenFit | None = None) -> None:
        self.fit = fit or TokenFit()
        self._seed = seed
        self._pool = random.Random(f"{seed} pool").choices(WORDS, k=POOL_WORDS)

    def text(self, planned: Planned) -> str:
        """The prompt of one planned request."""
        num_words = self.fit.words(planned.input_tokens)
        if not planned.blocks:
            return self.unique(f"request {planned.index}", num_words)
        block_words = max(1, round(BLOCK_TOKENS / self.fit.tokens_per_word))
        words: list[str] = []
        for block in planned.blocks:
            words += self._slice(f"block {block}", min(block_words, num_words - len(words)))
        if len(words) < num_words:
            words += self._slice(f"rest {planned.index}", num_words - len(words))
        return " ".join(words)

    def unique(self, name: str, num_words: int) -> str:
        """``num_words`` words that share no prefix with another name's."""
        return " ".join(self._slice(name, num_words))

    def _slice(self, name: str, num_words: int) -> list[str]:
        if num_words <= 0:
            return []
        generator = random.Random(f"{self._seed} {name}")
        nonce = generator.choices(WORDS, k=min(NONCE_WORDS, num_words))
        rest = num_words - len(nonce)
        start = generator.randrange(POOL_WORDS)
        words = nonce + self._pool[start : start + rest]
        while len(words) < num_words:
            words += self._pool[: num_words - len(words)]
        return words


def body(
    text: str,
    *,
    endpoint: Endpoint,
    model: str,
    output_tokens: int,
    exact_output: bool,
    temperature: float | None,
    service_tier: str | None = None,
) -> bytes:
    """The JSON body of one streaming request.

    ``exact_output`` adds ``ignore_eos`` and ``min_tokens``, which vLLM and its kin understand and others refuse.
    """
    fields: dict[str, object] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if endpoint == "chat":
        fields |= {"messages": [{"role": "user", "content": text}], "max_completion_tokens": output_tokens}
    else:
        fields |= {"prompt": text, "max_tokens": output_tokens}
    if exact_output:
        fields |= {"ignore_eos": True, "min_tokens": output_tokens}
    if temperature is not None:
        fields["temperature"] = temperature
    if service_tier is not None:
        fields["service_tier"] = service_tier
    return msgspec.json.encode(fields)
