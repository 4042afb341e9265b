"""Which attempt an engine request of vLLM belongs to, and which prompt of it.

Called by ``workers.engines.vllm`` and ``workers.engines.vllm_outputs``. It must never import vLLM.

vLLM's own id of a request is ``chatcmpl-<x-request-id>-<8 hex>`` (completions: ``cmpl-<x-request-id>-<prompt>-…``,
children of n > 1: ``<child>_…``), but /v1/responses and some others make up their own. The attempt is therefore taken
from the context of the task in which vLLM registers the request, and only where that is lost, from the id.
"""

from __future__ import annotations

import re
from contextvars import ContextVar

CURRENT_ATTEMPT: ContextVar[str | None] = ContextVar("jouleway_attempt", default=None)
"""Set while an attempt drives vLLM's ASGI app; tasks that the app starts inherit it."""

CALIBRATION_PREFIX = "jouleway-calibration-"
"""Engine requests of this name have no payer."""

_ID = re.compile(r"^(?:\d+_)?(?:chatcmpl|cmpl|resp|msg|embd|pool|classify|score|rerank|generate-tokens)-(.+)$")


def prompt_number(external_id: str) -> int | None:
    """Which prompt of a completion's list an external id names; None on other routes, which have one."""
    number = external_id.rpartition("-")[2]
    return int(number) if external_id.startswith("cmpl-") and number.isdecimal() else None


def attempt_of(external_id: str, open_attempts: object) -> str | None:
    """The attempt named in an engine request's external id, if it is one of ``open_attempts`` (a container)."""
    match = _ID.match(external_id)
    if match is None:
        return None
    name = match.group(1)
    while name:
        if name in open_attempts:  # type: ignore[operator]
            return name
        name, separator, _ = name.rpartition("-")
        if not separator:
            return None
    return None
