"""The README's examples run as they are printed: key, doctor, serve, curl, openai-python, submit, explain, top, bench.

The engines are simulated ones (``tests/engine`` runs the real one), and ports are free ones; nothing else is changed.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers import free_port
from scheduler.config import load_config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SIMULATED = [
    {
        "name": "cpu", "count": 2, "engine": "simulated", "model": "smollm2-135m", "calibration_s": 0, "cpus": 0.1,
        "engine_args": {"fixed_step_s": 0.005}, "meter": {"kind": "simulated"},
    }
]  # fmt: skip
START_TIMEOUT_S = 90.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def block_with(language: str, words: str) -> str:
    (found,) = [block for block in blocks(language) if words in block]
    return found


class Place:
    """A folder like a checkout after `make setup`, and the README's words with this run's ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.admin_port = free_port(), free_port()
        shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("*.key", "locks"))
        # Resolved by whoever runs the tests: their interpreter's own commands.
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        self.env = {
            **os.environ,
            "JOULEWAY_SERVER__PORT": str(self.port),
            "JOULEWAY_ADMIN__PORT": str(self.admin_port),
            "JOULEWAY_WORKERS": json.dumps(SIMULATED),
            "JOULEWAY_STATE_DIR": str(folder / "state"),
        }

    def words(self, block: str) -> str:
        url = f"127.0.0.1:{self.port}"
        for command in ("submit", "explain", "receipt"):  # they ask port 8000 unless told otherwise
            block = block.replace(f"jouleway {command} ", f"jouleway {command} --url http://{url} ")
        block = block.replace("${XDG_STATE_HOME:-$HOME/.local/state}/jouleway", self.env["JOULEWAY_STATE_DIR"])
        return block.replace("127.0.0.1:8000", url)

    def shell(self, script: str, *, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euo", "pipefail", "-c", self.words(script)]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The README's serve block, line by line; the last line is the service, which runs until the tests are over."""
    place = Place(tmp_path_factory.mktemp("readme"))
    make_key, doctor, serve = block_with("bash", "jouleway serve").strip().splitlines()
    made = place.shell(make_key)
    assert made.returncode == 0, made.stderr
    examined = place.shell(doctor)
    assert examined.returncode in (0, 1), examined.stderr  # the machine may lack what the doctor asks for
    assert "jouleway doctor" in examined.stdout
    log = place.folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {serve}"],
            cwd=place.folder,
            env=place.env,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until_s = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(place.port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.2)
        yield place
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(40)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
    assert process.returncode == 0, log.read_text()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_the_readme_names_the_two_commands() -> None:
    """And they are targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert ["demo", "test"] == named
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in named)


def test_curl_gets_an_answer_with_its_cost(place: Place) -> None:
    """With the keys that the README shows."""
    done = place.shell(block_with("bash", "x-jouleway-metering"))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"]
    shown = json.loads("{" + block_with("json", "energy_joules") + "}")["jouleway"]
    assert shown.keys() <= answer["jouleway"].keys()
    assert answer["jouleway"]["provisional"] is True


def test_openai_python_streams(place: Place) -> None:
    """The block runs as a program and prints text."""
    program = place.words(block_with("python", "OpenAI"))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_top_workers_and_bench_answer(place: Place) -> None:
    """The tables name the workers; the benchmark measures (7: measured, but on a busy machine not to be quoted)."""
    watched, listed, measured = block_with("bash", "jouleway workers").strip().splitlines()
    for command in (watched, listed):
        done = place.shell(command)
        assert done.returncode == 0, done.stderr
        assert "cpu-0" in done.stdout
    done = place.shell(measured.replace("--duration-s 20", "--duration-s 3"), timeout_s=120)
    assert done.returncode in (0, 7), done.stderr
    assert "TTFT" in done.stdout


def test_a_file_of_jobs_is_answered_and_walked_by_explain(place: Place) -> None:
    """The walk has the columns that the README shows, and in both the terms sum to the score."""
    done = place.shell(block_with("bash", "jouleway submit"))
    assert done.returncode == 0, done.stderr
    assert "2 of 2 lines have their answer" in done.stderr
    columns, walked = scores(done.stdout)
    shown_columns, shown = scores(block_with("text", "= score"))
    assert shown_columns == columns
    assert ["cpu-0", "cpu-1"] == sorted(walked) == sorted(shown)
    for terms, score in (*walked.values(), *shown.values()):
        assert sum(terms) == score
    assert all(any(terms) for terms, _ in shown.values()), "a walk of zeros explains nothing"


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the README's copy is made by the sqlite3 command")
def test_a_bill_is_checked_by_its_receipt_and_by_the_ledger(place: Place) -> None:
    """Fetched, checked offline, its text found; then the whole ledger, and what the figures come to."""
    fetch, audit = block_with("bash", "jouleway trace"), block_with("bash", "ledger verify")
    done = place.shell(fetch + audit)
    assert done.returncode == 0, done.stderr
    shown = [line.strip() for line in block_with("text", "each proven").splitlines()]
    assert shown[-1] in done.stdout
    assert "(final)" in shown[0]
    assert 2 == done.stdout.count("(final)")
    assert "answer.txt is output 0 of req-" in done.stdout
    assert "1 receipts are of this ledger" in done.stdout
    assert "NOT AUTHENTICATED" not in done.stdout


def scores(text: str) -> tuple[list[str], dict[str, tuple[list[int], int]]]:
    """Names of the terms, and of each worker that was scored the terms and their sum."""
    lines = [line.replace("◂", " ").split() for line in text.splitlines()]
    begin = next(number for number, words in enumerate(lines) if words[:3] == ["worker", "zone", "filter"])
    columns = lines[begin][3:-2]
    rows: dict[str, tuple[list[int], int]] = {}
    for words in lines[begin + 1 :]:
        if len(words) != 3 + len(columns) + 1 or words[2] != "–":
            break
        *terms, score = (int(word.replace(",", "")) for word in words[3:])
        rows[words[0]] = (terms, score)
    return columns, rows


def test_the_tenants_example_is_a_configuration(tmp_path: Path) -> None:
    """Beside the rest of a file it loads, and every number is where it belongs."""
    text = (ROOT / "configs" / "cpu.yaml").read_text()
    path = tmp_path / "c.yaml"
    zones = "zones: {local: {data_class: important}}\n"
    path.write_text(text[: text.index("tenants:")] + zones + block_with("yaml", "tenants:"))
    (tenant,) = load_config(path).tenants
    assert ("acme", 2, 4, 1, 1) == (
        tenant.name, tenant.weight, len(tenant.budgets), len(tenant.task_budgets), len(tenant.keys)
    )  # fmt: skip


def test_every_link_leads_somewhere() -> None:
    """Relative links only."""
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", README)
    assert links
    assert [] == [link for link in links if not (ROOT / link).exists()]
