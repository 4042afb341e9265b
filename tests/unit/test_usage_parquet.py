"""Usage as Parquet: exact decimals and moments, and a clear word where the library is missing."""

import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scheduler.accounting.usage import UsageRow
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.usage_parquet import write_parquet
from scheduler.commands.usage_view import columns

ROW = UsageRow(
    bucket_us=1_782_864_000_000_000, tenant="alpha", requests=3, output_tokens=2, energy_mj=1, cost_nano=10**28 + 1,
    currency="EUR",
)  # fmt: skip
SHOWN = columns(("day", "tenant"), has_value=True)


class StandIn:
    """As much of pyarrow as is asked; keeps what would be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.schema: dict[str, str] = {}
        self.columns: dict[str, list[Any]] = {}
        library, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
        for name in ("string", "int64", "float64"):
            setattr(library, name, lambda name=name: name)
        library.timestamp = lambda unit, tz: f"timestamp[{unit}, {tz}]"  # type: ignore[attr-defined]
        library.decimal128 = lambda digits, places: f"decimal({digits}, {places})"  # type: ignore[attr-defined]
        library.array = lambda values, type: (values, type)  # type: ignore[attr-defined]
        library.schema = dict  # type: ignore[attr-defined]
        library.Table = self  # type: ignore[attr-defined]
        library.parquet = parquet  # type: ignore[attr-defined]
        parquet.write_table = lambda table, path: Path(path).write_text("written")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyarrow", library)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)

    def from_arrays(self, arrays: list[tuple[list[Any], str]], schema: dict[str, str]) -> None:
        assert [kind for _, kind in arrays] == list(schema.values())
        self.schema = schema
        self.columns = dict(zip(schema, (values for values, _ in arrays), strict=True))


def test_types_and_values_of_the_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the library is given, without the library."""
    written = StandIn(monkeypatch)
    write_parquet(tmp_path / "u.parquet", [ROW], SHOWN)
    assert {"timestamp[us, UTC]", "string", "int64", "decimal(38, 9)", "float64"} == set(written.schema.values())
    assert ("decimal(38, 9)", [Decimal("10000000000000000000.000000001")]) == (
        written.schema["cost"], written.columns["cost"],
    )  # fmt: skip
    assert ([ROW.bucket_us], ["alpha"], [3], [0.0005], [None]) == tuple(
        written.columns[name]
        for name in ("start", "tenant", "requests", "joules_per_output_token", "cost_per_accepted")
    )
    assert (tmp_path / "u.parquet").exists()


def test_without_the_library_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CommandError) as caught:
        write_parquet(tmp_path / "u.parquet", [ROW], SHOWN)
    assert (ExitCode.USAGE, True) == (caught.value.code, "jouleway[exports]" in caught.value.remedy)
    assert [] == list(tmp_path.iterdir())


def test_a_file_is_read_back_as_it_was(tmp_path: Path) -> None:
    """By the library itself."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra 'exports' is not installed; `make setup` does")
    path = tmp_path / "u.parquet"
    write_parquet(path, [ROW, UsageRow(bucket_us=0)], SHOWN)
    table = parquet.read_table(path)
    first, second = table.to_pylist()
    assert "decimal128(38, 9)" == str(table.schema.field("cost").type)
    assert (Decimal("10000000000000000000.000000001"), Decimal("0.001"), "2026-07-01T00:00:00+00:00") == (
        first["cost"], first["joules"], first["start"].isoformat(),
    )  # fmt: skip
    assert (None, 0) == (second["joules_per_output_token"], second["requests"])
