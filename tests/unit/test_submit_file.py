"""A jobs file is checked whole before anything is asked; every fault names its line, and no line's text is repeated."""

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import submit_file
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.submit_file import Job, check, jobs, short_digest

SECRET = "a text that nobody may read"


def line(custom_id: str = "a", *, model: str = "m", url: str = "/v1/chat/completions", **body: Any) -> bytes:
    fields = {"model": model, "messages": [{"role": "user", "content": SECRET}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": fields}).encode() + b"\n"


def written(folder: Path, *lines: bytes) -> Path:
    path = folder / "jobs.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def refusal(path: Path, **options: Any) -> CommandError:
    with pytest.raises(CommandError) as caught:
        check(path, **options)
    assert SECRET not in str(caught.value)
    return caught.value


def test_a_good_file_is_counted(tmp_path: Path) -> None:
    """Blank lines and a missing last line break are no faults."""
    path = written(
        tmp_path, line("a"), b"\n", line("b", url="/v1/embeddings"), b"  \n", line("c", service_tier="priority")[:-1]
    )
    checked = check(path)
    assert (3, {"m": 3}, path.stat().st_size) == (checked.num_jobs, dict(checked.models), checked.num_bytes)
    assert {"/v1/chat/completions": 2, "/v1/embeddings": 1} == dict(checked.routes)
    found = list(jobs(checked))
    assert [("a", 1, False), ("b", 3, False), ("c", 5, True)] == [(j.custom_id, j.number, j.has_tier) for j in found]
    assert SECRET == json.loads(found[0].body)["messages"][0]["content"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"custom_id": "x\xff"}\n', "byte 17 is not UTF-8"),
        (b"\xef\xbb\xbf" + line("x"), "byte order mark"),
        (b"{\n", "not JSON"),
        (b"[1]\n", "Expected `object`"),
        (b"null\n", "Expected `object`"),
        (b'{"custom_id": "x", "method": "POST", "url": "/v1/chat/completions"}\n', "body"),
        (line(""), "custom_id"),
        (line("x" * 257), "custom_id"),
        (line("x").replace(b"POST", b"GET"), "method: only POST"),
        (line("x", url="/v1/files"), "url '/v1/files' is none of"),
        (line("x", url="http://elsewhere/v1/chat/completions"), "is none of"),
        (line("x", stream=True), "body.stream"),
        (line("x", model=""), "body"),
        (line("x").replace(b'"model": "m", ', b""), "model"),
        (line("x").replace(b"custom_id", b"customid"), "customid"),
        (b'{"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": "text"}\n', "body"),
        (b"[" * 100_000 + b"\n", "line 2"),
    ],
)
def test_every_fault_names_its_line(tmp_path: Path, bad: bytes, words: str) -> None:
    """Exit code 2, the line's number, what is wrong; the good lines around it are no excuse."""
    error = refusal(written(tmp_path, line("a"), bad, line("b")))
    assert ExitCode.USAGE == error.code
    assert "line 2: " in str(error)
    assert words in str(error)
    assert "1 of its lines" in str(error)


def test_two_lines_of_one_custom_id_are_named(tmp_path: Path) -> None:
    """Both of them."""
    error = refusal(written(tmp_path, line("a"), line("b"), line("a")))
    assert "line 3: custom_id 'a' is that of line 1 too" in str(error)


def test_many_faults_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    """And a file of nothing but duplicates takes no longer than another."""
    started_s = time.perf_counter()
    error = refusal(written(tmp_path, *[line("same")] * 20_000))
    assert "19,999 of its lines cannot be asked" in str(error)
    assert "… and 19,989 more" in str(error)
    assert 10 == str(error).count("custom_id 'same'")
    assert time.perf_counter() - started_s < 5.0


def test_mixed_models_need_a_word(tmp_path: Path) -> None:
    """An answer of the wrong model is found late; whoever means it says so."""
    path = written(tmp_path, line("a"), line("b", model="n"))
    error = refusal(path)
    assert "line 2: model 'n', but 'm' before: give --allow-mixed-models" in str(error)
    assert {"m": 1, "n": 1} == dict(check(path, allow_mixed_models=True).models)


def test_the_number_of_models_is_bounded(tmp_path: Path) -> None:
    """A column that was taken for the model shows at once."""
    path = written(tmp_path, *[line(str(n), model=str(n)) for n in range(submit_file.MAX_MODELS + 1)])
    assert "more than 64 models" in str(refusal(path, allow_mixed_models=True))


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    """A directory, a pipe, nothing there, nothing in it, nothing to be read."""
    assert "this is a directory" in str(refusal(tmp_path))
    missing = refusal(tmp_path / "none.jsonl")
    assert ExitCode.NOT_FOUND == missing.code
    assert "holds no line" in str(refusal(written(tmp_path, b"\n\n")))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    keep = os.open(pipe, os.O_RDWR)  # so that opening it to read does not wait for a writer
    try:
        assert "not a regular file" in str(refusal(pipe))
    finally:
        os.close(keep)


def test_an_unreadable_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system's reason."""
    path = written(tmp_path, line())

    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    error = refusal(path)
    assert (ExitCode.USAGE, True) == (error.code, "Permission denied" in str(error))


def test_limits_of_lines_and_bytes_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without line breaks is not read on, one with too many lines not either."""
    monkeypatch.setattr(submit_file, "MAX_LINE_BYTES", 1000)
    path = written(tmp_path, line("a"), b'"' + b"x" * 5000)
    assert "line 2: longer than 1,000 bytes" in str(refusal(path))
    monkeypatch.setattr(submit_file, "MAX_LINES", 2)
    assert "more than 2 lines" in str(refusal(written(tmp_path, line("a"), line("b"), line("c"))))


def test_200_megabytes_are_checked_without_being_held(tmp_path: Path) -> None:
    """Memory stays below a twentieth of that; a file of one line of 200 MB is refused."""
    path = tmp_path / "jobs.jsonl"
    padding = "x" * 100_000
    with path.open("wb") as file:
        for number in range(2_000):
            file.write(line(str(number), metadata=padding))
    assert path.stat().st_size > 200_000_000
    tracemalloc.start()
    try:
        checked = check(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2_000 == checked.num_jobs
    assert peak_bytes < 10_000_000, peak_bytes
    with path.open("wb") as file:
        file.truncate(200_000_000)
    assert "line 1: longer than" in str(refusal(path))


@pytest.mark.parametrize("change", [line("c"), b"{\n", b"\n"])
def test_a_file_that_is_changed_meanwhile_is_found_out(tmp_path: Path, change: bytes) -> None:
    """At the latest when its end is reached."""
    checked = check(written(tmp_path, line("a"), line("b")))
    written(tmp_path, line("a"), line("b"), change)
    with pytest.raises(CommandError, match="was changed"):
        list(jobs(checked))


@given(st.lists(st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()), unique=True, max_size=20))
def test_what_is_checked_is_what_is_asked(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    """Whatever the ids: each once, in order, under its own digest."""
    path = written(tmp_path_factory.mktemp("jobs"), line("first"), *[line(f"-{each}") for each in ids])
    found: list[Job] = list(jobs(check(path)))
    assert ["first", *(f"-{each}" for each in ids)] == [job.custom_id for job in found]
    assert len(found) == len({short_digest(job.custom_id) for job in found})
