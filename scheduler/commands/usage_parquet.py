"""Columns of usage as a Parquet file: amounts as decimal(38, 9), moments in UTC, nothing as a float but ratios.

Called by ``scheduler.commands.usage``; the only file that imports pyarrow, when it is used. It must never know what a
column means.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from scheduler.accounting.usage import UsageRow
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.usage_view import Column, Kind

DECIMAL_DIGITS, DECIMAL_PLACES = 38, 9


def write_parquet(path: Path, rows: Sequence[UsageRow], shown: Sequence[Column]) -> None:
    """Raises: CommandError where pyarrow is not installed, OSError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CommandError(
            "Parquet needs pyarrow, which is not installed",
            code=ExitCode.USAGE,
            remedy="pip install 'jouleway[exports]', or take --format csv",
        ) from None
    types = {
        Kind.TIME: pyarrow.timestamp("us", tz="UTC"),
        Kind.TEXT: pyarrow.string(),
        Kind.COUNT: pyarrow.int64(),
        Kind.AMOUNT: pyarrow.decimal128(DECIMAL_DIGITS, DECIMAL_PLACES),
        Kind.RATIO: pyarrow.float64(),
    }
    arrays = [
        pyarrow.array([_typed(column.kind, column.cell(row)) for row in rows], type=types[column.kind])
        for column in shown
    ]
    schema = pyarrow.schema([(column.name, types[column.kind]) for column in shown])
    parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), str(path))


def _typed(kind: Kind, cell: int | str | None) -> int | str | Decimal | float | None:
    if cell is None:
        return None
    if kind is Kind.AMOUNT:
        return Decimal(cell)
    return float(cell) if kind is Kind.RATIO else cell
