"""Output files are OpenAI's batch output, bound to their input, and survive whatever ends their writer."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import submit_output
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.submit_file import Checked, check, short_digest
from scheduler.commands.submit_output import ANSWER_LOST, Outputs, line_id, look, output_line

ANSWER = {"status_code": 200, "request_id": "r", "body": {"usage": {"prompt_tokens": 2, "completion_tokens": 3}}}
LOST = {"code": ANSWER_LOST, "message": "…"}
REFUSED = {"status_code": 400, "request_id": "r", "body": {"error": {"code": "bad"}}}


class Place:
    """An input of lines a, b, c, …, and where its output goes."""

    def __init__(self, folder: Path, *, ids: str = "abc") -> None:
        self.source = folder / "jobs.jsonl"
        self.output = folder / "jobs.output.jsonl"
        self.errors = folder / "jobs.errors.jsonl"
        lines = [
            {"custom_id": each, "method": "POST", "url": "/v1/completions", "body": {"model": "m"}} for each in ids
        ]
        self.source.write_text("".join(json.dumps(each) + "\n" for each in lines))
        self.checked: Checked = check(self.source)

    def outputs(self) -> Outputs:
        return Outputs(self.checked, self.output, self.errors)

    def ids(self, path: Path) -> list[str]:
        return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]

    def finished(self) -> set[bytes]:
        with self.outputs() as outputs:
            return set(outputs.found.finished)

    def refusal(self, **paths: Path) -> CommandError:
        with pytest.raises(CommandError) as caught:
            Outputs(self.checked, paths.get("output", self.output), paths.get("errors", self.errors)).__enter__()
        return caught.value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def digests(*ids: str) -> set[bytes]:
    return {short_digest(each) for each in ids}


def test_a_line_is_openais_batch_output(place: Place) -> None:
    """The four keys; the same id in every run over the same input, another one over another input."""
    with place.outputs() as outputs:
        outputs.done("a", ANSWER)
    (line,) = [json.loads(text) for text in place.output.read_text().splitlines()]
    assert {"id": line_id(place.checked.digest, "a"), "custom_id": "a", "response": ANSWER, "error": None} == line
    assert line["id"].startswith("batch_req_")
    assert line_id("0" * 64, "a") != line["id"]


def test_finished_lines_are_found_again_with_what_they_took(place: Place) -> None:
    """Done and lost ones; a failed one is asked again, and its line is gone from the errors file."""
    with place.outputs() as outputs:
        outputs.done("a", ANSWER)
        outputs.failed("b", REFUSED, None)
        outputs.failed("c", {**ANSWER, "body": {"usage": {"prompt_tokens": 5}}}, LOST)
    assert ["b", "c"] == place.ids(place.errors)
    with place.outputs() as outputs:
        found = outputs.found
        assert digests("a", "c") == found.finished
        assert (1, 1, 7, 3) == (
            found.num_done, found.num_lost, found.totals.input_tokens, found.totals.output_tokens
        )  # fmt: skip
        assert ["c"] == place.ids(place.errors)


def test_looking_changes_nothing(place: Place) -> None:
    """Neither makes files nor cuts them."""
    assert set() == look(place.checked, place.output, place.errors).finished
    assert not place.output.exists()
    torn = output_line(place.checked.digest, "a", response=ANSWER)[:-5]
    place.output.write_bytes(torn)
    assert set() == look(place.checked, place.output, place.errors).finished
    assert torn == place.output.read_bytes()


@given(data=st.data())
def test_a_write_torn_anywhere_costs_that_line_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Every line before it stays, and what is written next is whole."""
    place = Place(tmp_path_factory.mktemp("torn"))
    lines = [output_line(place.checked.digest, each, response=ANSWER) for each in "ab"]
    cut = data.draw(st.integers(0, sum(map(len, lines))))
    place.output.write_bytes(b"".join(lines)[:cut])
    whole = [each for each, end in (("a", len(lines[0])), ("b", sum(map(len, lines)))) if cut >= end]
    with place.outputs() as outputs:
        assert digests(*whole) == outputs.found.finished
        outputs.done("c", ANSWER)
    assert [*whole, "c"] == place.ids(place.output)


def test_the_output_of_another_input_is_refused(place: Place, tmp_path: Path) -> None:
    """Even where the ids are the same; nothing is changed in it."""
    with place.outputs() as outputs:
        outputs.done("a", ANSWER)
        outputs.failed("b", REFUSED, None)
    before = place.output.read_bytes(), place.errors.read_bytes()
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other", ids="abcd")
    error = other.refusal(output=place.output)
    assert (ExitCode.USAGE, True) == (error.code, "line 1 answers another input" in str(error))
    assert "answers another input" in str(other.refusal(errors=place.errors))
    assert before == (place.output.read_bytes(), place.errors.read_bytes())


@pytest.mark.parametrize(
    "content",
    [b"my only copy of something\n", b"my only copy, without a line break", b"{}\n", b"\xff\n", b"[" * 99_999],
)
def test_a_strangers_file_is_refused_untouched(place: Place, content: bytes) -> None:
    """Whatever is in it: it is not cut, not appended to."""
    place.output.write_bytes(content)
    assert ExitCode.USAGE == place.refusal().code
    assert content == place.output.read_bytes()


def test_one_file_is_not_used_twice(place: Place, tmp_path: Path) -> None:
    """Not even by another name."""
    (tmp_path / "link").symlink_to(place.source)
    for paths in ({"output": place.source}, {"errors": place.output}, {"output": tmp_path / "link"}):
        error = place.refusal(**paths)
        assert (ExitCode.USAGE, True) == (error.code, "are the same file" in str(error))
    assert 3 == check(place.source).num_jobs


def test_a_place_that_is_none_is_said(place: Place, tmp_path: Path) -> None:
    """A directory, and a folder that is not there."""
    assert "not a regular file" in str(place.refusal(output=tmp_path))
    assert ExitCode.NOT_FOUND == place.refusal(errors=tmp_path / "none" / "errors.jsonl").code


def test_only_one_run_may_write(place: Place) -> None:
    """The second is told so; when the first ended it may."""
    with place.outputs():
        error = place.refusal()
        assert (ExitCode.UNAVAILABLE, True) == (error.code, "another `jouleway submit`" in str(error))
    assert set() == place.finished()


def test_a_full_disk_stops_the_run(place: Place) -> None:
    """A part that was written is taken back, so that lines which still fit are whole."""

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, line: bytes) -> int:
            return int(self.file.write(line[:10]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with place.outputs() as outputs:
        outputs.done("a", ANSWER)
        file = outputs._files[0]
        outputs._files[0] = Full(file)  # type: ignore[call-overload]
        with pytest.raises(CommandError, match="the disk is full") as caught:
            outputs.done("b", ANSWER)
        assert "run the same command again" in caught.value.remedy
        outputs._files[0] = file
        outputs.done("c", ANSWER)
    assert digests("a", "c") == place.finished()


def test_long_lines_are_read_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where no line of ours could be so long, the file is not ours."""
    with place.outputs() as outputs:
        outputs.done("a", {**ANSWER, "body": {"text": "x" * 200_000}})
    place.output.write_bytes(place.output.read_bytes() + b'{"id":"batch_req_')
    assert digests("a") == place.finished()
    monkeypatch.setattr(submit_output, "MAX_LINE_BYTES", 1000)
    assert "is no line of batch output" in str(place.refusal())
