"""Where the configuration files that we ship lie: in a checkout, else where a wheel put them.

Called by the commands and by ``scheduler.catalogue``. It must never read a file.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED_CONFIGS = Path("share") / "jouleway" / "configs"
"""Where a wheel puts ``configs/*.yaml``, below the environment's data folder."""


def shipped_config(name: str) -> Path:
    """The file of that name. Raises: FileNotFoundError, whose words are where a checkout has it."""
    candidates = (ROOT / "configs" / name, Path(sysconfig.get_path("data")) / INSTALLED_CONFIGS / name)
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(str(candidates[0]))
