"""Files of prices and a folder where they appear: what changes is taken, what is wrong is named and changes nothing."""

import os
from pathlib import Path

import pytest

from scheduler import series_files
from scheduler.series_files import SeriesFiles

HEADER = "start_utc,value,unit,zone,kind\n"


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    """As a feed should: under another name first."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(header + "".join(f"{line}\n" for line in lines))
    partial.replace(path)
    return path


def files_in(folder: Path, *named: Path) -> SeriesFiles:
    folder.mkdir(exist_ok=True)
    return SeriesFiles(named, folder, currency="EUR", zones=("hall-a", "hall-b"))


def values(files: SeriesFiles, zone: str = "hall-a") -> list[float]:
    return [row.value for row in files.rows_of(zone)]


def test_a_new_file_is_taken_and_a_look_without_news_is_none(tmp_path: Path) -> None:
    """Also a changed one, and one that is gone."""
    files = files_in(tmp_path / "feed")
    assert not files.look()
    path = write(tmp_path / "feed" / "a.csv", "2026-11-01,0.1,per kWh,,")
    assert ([0.1], True, False) == (values(files) if files.look() else None, bool(values(files)), files.look())
    write(path, "2026-11-01,0.25,per kWh,,")
    assert files.look()
    assert [0.25] == values(files)
    path.unlink()
    assert files.look()
    assert [] == values(files)


def test_files_count_in_the_order_of_their_names_after_those_that_are_configured(tmp_path: Path) -> None:
    """And what names its zone after what names none."""
    named = write(tmp_path / "base.csv", "2026-11-01,1,per kWh,,", "2026-11-01,4,per kWh,hall-a,")
    files = files_in(tmp_path / "feed", named)
    write(tmp_path / "feed" / "b.csv", "2026-11-01,3,per kWh,,")
    write(tmp_path / "feed" / "a.csv", "2026-11-01,2,per kWh,,", "2026-11-01,5,per kWh,hall-b,")
    files.look()
    assert ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0]) == (values(files), values(files, "hall-b"))


def test_a_bad_file_is_named_with_its_line_and_its_last_good_values_stay(tmp_path: Path) -> None:
    """The others are not touched; once it is mended nothing is said any more."""
    files = files_in(tmp_path / "feed")
    path = write(tmp_path / "feed" / "a.csv", "2026-11-01,0.1,per kWh,,")
    other = write(tmp_path / "feed" / "b.csv", "2026-11-01,0.2,per kWh,,")
    files.look()
    write(path, "2026-11-01,0.1,per kWh,,", "2026-11-01T01:00:00Z,much,per kWh,,")
    write(other, "2026-11-01,0.3,per kWh,,")
    assert files.look()
    assert [0.1, 0.3] == values(files)
    (problem,) = files.problems
    assert problem.startswith(f"{path}: line 3: value")
    assert problem.endswith("its last good lines stay in force")
    assert not files.look()
    write(path, "2026-11-01,0.4,per kWh,,")
    assert files.look()
    assert ([0.4, 0.3], []) == (values(files), files.problems)


def test_half_a_file_is_not_taken(tmp_path: Path) -> None:
    """0.12 would be read as 0.1; it is read again when it is whole."""
    files = files_in(tmp_path / "feed")
    path = tmp_path / "feed" / "a.csv"
    path.write_text(HEADER + "2026-11-01,0.1")
    assert not files.look()
    assert "the last line has no end" in files.problems[0]
    with path.open("a") as file:
        file.write("2,per kWh,,\n")
    assert files.look()
    assert [0.12] == values(files)


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it counts before."""
    files = files_in(tmp_path / "feed")
    path = write(tmp_path / "feed" / "a.csv", "2026-11-01,0.1,per kWh,,")
    fstat, calls = os.fstat, []

    def changing(number: int) -> os.stat_result:
        calls.append(number)
        if len(calls) == 2:
            with path.open("a") as file:
                file.write("2026-11-02,0.2,per kWh,,\n")
        return fstat(number)

    monkeypatch.setattr(series_files.os, "fstat", changing)
    assert (False, []) == (files.look(), values(files))
    assert "changed while it was read" in files.problems[0]
    assert (True, [0.1, 0.2]) == (files.look(), values(files))


@pytest.mark.parametrize("name", [".a.csv", "a.csv.tmp", "a.json"])
def test_other_names_are_not_looked_at(tmp_path: Path, name: str) -> None:
    """So a file can be written and then renamed."""
    files = files_in(tmp_path / "feed")
    (tmp_path / "feed" / name).write_text("no series")
    assert (False, []) == (files.look(), files.problems)


def test_a_named_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """And taken when it comes; gone again, its values stay."""
    path = tmp_path / "a.csv"
    files = SeriesFiles((path,), None, currency="EUR", zones=("hall-a",))
    assert not files.look()
    assert [f"{path}: there is no such file; nothing of it is used"] == files.problems
    write(path, "2026-11-01,0.1,per kWh,,")
    assert files.look()
    path.unlink()
    assert not files.look()
    assert ([0.1], [f"{path}: there is no such file; its last good lines stay in force"]) == (
        values(files),
        files.problems,
    )


def test_a_folder_that_goes_away_takes_nothing_with_it(tmp_path: Path) -> None:
    """A share that is not mounted for a moment is no price of 0."""
    files = files_in(tmp_path / "feed")
    write(tmp_path / "feed" / "a.csv", "2026-11-01,0.1,per kWh,,")
    files.look()
    (tmp_path / "feed").rename(tmp_path / "away")
    assert not files.look()
    assert [0.1] == values(files)
    assert "cannot be listed" in files.problems[0]
    (tmp_path / "away").rename(tmp_path / "feed")
    files.look()
    assert ([0.1], []) == (values(files), files.problems)


def test_what_cannot_stand_beside_other_files_is_refused(tmp_path: Path) -> None:
    """Two signals in one zone, or a zone that nobody has."""
    files = files_in(tmp_path / "feed")
    write(tmp_path / "feed" / "a.csv", "2026-11-01,381,g/kWh,hall-a,average")
    write(tmp_path / "feed" / "b.csv", "2026-11-01,800,g/kWh,,marginal")
    write(tmp_path / "feed" / "c.csv", "2026-11-01,0.1,per kWh,hall-c,")
    write(tmp_path / "feed" / "d.csv", "2026-11-01,500,g/kWh,hall-b,marginal")
    files.look()
    assert ([381.0], [500.0]) == (values(files), values(files, "hall-b"))
    assert [
        "average and marginal carbon of zone hall-a cannot be mixed",
        "line 2: zone: there is no zone 'hall-c' (hall-a, hall-b)",
    ] == [problem.split(": ", 1)[1].split(":")[0] if "mixed" in problem else problem.split(": ", 1)[1].split(";")[0]
          for problem in files.problems]  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "words"),
    [("MAX_FILE_BYTES", "more than 60 bytes"), ("MAX_ROWS", "more than 60"), ("MAX_FILES", "the last 60 by name")],
)
def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, words: str) -> None:
    """Each file, all lines and the number of files."""
    monkeypatch.setattr(series_files, bound, 60)
    files = files_in(tmp_path / "feed")
    for number in range(62):
        write(tmp_path / "feed" / f"{number:03}.csv", f"2026-11-01,{number:>12},per kWh,,")
    files.look()
    assert any(words in problem for problem in files.problems)
    assert len(values(files)) <= 60


def test_what_is_no_file_is_no_series(tmp_path: Path) -> None:
    """A pipe would keep the reader for ever."""
    files = files_in(tmp_path / "feed")
    (tmp_path / "feed" / "a.csv").mkdir()
    assert not files.look()
    assert 1 == len(files.problems)
