"""No core dump of a process that holds prompts: the kernel would write every one of them to a disk.

Called where a process begins: by ``workers.host`` (engines inherit it) and by the commands that serve.
"""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """For this process and all that it starts, for good."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
