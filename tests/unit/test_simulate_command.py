"""`jouleway simulate` as a shell sees it: table, JSON, picture, exit codes, and the limit that is kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler import cli
from scheduler.commands import simulate as command
from scheduler.commands.simulate_view import COLUMNS
from scheduler.limit_cache import Limit

BASE = [
    "simulate", "--trace", "chat", "--fleet", "h100x2", "--model", "llama-3.1-8b", "--load", "0.1", "--until", "90"
]  # fmt: skip
KEYS = {
    "joules_per_good_token", "slo_attainment_ratio", "joules_total", "good_tokens", "requests", "mean_loaded_gpus",
    "wakes", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s", "cost", "gco2e", "seed", "policy", "load", "fleet", "model",
    "slo", "joules_by_state", "simulated", "versions", "round_robin_limit_requests_per_s",
}  # fmt: skip


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit as if it was found before: ten a second for each engine."""
    monkeypatch.setattr(command, "limit_of", lambda workers, rows, slo: Limit(10.0 * len(workers), True))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([*BASE, *arguments])
    return int(str(ended.value.code))


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_one_policy_and_seed_stand_at_the_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all the keys that were promised; the table says that it is simulated."""
    path = tmp_path / "out.json"
    assert 0 == run("--policy", "round-robin", "--seed", "4", "--json", str(path), "--carbon", "380")
    found = document(path)
    assert KEYS <= found.keys()
    assert (True, 4, "round-robin", 0.1, 20.0) == (
        found["simulated"], found["seed"], found["policy"], found["load"], found["round_robin_limit_requests_per_s"],
    )  # fmt: skip
    assert found["gco2e"] == pytest.approx(380.0 * found["joules_total"] / 3.6e6)
    seen = capsys.readouterr()
    assert "SIMULATED (grade D): llama-3.1-8b on h100x2" in seen.out
    assert "round-robin limit 20 requests/s (known from before)" in seen.err
    assert "beyond 8-691 sequences the curve is extrapolated" in seen.out


def test_policies_are_compared_on_the_same_arrivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means and intervals over the seeds; every run is there."""
    path = tmp_path / "out.json"
    assert 0 == run("--policy", "round-robin,race-to-idle", "--policy", "oracle", "--seeds", "2", "--json", str(path))
    found = document(path)
    assert [1, 2] == found["seeds"]
    assert ["round-robin", "race-to-idle", "oracle"] == list(found["policies"])
    assert 6 == len(found["runs"])
    assert 1 == len({each["requests"] for each in found["runs"] if each["seed"] == 1})
    joules = {policy: each["joules_per_good_token"] for policy, each in found["policies"].items()}
    assert joules["oracle"]["mean"] < joules["race-to-idle"]["mean"] < joules["round-robin"]["mean"]
    assert joules["round-robin"]["low"] < joules["round-robin"]["mean"] < joules["round-robin"]["high"]
    seen = capsys.readouterr().out
    assert all(name in seen for name in COLUMNS)
    assert "oracle (a bound)" in seen
    assert "+0.0 %" in seen
    assert "95 % interval" in seen


def test_json_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else is there."""
    assert 0 == run("--policy", "least-requests", "--json", "-")
    assert "least-requests" == json.loads(capsys.readouterr().out)["policy"]


def test_the_same_command_gives_the_same_figures(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for path in (one, other):
        assert 0 == run("--json", str(path))
    assert one.read_text() == other.read_text()


def test_the_course_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "course.png"
    assert 0 == run("--policy", "round-robin,race-to-idle,oracle", "--png", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_engines_that_die_are_told(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert 0 == run("--policy", "round-robin", "--faults", "2", "--json", str(path))
    found = document(path)
    assert 1 <= found["engines_lost"] <= 2
    assert 0 < found["joules_by_state"]["starting"]


def test_models_with_their_own_gpus(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    arguments = [
        "simulate", "--model", "llama-3.1-8b=chat:0.1@h100x2", "--model", "qwen3-32b=code:2/s@h100x4", "--until", "60",
        "--policy", "least-requests", "--json", str(path),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    found = document(path)
    assert 0 == ended.value.code
    assert {"llama-3.1-8b", "qwen3-32b"} == found["by_model"].keys() == found["models"].keys()
    assert (None, 2.0) == (
        found["by_model"]["qwen3-32b"]["load"],
        found["by_model"]["qwen3-32b"]["rate_requests_per_s"],
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--policy", "robin"), 2, "policy 'robin' is unknown; known: jouleway"),
        (("--fleet", "z9x8"), 2, "GPU 'z9' is not in"),
        (("--model", "llama-3.1-70b"), 2, "several models share no engine"),
        (
            ("--slo", "1/5ms"),
            2,
            "no engine of llama-3.1-8b makes a token in 5 ms: the fastest (h100-000) takes 6.76 ms",
        ),
        (("--pue", "0.9"), 2, "--pue 0.9"),
        (("--until", "0"), 2, "--until 0 is not above 0"),
        (("--trace", "elsewhere.csv"), 3, "there is no such trace"),
        (("--json", "x", "--png", "x"), 2, "name the same file"),
        (("--policy", "oracle", "--png", "x.png"), 2, "the oracle has no course"),
        (("--json", "/nowhere/at/all.json"), 1, "the result could not be written"),
    ],
)
def test_what_cannot_be_done_says_why(
    arguments: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code == run(*arguments)
    assert words in capsys.readouterr().err.replace("\n", " ")
