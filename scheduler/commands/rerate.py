"""`jouleway rerate`: what a ledger's past would have cost by the prices of another configuration. Nothing is changed.

Called by ``scheduler.cli``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scheduler.accounting.rerate import Rerated, past_charges, rerate
from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.instants import period_us
from scheduler.commands.ledger import reading, rows_of
from scheduler.commands.output import print_json, print_table
from scheduler.policies import prices_of

KINDS = frozenset({"charge", "energy"})


def run(source: str, *, config: Path, from_text: str | None, to_text: str | None, as_json: bool) -> ExitCode:
    """``config``: whose prices are tried."""
    book = prices_of(configuration.load(config))
    try:
        with reading(source) as reader:
            from_us, to_us = period_us(from_text, to_text)
            charges = past_charges(rows_of(reader, KINDS), from_us=from_us, to_us=to_us)
            found = rerate(charges, book)
    except ValueError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from None
    if as_json:
        print_json({"currency": book.currency, "rows": [dataclasses.asdict(each) for each in found]})
    else:
        _show(found, book.currency)
    return ExitCode.OK


def _show(found: list[Rerated], currency: str) -> None:
    rows = [
        (
            each.tenant,
            each.model,
            f"{each.num_charges:,}",
            _money(each.was_nano),
            _money(each.would_be_nano),
            _money(each.would_be_nano - each.was_nano),
            f"{each.num_unpriced:,}",
        )
        for each in found
    ]
    was, would_be = sum(each.was_nano for each in found), sum(each.would_be_nano for each in found)
    rows.append(("all", "", "", _money(was), _money(would_be), _money(would_be - was), ""))
    columns = ("tenant", "model", "charges", "was", "would be", "difference", "without a price")
    print_table(f"what it would have cost, {currency}", columns, rows, numeric_from=2)


def _money(nano: int) -> str:
    return f"{nano / 1e9:,.6f}"
