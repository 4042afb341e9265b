"""Recomputes from a trace alone whether the core kept its promises; every breach is a line.

Called by tests. It must never read the core's state: its books are kept from what was said and decided, and each judge
reads one promise off them.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.simulation.checker_books import Books, Judge
from scheduler.simulation.checker_budgets import Budgets
from scheduler.simulation.checker_lives import Lives
from scheduler.simulation.checker_order import Order
from scheduler.simulation.checker_places import Places
from scheduler.simulation.checker_shares import Shares
from scheduler.simulation.trace import Event, Stopped

JUDGES = (Lives, Places, Order, Shares, Budgets)


def check(trace: Sequence[Event]) -> list[str]:
    """Every breach, in order; empty if there is none. The trace ends with ``Stopped``."""
    books = Books(trace)
    judges: list[Judge] = [judge(books) for judge in JUDGES]
    for event in trace:
        books.expect(event.at_s >= books.now_s, "time went back")
        books.now_s = event.at_s
        for judge in judges:
            judge.see(event)
        books.take(event)
    books.expect(bool(trace) and isinstance(trace[-1], Stopped), "the trace has no end")
    return books.breaches
