"""One commit for everybody: answers end, and workers may forget, only once what they rest on is durable.

Called by ``scheduler.dispatcher``. It must never know a request's way or what was booked.
"""

from __future__ import annotations

import asyncio

from scheduler.accounting.settlement import Settlement
from scheduler.connection import Connection
from scheduler.streams import End, Stream
from workers.types import Ack


class Committer:
    """Collects what waits for the next commit; while one is under way the next one gathers (group commit)."""

    def __init__(self, settlement: Settlement) -> None:
        self._settlement = settlement
        self._ends: list[tuple[Stream, End]] = []
        self._connections: set[Connection] = set()
        self._has_pending = asyncio.Event()

    def add_end(self, stream: Stream, end: End) -> None:
        """The answer ends after the commit that holds its charge."""
        self._ends.append((stream, end))
        self._has_pending.set()

    def add_records(self, connection: Connection) -> None:
        """Records of this worker were booked: it may forget them after the commit."""
        self._connections.add(connection)
        self._has_pending.set()

    async def run(self) -> None:
        """Commits for ever; cancelled by its owner."""
        while True:
            await self._has_pending.wait()
            await self.commit()

    async def commit(self) -> None:
        """Everything booked until now becomes durable; then answers end and acknowledgements leave."""
        self._has_pending.clear()
        ends, self._ends = self._ends, []
        connections, self._connections = self._connections, set()
        numbers = {each: self._settlement.watermark(each.worker_id) or 0 for each in connections}
        await self._settlement.commit()
        for stream, end in ends:
            stream.put_end(end)
        for connection, number in numbers.items():
            if number > connection.acked_number:
                connection.acked_number = number
                connection.send(Ack(number=number))
