"""What a client may write: the allow-list of each route, its types and bounds; and the body that results.

Called by ``scheduler.api.intake``. The lists are vLLM's schemas without what only the operator may set; a test compares
them with the installed vLLM. It must never know a key, a worker or a queue, and no message of it repeats a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from scheduler.api.ask import Ask
from scheduler.api.json_shape import MAX_DEPTH, has_duplicate_keys, is_too_deep
from scheduler.api.schema_chat import CHAT
from scheduler.api.schema_completion import COMPLETION
from scheduler.api.schema_embedding import EMBEDDING
from scheduler.api.schema_fields import Route, field_error, invalid
from scheduler.api.schema_messages import MESSAGES
from scheduler.api.schema_responses import RESPONSES

TOOLS_EXPANSION = 4
"""A template may write a tool's schema with blanks and line breaks that the compact JSON does not have: at most three
more tokens for what is a byte or two there."""

ROUTES: Mapping[str, Route] = {route.path: route for route in (CHAT, COMPLETION, EMBEDDING, RESPONSES, MESSAGES)}
"""Everything that ``parse`` knows, by path."""

_decoders = {path: msgspec.json.Decoder(route.fields).decode for path, route in ROUTES.items()}
_encode = msgspec.json.Encoder().encode


def parse(path: str, body: bytes, *, max_output_tokens: int) -> Ask:
    """Checks everything that can be told without an engine. Raises: ApiError 400, naming the field."""
    if is_too_deep(body):
        raise invalid(f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="json_too_deep")
    route = ROUTES[path]
    fields = _decode(route, body)
    content = route.read(fields)
    limit = content.max_output_tokens
    if limit is not None and limit > max_output_tokens:
        name = content.limit_param
        raise invalid(f"{name}: at most {max_output_tokens} are served here.", param=name)
    is_stream = getattr(fields, "stream", None) is True
    if not is_stream and getattr(fields, "stream_options", None):
        raise invalid("stream_options: only allowed together with stream.", param="stream_options")
    tools = getattr(fields, "tools", None)
    tier = fields.service_tier or None
    for name in route.dropped:
        setattr(fields, name, UNSET)
    try:
        admitted = _encode(fields)
        tools_bytes = len(_encode(tools)) if tools else 0
    except (ValueError, OverflowError, RecursionError):
        raise invalid("The body holds a number or a character that JSON cannot carry.", code="invalid_json") from None
    return Ask(
        path=path,
        model=fields.model,
        is_stream=is_stream,
        service_tier=tier,
        num_sequences=content.num_sequences,
        max_output_tokens=limit,
        text_bytes=len(admitted) - content.media.num_bytes + (TOOLS_EXPANSION - 1) * tools_bytes,
        media_tokens=content.media.tokens,
        num_messages=content.num_messages,
        body=admitted,
        limit_name=None if route.limit_name is None else route.limit_name.encode(),
    )


def _decode(route: Route, body: bytes) -> Any:
    try:
        fields = _decoders[route.path](body)
    except msgspec.ValidationError as error:
        raise field_error(str(error), route.unsupported) from None
    except UnicodeDecodeError:
        raise invalid("The body is not valid UTF-8.", code="invalid_json") from None
    except (msgspec.DecodeError, RecursionError):
        # Its message names a place and a rule, but may quote; ours does not.
        raise invalid("The body is not valid JSON.", code="invalid_json") from None
    if has_duplicate_keys(body):
        raise invalid("The JSON holds the same key twice in one object.", code="duplicate_key")
    return fields
