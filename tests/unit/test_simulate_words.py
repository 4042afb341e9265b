"""Words after `jouleway simulate` become parts, seeds, policies and an objective, or an error with its remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.simulate_words import Wishes, parts_of, policies_of, rows_of, seeds_of, slo_of
from scheduler.core.request import DEFAULT_SLO


def wishes(**changes: Any) -> Wishes:
    values: dict[str, Any] = {
        "models": ["llama-3.1-8b"], "trace": "chat", "fleet": "h100x8", "load": 0.25, "rate": None, "policies": (),
        "seeds": (), "num_seeds": None, "slo": None, "price_per_kwh": 0.15, "gco2e_per_kwh": None, "pue_ratio": 1.0,
        "until_s": None, "num_losses": 0, "json_path": None, "png_path": None, **changes,
    }  # fmt: skip
    return Wishes(**values)


def azure(folder: Path, *seconds: int) -> Path:
    path = folder / "trace.csv"
    rows = "".join(f"2023-11-16 18:15:{second:02},10,5\n" for second in seconds)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (1.0, 0.05)), ("0.5/0.025", (0.5, 0.025)), ("500ms/25ms", (0.5, 0.025)), ("1s/50ms", (1.0, 0.05)),
        (" 2 / 0.1 ", (2.0, 0.1)),
    ],
)  # fmt: skip
def test_an_objective_is_two_times(text: str | None, expected: tuple[float, float]) -> None:
    """In seconds, or in ms where that is written; the share of the unloaded time stays."""
    found = slo_of(text)
    assert expected == pytest.approx((found.ttft_s, found.tpot_s))
    assert DEFAULT_SLO.ttft_ratio == found.ttft_ratio


@pytest.mark.parametrize("text", ["", "1", "1/", "1/2/3", "0/0.05", "1/-1", "1/inf", "nan/1", "a/b"])
def test_other_words_are_no_objective(text: str) -> None:
    with pytest.raises(CommandError, match="is no objective") as caught:
        slo_of(text)
    assert (ExitCode.USAGE, True) == (caught.value.code, "500ms/25ms" in caught.value.remedy)


def test_policies_are_named_by_comma_or_again() -> None:
    """Each once, in order; jouleway where nothing is said."""
    assert ("a", "b", "c") == policies_of(wishes(policies=("a,b", " c , a")))
    assert ("jouleway",) == policies_of(wishes()) == policies_of(wishes(policies=(",",)))


def test_seeds_are_named_or_counted() -> None:
    assert (1,) == seeds_of(wishes())
    assert (7, 3) == seeds_of(wishes(seeds=(7, 3, 7)))
    assert (1, 2, 3) == seeds_of(wishes(num_seeds=3))
    for changes, words in (({"seeds": (1,), "num_seeds": 2}, "both given"), ({"num_seeds": 0}, "from 1 to 100")):
        with pytest.raises(CommandError, match=words):
            seeds_of(wishes(**changes))


def test_one_model_takes_what_the_options_say() -> None:
    (part,) = parts_of(wishes())
    assert ("llama-3.1-8b", "h100x8", 0.25, None) == (part.model, part.fleet, part.load, part.rate_per_s)
    assert 15_000 < len(part.rows)


def test_several_models_say_each_their_own() -> None:
    """Trace, load or rate, and GPUs; what one leaves out is the options'."""
    texts = ["llama-3.1-8b=code:0.5@h100x8", "llama-3.1-70b=chat:12/s@h100x32,b200x8", "qwen3-32b@h100x4"]
    found = parts_of(wishes(models=texts, fleet=None))
    assert [("h100x8", 0.5, None), ("h100x32,b200x8", None, 12.0), ("h100x4", 0.25, None)] == [
        (part.fleet, part.load, part.rate_per_s) for part in found
    ]
    assert ["llama-3.1-8b", "llama-3.1-70b", "qwen3-32b"] == [part.model for part in found]
    assert len(found[0].rows) < len(found[1].rows) == len(found[2].rows)


def test_a_path_may_have_a_colon(tmp_path: Path) -> None:
    """Only what ends as an amount is one."""
    folder = tmp_path / "a:b"
    folder.mkdir()
    (part,) = parts_of(wishes(models=[f"m={azure(folder, 1, 2)}"]))
    assert (2, 0.25) == (len(part.rows), part.load)
    (part,) = parts_of(wishes(models=[f"m={azure(folder, 1, 2)}:0.75"]))
    assert (2, 0.75) == (len(part.rows), part.load)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": []}, "no model is named"),
        ({"fleet": None}, "on which GPUs"),
        ({"trace": None}, "which trace"),
        ({"load": None}, "give a load or a rate"),
        ({"rate": 3.0}, "give a load or a rate"),
        ({"load": 0.0}, "a load of 0.0 is not above 0"),
        ({"load": None, "rate": float("inf")}, "a rate of inf is not above 0"),
        ({"models": ["a", "b"]}, "several models share no engine"),
        ({"models": ["a@h100x1", "b"]}, "several models share no engine"),
    ],
)
def test_what_is_missing_is_asked_for(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CommandError, match=words) as caught:
        parts_of(wishes(**changes))
    assert ExitCode.USAGE is caught.value.code


def test_a_trace_that_is_not_there_is_not_found() -> None:
    with pytest.raises(CommandError, match="there is no such trace") as caught:
        rows_of("elsewhere.csv")
    assert (ExitCode.NOT_FOUND, True) == (caught.value.code, "chat, code, agents" in caught.value.remedy)


def test_a_trace_that_goes_back_in_time_or_is_empty_is_refused(tmp_path: Path) -> None:
    for seconds, words in (((5, 3), "request 2 arrives 2 s before the one above it; sort"), ((), "no request in it")):
        with pytest.raises(CommandError, match=words) as caught:
            rows_of(str(azure(tmp_path, *seconds)))
        assert ExitCode.USAGE is caught.value.code


def test_servegens_clients_are_a_trace(tmp_path: Path) -> None:
    """By the end of the file's name."""
    lengths = [{"window_start_s": 0, "input_tokens_q": [5, 5], "output_tokens_q": [7, 7]}]
    client = {"arrivals": [[36_000 + 600 * n, 1.0, 1.0, "Gamma", 1.0, 1.0] for n in range(5)], "lengths": lengths}
    path = tmp_path / "clients.json"
    path.write_text(json.dumps({"arrival_window_s": 600, "clients": [client]}))
    assert {(5, 7)} == {(row.input_tokens, row.output_tokens) for row in rows_of(str(path))}
