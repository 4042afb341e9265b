"""Every denial is in the audit log, by a row or by a count; a flood on one listener hides nothing on the other."""

import asyncio
import logging
from typing import Any

import pytest

from scheduler.accounting.changes import NOBODY, AccessDenied
from scheduler.accounting.denials import MAX_PER_MINUTE, MAX_PER_SOURCE
from scheduler.denial_log import DenialLog
from tests.directory_office import Ledger


class Bench:
    def __init__(self, **how: Any) -> None:
        self.ledger = Ledger()
        self.num_ids = 0
        self.log = DenialLog(self.ledger, commit=self.ledger.commit, new_id=self.new_id, **how)

    def new_id(self, prefix: str) -> str:
        self.num_ids += 1
        return f"{prefix}{self.num_ids}"

    async def deny(self, times: int, *, source: str = "10.0.0.1", listener: str = "server", at_us: int = 5) -> None:
        for number in range(times):
            deed = AccessDenied(
                listener=listener, source=source.format(number), route="/x", status=401, code="w", also_denied=0
            )
            await self.log.denied(deed, NOBODY, at_us=at_us)

    async def rows(self) -> list[tuple[str, int]]:
        """Listener and what each row counts beside itself, the oldest first."""
        rows = [row.fields for row in reversed(await self.ledger.page(before=None, limit=1_000))]
        assert {"access_denied"} >= {row["what"] for row in rows}
        assert all(row["id"].startswith("dny-") for row in rows)
        return [(row["values"]["listener"], row["values"]["also_denied"]) for row in rows]


async def test_a_flood_on_one_listener_hides_nothing_on_the_other() -> None:
    """Each has its own limits, of one source and of all."""
    bench = Bench()
    await bench.deny(MAX_PER_MINUTE + 5, source="10.0.0.{}")
    await bench.deny(MAX_PER_SOURCE + 5)
    await bench.deny(MAX_PER_SOURCE, listener="admin")
    assert [("server", 0)] * MAX_PER_MINUTE + [("admin", 0)] * MAX_PER_SOURCE == await bench.rows()
    await bench.log.stop()


async def test_the_next_row_of_the_listener_tells_the_count() -> None:
    """Then a stop has none to tell."""
    bench = Bench()
    await bench.deny(MAX_PER_SOURCE + 5)
    await bench.deny(1, listener="admin")
    await bench.deny(1, at_us=60_000_000)
    await bench.log.stop()
    assert [("admin", 0), ("server", 5)] == (await bench.rows())[-2:]


@pytest.mark.parametrize("way", ["timer", "stop"])
async def test_a_count_that_no_row_follows_is_written(way: str) -> None:
    """As the row of the last one that had none: rows and counts are all that came."""
    bench = Bench(count_every_s=0.001 if way == "timer" else 60)
    await bench.deny(MAX_PER_SOURCE + 5)
    await bench.deny(MAX_PER_SOURCE + 1, listener="admin")
    if way == "timer":
        assert bench.log._counting is not None
        await bench.log._counting
        assert "commit" == bench.ledger.events[-1]
    for _ in range(2):
        await bench.log.stop()
    rows = await bench.rows()
    assert [("server", 4), ("admin", 0)] == rows[-2:]
    assert 2 * MAX_PER_SOURCE + 6 == len(rows) + sum(count for _, count in rows)


async def test_a_count_that_cannot_be_written_is_written_later(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing else stops for it."""
    caplog.set_level(logging.ERROR)
    bench = Bench(count_every_s=0.001)
    await bench.deny(MAX_PER_SOURCE + 5)
    bench.ledger.append_error = OSError("closed")
    await asyncio.sleep(0.02)
    assert MAX_PER_SOURCE == len(await bench.rows())
    bench.ledger.append_error, bench.ledger.error = None, OSError("disk full")
    await bench.deny(1)
    await asyncio.sleep(0.02)
    assert ("server", 5) == (await bench.rows())[-1]
    assert 2 == caplog.text.count("counted denials are not in the audit log yet: OSError")
