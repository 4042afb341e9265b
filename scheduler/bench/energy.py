"""Reads joules around a run: from the server's metrics, from its answers, or from a meter of this machine.

Called by ``scheduler.bench.session``. It must never know how requests were paced. Where nothing gives joules there is
no figure, never a guess.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.bench.client import Exchange, TargetError
from scheduler.bench.report import Energy, Slo, energy
from workers.types import Grade

if TYPE_CHECKING:
    import aiohttp

    from workers.windows import MeterReading

METER_METRIC = "jouleway_meter_joules_total"
ACCOUNT_METRIC = "jouleway_energy_joules_total"
IN_FLIGHT_METRIC = "jouleway_in_flight_joules"
MAX_METRICS_BYTES = 16 << 20
POLL_S = 0.5
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The server's energy accounts at one moment, in joules since it started."""

    at_s: float
    accounts: Mapping[str, float]
    meter_by_worker: Mapping[str, float]
    grade: str


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each sample in a Prometheus text exposition; broken lines are skipped."""
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found is None:
            continue
        name, labels, value = found.groups()
        try:
            yield name, dict(_LABEL.findall(labels or "")), float(value)
        except ValueError:
            continue


def reading(text: str, *, at_s: float) -> Reading | None:
    """The energy accounts in a metrics page, summed over workers; None where the page has no meter."""
    accounts: dict[str, float] = {}
    by_worker: dict[str, float] = {}
    grades: set[str] = set()
    for name, labels, value in samples(text):
        if name == METER_METRIC:
            accounts["meter"] = accounts.get("meter", 0.0) + value
            worker = labels.get("worker", "")
            by_worker[worker] = by_worker.get(worker, 0.0) + value
        elif name == ACCOUNT_METRIC and "account" in labels:
            account = labels["account"]
            accounts[account] = accounts.get(account, 0.0) + value
        elif name == IN_FLIGHT_METRIC:
            accounts["in_flight"] = accounts.get("in_flight", 0.0) + value
        else:
            continue
        if labels.get("grade") and value:
            grades.add(labels["grade"])
    if "meter" not in accounts:
        return None
    return Reading(at_s=at_s, accounts=accounts, meter_by_worker=by_worker, grade=max(grades, default=""))


async def scrape(session: aiohttp.ClientSession, url: str, admin_key: str | None) -> Reading:
    """One reading of the server's metrics. Raises: TargetError when the page cannot be read or has no meter."""
    import aiohttp

    headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
    try:
        async with session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as response:
            text = (await response.content.read(MAX_METRICS_BYTES)).decode("utf-8", "replace")
            if response.status != 200:
                remedy = " (set --admin-key or JOULEWAY_ADMIN_KEY)" if response.status in (401, 403) else ""
                raise TargetError(f"GET {url} answered {response.status}{remedy}")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TargetError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    # In a thread: the page of a large fleet takes long enough to read to look like a slow server.
    found = await asyncio.to_thread(reading, text, at_s=time.monotonic())
    if found is None:
        raise TargetError(f"{url} has no {METER_METRIC}: is it the admin listener of a Jouleway control plane?")
    return found


async def settled(session: aiohttp.ClientSession, url: str, admin_key: str | None, *, settle_s: float) -> Reading:
    """A reading after every worker closed the window in which the last request ran, or after ``settle_s``.

    A window ends when the worker's meter account moves; the second move after the run covers all of it.
    """
    deadline_s = time.monotonic() + settle_s
    last = await scrape(session, url, admin_key)
    moves = dict.fromkeys(last.meter_by_worker, 0)
    while time.monotonic() < deadline_s:
        await asyncio.sleep(POLL_S)
        now = await scrape(session, url, admin_key)
        for worker, joules in now.meter_by_worker.items():
            moves[worker] = moves.get(worker, 0) + (joules != last.meter_by_worker.get(worker))
        last = now
        if all(count >= 2 for count in moves.values()) and abs(now.accounts.get("in_flight", 0.0)) < 1e-3:
            break
    return last


def from_metrics(before: Reading, after: Reading, exchanges: Sequence[Exchange], slo: Slo | None) -> Energy:
    """Energy between two readings that enclose all of ``exchanges`` (warm-up included, and so are its tokens)."""
    names = {*before.accounts, *after.accounts}
    accounts = {name: after.accounts.get(name, 0.0) - before.accounts.get(name, 0.0) for name in names}
    notes = []
    if abs(after.accounts.get("in_flight", 0.0)) >= 1e-3:
        notes.append(f"{after.accounts['in_flight']:.3f} J were still in flight at the last reading")
    tokens, good_tokens = token_sums(exchanges, slo)
    return energy(
        source="server metrics",
        grade=after.grade,
        span_s=after.at_s - before.at_s,
        output_tokens=tokens,
        good_output_tokens=good_tokens,
        accounts=accounts,
        notes=notes,
    )


def from_answers(measured: Sequence[Exchange], slo: Slo | None, *, span_s: float) -> Energy | None:
    """Energy as the server stated it at the end of each answer: provisional, without idle. None without any."""
    stated = [seen for seen in measured if seen.energy_joules is not None]
    if not stated:
        return None
    tokens, good_tokens = token_sums(stated, slo)
    missing = len(measured) - len(stated)
    return energy(
        source="answers (provisional)",
        grade="",
        span_s=span_s,
        output_tokens=tokens,
        good_output_tokens=good_tokens,
        accounts={"requests": sum(seen.energy_joules or 0.0 for seen in stated)},
        notes=[f"{missing} measured requests state no joules and are left out"] if missing else [],
    )


def from_meter(
    meter: str, before: MeterReading, after: MeterReading, exchanges: Sequence[Exchange], slo: Slo | None
) -> Energy:
    """Energy of a meter of this machine between two readings that enclose all of ``exchanges``; includes idle."""
    tokens, good_tokens = token_sums(exchanges, slo)
    faults = [f"meter: {reading.fault}" for reading in (before, after) if reading.fault]
    return energy(
        source=f"local meter {meter}",
        grade=Grade.worst(before.grade, after.grade).value,
        span_s=after.at_s - before.at_s,
        output_tokens=tokens,
        good_output_tokens=good_tokens,
        accounts={"meter": (after.counter_mj - before.counter_mj) / 1000},
        notes=["everything that this meter sees is counted, other processes included", *faults],
    )


def token_sums(exchanges: Sequence[Exchange], slo: Slo | None) -> tuple[int, int]:
    """Output tokens of all, and of those that kept the SLO (without an SLO: of those that completed)."""
    keep = slo or Slo()
    good = sum(seen.output_tokens for seen in exchanges if keep.is_kept(seen))
    return sum(seen.output_tokens for seen in exchanges), good
