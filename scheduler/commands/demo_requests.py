"""The demo's mixed requests, planned from a seed.

Called by ``scheduler.commands.demo``. Pure: no clock, no network; the same seed plans the same requests.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TENANTS_NEEDED = 3
MIN_REQUESTS = 12
TIERS: tuple[Literal["priority", "default"], ...] = ("priority", "default")

SHARED_PREFIX = (
    "You answer questions for the people who run a small data centre. Be brief and plain; say what to do first, "
    "then why. Do not greet, do not repeat the question, and never invent a number that was not given to you. "
)
QUESTIONS = (
    "Name three causes of a hot aisle.",
    "Why does batching save energy when a language model decodes?",
    "What is the difference between power and energy?",
    "Explain to a child why the sky is blue.",
    "List four things to check before a disk is replaced.",
    "Why do fans get louder when it is warm?",
    "What does a heat pump do?",
    "How would you explain a queue to a visitor?",
)
OPENINGS = (
    "The capital of France is",
    "Once upon a time, in a machine hall full of fans,",
    "To save energy at night, the first thing is to",
    "A watt is",
    "The three rules of the house are",
)
LONG_NOTE = (
    "Note from the night shift. Rack {rack} drew more power than usual, and its inlet was {inlet} degrees warm. "
    "We moved two batch jobs to the other row, raised the fan curve, and wrote the meter down every ten minutes. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """One request of the plan."""

    index: int
    tenant: str
    api_key: str
    is_chat: bool
    is_stream: bool
    is_long: bool
    tier: Literal["priority", "default"]
    prompt: str
    max_tokens: int
    abort_after_chunks: int | None = None
    """Streams only: hang up after so many events. None = read to the end."""
    starts_after_s: float

    @property
    def path(self) -> str:
        """The route it is sent to."""
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def payload(self, model: str) -> dict[str, object]:
        """The JSON body, as any OpenAI client would send it."""
        payload: dict[str, object] = {
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": 0.7,
            "service_tier": self.tier,
        }
        if self.is_chat:
            payload["messages"] = [
                {"role": "system", "content": SHARED_PREFIX},
                {"role": "user", "content": self.prompt},
            ]
        else:
            payload["prompt"] = self.prompt
        if self.is_stream:
            payload |= {"stream": True, "stream_options": {"include_usage": True}}
        return payload

    @property
    def label(self) -> str:
        """The request in a few words, for the progress line."""
        kind = "chat" if self.is_chat else "completion"
        size = "long" if self.is_long else "short"
        ending = ", will hang up" if self.abort_after_chunks is not None else ""
        return f"{self.tenant} {self.tier} {size} {kind}{' stream' if self.is_stream else ''}{ending}"


def _prompt(chance: random.Random, *, is_chat: bool, is_long: bool) -> str:
    question = chance.choice(QUESTIONS if is_chat else OPENINGS)
    if not is_long:
        return question
    notes = [LONG_NOTE.format(rack=chance.randint(1, 40), inlet=chance.randint(18, 35)) for _ in range(5)]
    return "".join(notes) + question


def plan_requests(tenants: Sequence[tuple[str, str]], *, num_requests: int, seed: int) -> list[DemoRequest]:
    """``num_requests`` requests over all combinations of kind; two of them, both long streams, hang up on purpose.

    ``tenants`` are pairs of name and API key, at least three. Raises ValueError below MIN_REQUESTS or three tenants.
    """
    if num_requests < MIN_REQUESTS:
        raise ValueError(f"the demo needs at least {MIN_REQUESTS} requests to mix every kind, not {num_requests}")
    if len(tenants) < TENANTS_NEEDED:
        raise ValueError(f"the demo needs {TENANTS_NEEDED} tenants, the configuration has {len(tenants)}")
    chance = random.Random(seed)
    combinations = [
        (is_chat, is_stream, is_long) for is_long in (False, True) for is_stream in (True, False) for is_chat in (1, 0)
    ]
    kinds = [combinations[index % len(combinations)] for index in range(num_requests)]
    chance.shuffle(kinds)
    long_streams = [index for index, (_, is_stream, is_long) in enumerate(kinds) if is_stream and is_long]
    aborts = dict(zip(sorted(chance.sample(long_streams, 2)), (3, 10), strict=True))
    planned = []
    starts_after_s = 0.0
    for index, (is_chat, is_stream, is_long) in enumerate(kinds):
        name, key = tenants[index % TENANTS_NEEDED]
        planned.append(
            DemoRequest(
                index=index,
                tenant=name,
                api_key=key,
                is_chat=bool(is_chat),
                is_stream=is_stream,
                is_long=is_long,
                tier=TIERS[index // TENANTS_NEEDED % 2],
                prompt=_prompt(chance, is_chat=bool(is_chat), is_long=is_long),
                max_tokens=chance.randint(64, 112) if is_long else chance.randint(12, 40),
                abort_after_chunks=aborts.get(index),
                starts_after_s=starts_after_s,
            )
        )
        starts_after_s += chance.expovariate(2.5)
    return planned
