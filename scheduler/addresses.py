"""What people write for a server's address, read.

Called by ``scheduler.commands`` and ``scheduler.bench``. It must never open anything.
"""

from __future__ import annotations

from urllib.parse import urlsplit


def root_of(url: str) -> str:
    """Without ``/v1``, which clients of OpenAI give, and slashes at its end. Raises: ValueError, fit to be shown."""
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(f"{url!r} is no http:// or https:// address")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
