"""Which prompts begin alike: chained keyed hashes over equal parts of a body's prompt, never its text.

Called by ``scheduler.api.intake``. It must never keep a text, and equal prompts of two tenants must not look alike.

What an engine puts first comes first here: tools, documents, a system text, then the conversation. Parts are cut from
the JSON as it is sent to the engine, so that equal fields are equal bytes. A part holds 1 KiB; a prompt of more than
256 such parts is cut into parts twice, four times… as long, and then matches only prompts of its own magnitude.
"""

from __future__ import annotations

import hashlib

import msgspec

PART_BYTES = 1024
MAX_PARTS = 256
HASH_BYTES = 8


class _Prompt(msgspec.Struct):
    """The fields that reach the model, in the order in which templates write them; each as it stands in the JSON."""

    tools: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_FIELDS = _Prompt.__struct_fields__
_decode = msgspec.json.Decoder(_Prompt).decode


def prefix_blocks(body: bytes, *, salt: bytes) -> tuple[int, ...]:
    """Hashes of the parts of the prompt in ``body`` (admitted JSON), each over everything before it as well.

    ``salt``: of the tenant, at most 64 bytes. The last part may be shorter; a body without a prompt has none.
    """
    fields = _decode(body)
    text = b"".join([getattr(fields, name) for name in _FIELDS])
    size = part_bytes(len(text))
    blake2b = hashlib.blake2b
    blocks: list[int] = []
    digest = b""
    view = memoryview(text)
    for start in range(0, len(text), size):
        part = blake2b(digest, digest_size=HASH_BYTES, key=salt)
        part.update(view[start : start + size])
        digest = part.digest()
        blocks.append(int.from_bytes(digest, "little"))
    return tuple(blocks)


def part_bytes(num_bytes: int) -> int:
    """How long the parts of so long a prompt are: the least power of two that keeps their number within its bound."""
    size = PART_BYTES
    while num_bytes > size * MAX_PARTS:
        size *= 2
    return size
