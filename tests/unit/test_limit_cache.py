"""Limits that are kept: looked for once, under all that they depend on, and damage costs time only."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler import limit_cache
from scheduler.core.request import DEFAULT_SLO
from scheduler.limit_cache import Limit, cache_folder, key_of, limit_of
from scheduler.trace_files import TraceRow
from tests.fleet_words import OPTIONS, worker, workers

ROWS = [TraceRow(arrival_s=float(number), input_tokens=100, output_tokens=10) for number in range(700)]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a search."""
    found: list[int] = []

    def search(*arguments: object, **_: object) -> float:
        found.append(1)
        return 12.5

    monkeypatch.setattr(limit_cache.replay, "round_robin_limit_per_s", search)
    return found


def test_a_limit_is_looked_for_once(tmp_path: Path, searches: list[int]) -> None:
    """The second time it is known."""
    first, second = (limit_of(workers(2), ROWS, DEFAULT_SLO, folder=tmp_path / "new") for _ in range(2))
    assert [Limit(12.5, False), Limit(12.5, True)] == [first, second]
    assert 1 == len(searches)


@pytest.mark.parametrize("text", ["", "{", '{"requests_per_s": "many"}', '{"requests_per_s": -1}', "[]", "{}"])
def test_a_damaged_file_is_found_anew(tmp_path: Path, searches: list[int], text: str) -> None:
    path = tmp_path / f"{key_of(workers(2), ROWS, DEFAULT_SLO)}.json"
    path.write_text(text)
    assert Limit(12.5, False) == limit_of(workers(2), ROWS, DEFAULT_SLO, folder=tmp_path)
    assert Limit(12.5, True) == limit_of(workers(2), ROWS, DEFAULT_SLO, folder=tmp_path)


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path, searches: list[int]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert Limit(12.5, False) == limit_of(workers(1), ROWS, DEFAULT_SLO, folder=blocked)


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "jouleway" / "round-robin-limits" == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert tmp_path / "me" / ".cache" / "jouleway" / "round-robin-limits" == cache_folder()


CHANGES: dict[str, Callable[[], str]] = {
    "one engine more": lambda: key_of(workers(3), ROWS, DEFAULT_SLO),
    "another curve": lambda: key_of(
        [worker(0), worker(1, options=dataclasses.replace(OPTIONS, time_t0_s=0.02))], ROWS, DEFAULT_SLO
    ),
    "another objective": lambda: key_of(workers(2), ROWS, DEFAULT_SLO._replace(tpot_s=0.025)),
    "another row": lambda: key_of(workers(2), [dataclasses.replace(ROWS[0], input_tokens=101), *ROWS[1:]], DEFAULT_SLO),
    "another time": lambda: key_of(workers(2), [*ROWS[:500], *ROWS[501:]], DEFAULT_SLO),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_limit_depends_on_changes_its_key(what: str) -> None:
    assert key_of(workers(2), ROWS, DEFAULT_SLO) != CHANGES[what]()


def test_what_it_does_not_depend_on_does_not() -> None:
    """Rows after ten minutes, what lateness is worth, names of engines and their watts."""
    later = [*ROWS[:650], dataclasses.replace(ROWS[650], input_tokens=9)]
    dear = DEFAULT_SLO._replace(value_nano_per_s=1.0)
    others = [dataclasses.replace(each, worker_id=f"x{each.worker_id}", num_gpus=4) for each in workers(2)]
    assert key_of(workers(2), ROWS, DEFAULT_SLO) == key_of(others, later, dear)


def test_changed_code_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(workers(2), ROWS, DEFAULT_SLO)
    monkeypatch.setattr(limit_cache, "SIMULATING", limit_cache.SIMULATING[:-1])
    assert before != key_of(workers(2), ROWS, DEFAULT_SLO)
