"""The least a streaming OpenAI server can do: uvicorn writes fixed chunks, one write each, and computes nothing.

Called by ``relay_vs_litellm`` as LiteLLM's backend and as the bare figure that no Python relay can beat. It must never
import Jouleway.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping

NUM_TOKENS = 32


def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    """One chat completion chunk as a server-sent event."""
    chunk = {
        "id": "chatcmpl-canned",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "canned",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


EVENTS = (
    event({"role": "assistant", "content": ""}),
    *(event({"content": f" word{index}"}) for index in range(NUM_TOKENS - 1)),
    event({"content": " end"}, "stop"),
    b"data: [DONE]\n\n",
)
"""34 writes: the role, 32 tokens, the end."""
WHOLE = json.dumps(
    {
        "id": "chatcmpl-canned",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "canned",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": " word" * 32}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 8, "completion_tokens": NUM_TOKENS, "total_tokens": 8 + NUM_TOKENS},
    }
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": "canned", "object": "model"}]}).encode()

Message = MutableMapping[str, object]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """A raw ASGI application."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))  # type: ignore[call-overload]
        if not message.get("more_body"):
            break
    if scope["path"] == "/v1/models":
        await answer(send, MODELS)
    elif b'"stream":true' in body.replace(b" ", b""):
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for data in EVENTS:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await answer(send, WHOLE)


async def answer(send: Callable[[Message], Awaitable[None]], body: bytes) -> None:
    """One whole JSON body."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> int:
    """Serve on loopback until stopped."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve canned chat completions of 32 tokens.")
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
