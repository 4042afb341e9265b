"""An admitted body goes to the engine with the limit that the hold covers, under the route's own name."""

import dataclasses
import json

from scheduler.api.ask import TEMPLATE_TOKENS, TEMPLATE_TOKENS_PER_MESSAGE, Ask

ASK = Ask(
    path="/v1/x", model="m", is_stream=False, service_tier=None, num_sequences=1, max_output_tokens=9,
    text_bytes=100, media_tokens=5000, num_messages=3, body=b'{"model":"m"}', limit_name=b"max_tokens",
)  # fmt: skip


def test_the_limit_is_the_last_field() -> None:
    """The client's own was taken out when the body was read."""
    assert {"model": "m", "max_tokens": 7} == json.loads(ASK.render(7))
    named = dataclasses.replace(ASK, limit_name=b"max_output_tokens")
    assert {"model": "m", "max_output_tokens": 7} == json.loads(named.render(7))


def test_what_generates_nothing_has_no_limit() -> None:
    """An engine would refuse the field."""
    assert ASK.body == dataclasses.replace(ASK, limit_name=None).render(0)


def test_the_bound_expands_text_and_nothing_else() -> None:
    """A normaliser makes more characters of text, not of images."""
    fixed = 5000 + TEMPLATE_TOKENS + 3 * TEMPLATE_TOKENS_PER_MESSAGE
    assert (100 + fixed, 1100 + fixed) == (ASK.prompt_tokens_bound(1), ASK.prompt_tokens_bound(11))
