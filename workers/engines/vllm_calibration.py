"""The engine's own dummy work at its start, so that its curves are known before it serves.

Called by ``workers.engines.vllm``. Its engine requests have no payer. It must never take longer than it may.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from workers.engines.vllm_ids import CALIBRATION_PREFIX

BATCHES = (1, 4, 16)
"""Sequences that decode together."""
PROMPT_TOKENS = 16
CHUNK_TOKENS = 512
"""Prompts of the spans that look at prefill."""


async def run_mix(engine: Any, *, max_s: float, max_len_tokens: int, kv_tokens: int) -> None:
    """Decodes with 1, 4 and 16 sequences, prefills, then idles: equal spans. A model that generates nothing prefills
    with 1, 4 and 16.
    """
    span_s = max_s / (len(BATCHES) + 2)
    mix = _Mix(engine, max_len_tokens=max_len_tokens, kv_tokens=kv_tokens)
    for num_sequences in BATCHES:
        if mix.is_pooling:
            await mix.repeat(num_sequences, prompt_tokens=PROMPT_TOKENS, output_tokens=0, span_s=span_s)
        else:
            await mix.run(num_sequences, prompt_tokens=PROMPT_TOKENS, output_tokens=max_len_tokens, span_s=span_s)
    await mix.repeat(2, prompt_tokens=CHUNK_TOKENS, output_tokens=0 if mix.is_pooling else 2, span_s=span_s)
    await asyncio.sleep(span_s)


class _Mix:
    def __init__(self, engine: Any, *, max_len_tokens: int, kv_tokens: int) -> None:
        self._engine = engine
        self._max_len_tokens = max_len_tokens
        self._kv_tokens = kv_tokens
        self._random = random.Random(0)
        self._number = 0
        self._vocabulary = min(engine.model_config.get_vocab_size(), 30_000)
        self.is_pooling = engine.model_config.runner_type == "pooling"

    async def repeat(self, num_sequences: int, *, prompt_tokens: int, output_tokens: int, span_s: float) -> None:
        """One batch after the other until ``span_s`` is over."""
        until_s = time.monotonic() + span_s
        while (left_s := until_s - time.monotonic()) > 0:
            await self.run(
                num_sequences, prompt_tokens=prompt_tokens, output_tokens=output_tokens, span_s=max(left_s, 0.01)
            )

    async def run(self, num_sequences: int, *, prompt_tokens: int, output_tokens: int, span_s: float) -> None:
        """Sequences that nobody pays for, until they end or ``span_s`` is over."""
        room_tokens = min(self._max_len_tokens, self._kv_tokens // num_sequences)
        prompt_tokens = max(min(prompt_tokens, room_tokens // 2), 1)
        output_tokens = min(output_tokens, max(room_tokens - prompt_tokens, 1))
        tasks = [asyncio.create_task(self._one(prompt_tokens, output_tokens)) for _ in range(num_sequences)]
        await asyncio.wait(tasks, timeout=span_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, prompt_tokens: int, output_tokens: int) -> None:
        from vllm import PoolingParams, SamplingParams
        from vllm.inputs import tokens_input

        self._number += 1
        # Random tokens: nothing of them is found in the prefix cache.
        prompt = tokens_input([self._random.randrange(100, self._vocabulary) for _ in range(prompt_tokens)])
        name = f"{CALIBRATION_PREFIX}{self._number}"
        if output_tokens == 0:
            outputs = self._engine.encode(prompt, PoolingParams(task=await self._pooling_task()), name)
        else:
            params = SamplingParams(max_tokens=output_tokens, ignore_eos=True, temperature=1.0, detokenize=False)
            outputs = self._engine.generate(prompt, params, name)
        async for _ in outputs:
            pass

    async def _pooling_task(self) -> str:
        """Any that the model can: their cost is that of the prompt."""
        tasks = await self._engine.get_supported_tasks()
        return str(next(task for task in ("embed", "classify", *tasks) if task in tasks))
