"""Which denied accesses get a row of their own: so many a minute of each source and of all; the others are counted.

Owned by ``scheduler.denial_log``, one for each listener. It must never know a key or a request.
"""

from __future__ import annotations

import ipaddress

MINUTE_US = 60_000_000
MAX_PER_SOURCE = 10
"""Rows a minute."""
MAX_PER_MINUTE = 120
"""Rows of all sources."""
NETWORK_BITS = 64
"""Of an IPv6 address: whoever has one has all that begin so."""


class Denials:
    """Minutes are those of the wall clock; one that is set back begins a new one."""

    def __init__(self) -> None:
        self._minute: int | None = None
        self._rows: dict[str, int] = {}
        """Rows of this minute by source, which are no more than rows."""
        self._num_rows = 0
        self.num_skipped = 0
        """Since the last one that was not; whoever writes it down elsewhere sets it back."""

    def admit(self, source: str, at_us: int) -> int | None:
        """How many were skipped since the last one that was not; None: this one is skipped."""
        minute = at_us // MINUTE_US
        if minute != self._minute:
            self._minute, self._num_rows = minute, 0
            self._rows.clear()
        source = network_of(source)
        num_rows = self._rows.get(source, 0)
        if num_rows >= MAX_PER_SOURCE or self._num_rows >= MAX_PER_MINUTE:
            self.num_skipped += 1
            return None
        self._rows[source] = num_rows + 1
        self._num_rows += 1
        num_skipped, self.num_skipped = self.num_skipped, 0
        return num_skipped


def network_of(source: str) -> str:
    """An address as it is counted; what is none stays as it is."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv4Address):
        return source
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), NETWORK_BITS), strict=False))
