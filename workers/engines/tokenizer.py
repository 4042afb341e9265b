"""The digest that names a tokenizer: two workers with the same digest count the same tokens.

Called by ``workers.engines.weights`` and ``workers.engines.vllm``. It must never load a tokenizer, only read its files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""What decides how text becomes tokens, the chat template included; those that are there, in this order."""


def tokenizer_digest(folder: Path) -> str:
    """``sha256:…`` over the names and bytes of the tokenizer's files; empty where the folder holds none."""
    whole = hashlib.sha256()
    found = False
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            found = True
            content = path.read_bytes()
            whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"sha256:{whole.hexdigest()}" if found else ""
