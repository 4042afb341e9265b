"""What vLLM says about requests, without the requests: its HTTP side logs errors that quote prompts and answers.

Called by ``workers.engines.vllm`` when the app stands. It must never let an argument or a traceback of them pass.
"""

from __future__ import annotations

import logging

PARTS = ("vllm.entrypoints", "vllm.renderers", "vllm.tool_parsers", "vllm.reasoning", "vllm.parser", "vllm.multimodal")
"""Of vLLM; those that see texts. Its engine side knows tokens only, and says what ails a machine."""


class WithoutTexts(logging.Filter):
    """Leaves a record's own words, and of an error its type."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith(PARTS):
            error = record.exc_info[0] if record.exc_info else None
            record.msg = f"{record.msg} [{error.__name__}]" if error is not None else str(record.msg)
            record.args = ()
            record.exc_info = record.exc_text = record.stack_info = None
        return True


def keep_texts_out() -> None:
    """Puts the filter on whatever writes vLLM's log in this process; once is enough."""
    for name in ("vllm", None):
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(each, WithoutTexts) for each in handler.filters):
                handler.addFilter(WithoutTexts())
