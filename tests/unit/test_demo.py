"""The demo says early what it lacks, reads its figures from the accounts, and fails where they do not add up."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.accounting.accounts import OPERATOR, Accounts
from scheduler.commands import demo
from scheduler.commands.demo_drive import Met
from scheduler.commands.demo_report import faults
from scheduler.commands.demo_requests import plan_requests
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.config import load_config
from workers.types import Grade, Outcome, WindowRecord

CONFIG = """
models: {{m: {{weights: {weights}}}}}
workers: [{{name: w, engine: simulated, model: m}}]
tenants: [{tenants}]
generate_keys: true
"""


def config_of(folder: Path, tenants: int = 3, weights: str = "./weights") -> Any:
    path = folder / "c.yaml"
    names = ", ".join(f"{{name: t{index}}}" for index in range(tenants))
    path.write_text(CONFIG.format(weights=weights, tenants=names))
    return load_config(path)


def test_too_few_tenants_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """Exit code 2."""
    with pytest.raises(CommandError) as caught:
        demo._check(config_of(tmp_path, tenants=2))
    assert ExitCode.USAGE == caught.value.code


def test_missing_weights_are_named_before_anything_starts(tmp_path: Path) -> None:
    """Exit code 3, and what builds them; once they are there the check passes."""
    config = config_of(tmp_path)
    with pytest.raises(CommandError, match=r"models\.m\.weights") as caught:
        demo._check(config)
    assert (ExitCode.NOT_FOUND, True) == (caught.value.code, "make setup" in caught.value.remedy)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    demo._check(config)


def window(**changes: Any) -> WindowRecord:
    values: dict[str, Any] = {
        "window": 1, "started_s": 0.0, "ended_s": 5.0, "ended_unix_s": 0.0, "counter_mj": 1000, "meter_mj": 1000,
        "idle_mj": 100, "overhead_mj": 50, "unattributed_mj": 10, "in_flight_mj": 840,
        "shares": (("req-a-1", 840, 4_000_000),), "busy_gpu_us": 4_100_000, "overhead_gpu_us": 100_000,
        "predicted_mj": 900, "scale_ratio": 1.0, "grade": Grade.D, "meter": "modelled:cpu-seconds", "num_steps": 9,
    }  # fmt: skip
    return WindowRecord(**(values | changes))


def accounts_of_one_request() -> Accounts:
    accounts = Accounts()
    accounts.add_window("w-0", window())
    accounts.add_posting("w-0", "t0", energy_mj=840, gpu_us=4_000_000)
    totals = accounts.tokens_of("t0")
    totals.requests += 1
    totals.add(input_tokens=30, cached_tokens=10, output_tokens=20, cost_nano=0, outcome=Outcome.COMPLETED)
    return accounts


def figures_of(accounts: Accounts, met: list[Met]) -> Any:
    return demo._figures(SimpleNamespace(settlement=SimpleNamespace(accounts=accounts)), met, 1.5)  # type: ignore[arg-type]


def plan() -> list[Any]:
    return plan_requests([("t0", "k0"), ("t1", "k1"), ("t2", "k2")], num_requests=12, seed=0)


def test_figures_are_those_of_the_accounts() -> None:
    """The balance closes, tenants add up, J per token is joules over output tokens."""
    met = [Met(request=request, status=200) for request in plan()]
    met[0].was_aborted = True
    figures = figures_of(accounts_of_one_request(), met)
    assert (1000, 840, 100, 50, 10, 0) == (
        figures.meter_mj, figures.requests_mj, figures.idle_mj, figures.overhead_mj, figures.unattributed_mj,
        figures.in_flight_mj,
    )  # fmt: skip
    assert (12, 1, 0) == (figures.requests, figures.aborted, figures.failed)
    assert [] == faults(figures)
    assert 0.042 == pytest.approx(figures.as_dict()["joules_per_token"])
    (row,) = figures.tenants
    assert (4.0, 20) == (row.gpu_seconds, row.output_tokens)
    assert ("D", "modelled:cpu-seconds") == (figures.grade, figures.meter)
    assert 1.0 == pytest.approx(figures.predicted_over_measured)


def test_the_operators_own_row_shows_once_it_has_something() -> None:
    """An empty row would only ask a question."""
    accounts = accounts_of_one_request()
    accounts.tokens_of(OPERATOR)
    assert ["t0"] == [row.tenant for row in figures_of(accounts, []).tenants]
    accounts.tokens_of(OPERATOR).attempts += 1
    assert OPERATOR in [row.tenant for row in figures_of(accounts, []).tenants]


def test_energy_left_in_flight_is_a_fault() -> None:
    """The demo fails rather than prints a balance that is not final."""
    accounts = Accounts()
    accounts.add_window("w-0", window())
    assert any("in flight" in words for words in faults(figures_of(accounts, [])))


def test_the_first_token_counts_from_the_command() -> None:
    """The earliest over all streams, each from its own start; None where nothing was streamed."""
    requests = plan()
    met = [Met(request=request) for request in requests]
    assert None is demo._first_token_s(met, requests, 40.0)
    met[3].ttft_s, met[5].ttft_s = 2.0, 0.1
    firsts = [40.0 + requests[3].starts_after_s + 2.0, 40.0 + requests[5].starts_after_s + 0.1]
    assert pytest.approx(min(firsts), abs=0.01) == demo._first_token_s(met, requests, 40.0)


def test_the_end_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table and balance on standard output, faults on standard error, every key in the file."""
    figures = figures_of(accounts_of_one_request(), [])
    demo._print(figures, ["something is off"], tmp_path / "out.json")
    captured = capsys.readouterr()
    assert "who used what" in captured.out
    assert "joule balance" in captured.out
    assert "FAULT: something is off" in captured.err
    written = json.loads((tmp_path / "out.json").read_text())
    assert {
        "requests", "tenants", "grade", "meter_mj", "requests_mj", "idle_mj", "overhead_mj", "unattributed_mj",
        "token_difference", "joules_per_token", "predicted_over_measured",
    } <= written.keys()  # fmt: skip
    assert {int} == {type(value) for key, value in written.items() if key.endswith("_mj")}


def test_json_to_standard_output_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else is printed there."""
    demo._print(figures_of(accounts_of_one_request(), []), [], Path("-"))
    assert 840 == json.loads(capsys.readouterr().out)["requests_mj"]


def test_where_the_ledger_lies_is_said_beside_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error where the figures are a JSON document on standard output."""

    async def figures(*_: object, **__: object) -> Any:
        return figures_of(accounts_of_one_request(), [])

    monkeypatch.setattr(demo, "_demo", figures)
    monkeypatch.setattr(demo, "_check", lambda config: None)
    monkeypatch.setattr(demo, "_verify", lambda config, progress: [])
    for json_path, is_document in ((Path("-"), True), (None, False)):
        demo.run(json_path=json_path, num_requests=12, seed=0, config_path=None, ledger_path=tmp_path / "l.db")
        captured = capsys.readouterr()
        assert is_document == ("jouleway ledger verify" in captured.err)
        assert is_document != ("jouleway ledger verify" in captured.out)
        if is_document:
            assert 840 == json.loads(captured.out)["requests_mj"]
