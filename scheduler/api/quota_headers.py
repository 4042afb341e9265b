"""OpenAI's ``x-ratelimit-*`` headers: how the tightest budget of requests and of tokens stands for this key now.

Called by ``scheduler.api.app`` and ``scheduler.api.openai`` when an answer begins. It must never compute anything for
a key without such budgets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from scheduler.api.exchange import Header

SHOWN = ("requests", "tokens")
"""Measures that have headers; of the others only a refusal speaks."""


class Standing(Protocol):
    """As much as is read of ``budgets.BudgetState``."""

    @property
    def measure(self) -> str: ...
    @property
    def limit(self) -> int: ...
    @property
    def left(self) -> int:
        """Neither used nor held."""

    @property
    def resets_unix_s(self) -> float | None: ...


def quota_headers(states: Iterable[Standing], now_unix_s: float) -> list[Header]:
    """One budget of each measure; one that no time refills has no reset."""
    headers: list[Header] = []
    for state in states:
        name = str(state.measure).encode()
        headers.append((b"x-ratelimit-limit-" + name, b"%d" % state.limit))
        headers.append((b"x-ratelimit-remaining-" + name, b"%d" % max(state.left, 0)))
        if state.resets_unix_s is not None:
            headers.append((b"x-ratelimit-reset-" + name, duration(state.resets_unix_s - now_unix_s)))
    return headers


def duration(seconds: float) -> bytes:
    """As OpenAI writes it, never too early: ``1s``, ``6m0s``, ``24h0m0s``."""
    minutes, rest_s = divmod(max(math.ceil(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, rest_s)
    return b"%dm%ds" % (minutes, rest_s) if minutes else b"%ds" % rest_s
