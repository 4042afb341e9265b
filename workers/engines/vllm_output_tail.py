"""What an engine prints, passed on and its last lines kept, so that a failed start can show them.

Called by ``workers.engines.vllm``. While it is open, file descriptors 1 and 2 of this process lead into a pipe;
children started meanwhile keep the pipe for life. It must never lose a line, and never keep more than the last few.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections import deque

MAX_LINES = 30
MAX_LINE_CHARACTERS = 500
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class OutputTail:
    """``redirect`` before a child starts, ``restore`` afterwards; what the child prints then still passes through."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._saved: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """Oldest first, without colours and empty lines."""
        return tuple(self._lines)

    def redirect(self) -> None:
        """From here on both streams pass through the tail."""
        read_end, write_end = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        self._saved = (os.dup(1), os.dup(2))
        onward = os.dup(2)
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        os.close(write_end)
        self._thread = threading.Thread(
            target=self._pass_on, args=(read_end, onward), name="engine-output", daemon=True
        )
        self._thread.start()

    def restore(self) -> None:
        """This process prints as before; its children go on printing through the tail."""
        if self._saved is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        saved, self._saved = self._saved, None
        for number, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)

    def join(self, timeout_s: float) -> None:
        """Waits for what dead children had printed."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _pass_on(self, read_end: int, onward: int) -> None:
        """Ends when the last writer is gone."""
        rest = b""
        try:
            while chunk := os.read(read_end, 65536):
                with contextlib.suppress(OSError):
                    os.write(onward, chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[-4 * MAX_LINE_CHARACTERS :]
                self._keep(lines)
            self._keep([rest])
        finally:
            os.close(read_end)
            os.close(onward)

    def _keep(self, lines: list[bytes]) -> None:
        for line in lines:
            text = _COLOUR.sub("", line.decode("utf-8", "replace")).strip()
            if text:
                self._lines.append(text[:MAX_LINE_CHARACTERS])
