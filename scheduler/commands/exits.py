"""The exit codes of every command, and the error that carries one.

Called by ``scheduler.cli`` and by each command. It must never import anything heavy: ``--help`` loads it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a shell sees; the numbers are documented and stay."""

    OK = 0
    FAILURE = 1
    """Something broke, or a check found a fault."""
    USAGE = 2
    """Wrong arguments or a wrong configuration; nothing was started."""
    NOT_FOUND = 3
    """A file, worker or request that was named does not exist."""
    POLICY = 4
    """Refused: no or wrong key, data class, zone."""
    BUDGET = 5
    """Refused: a budget or quota is used up."""
    UNAVAILABLE = 6
    """Nobody answers, or not in time: try again later."""
    VERIFICATION = 7
    """Figures that must add up do not."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXIT_CODES_HELP = (
    "Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 not found, 4 denied by policy, 5 budget used up, "
    "6 unavailable, 7 verification failed, 130 interrupted."
)


class CommandError(Exception):
    """A command ends here: what went wrong, what to do about it, and the exit code."""

    def __init__(self, message: str, *, code: ExitCode = ExitCode.FAILURE, remedy: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy
