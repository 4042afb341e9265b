"""Where this program keeps what can be made again: below XDG_CACHE_HOME, else below ~/.cache.

Called by ``scheduler.config``, ``scheduler.commands.doctor`` and ``workers.engines.weights``. It must never create it.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, there or not."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jouleway"


def model_folder(name: str) -> Path:
    """Where the weights of a built-in model are."""
    return cache_folder() / "models" / name
