"""What a person sees of a run: a line now and then without a terminal, what it took, and its end in words."""

from pathlib import Path

import pytest

from scheduler.commands import submit_screen
from scheduler.commands.submit_run import State, Stop
from scheduler.commands.submit_totals import Totals


def state(**fields: object) -> State:
    return State(num_jobs=1000, **fields)  # type: ignore[arg-type]


def test_without_a_terminal_a_line_is_said_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """The first, one every ten seconds, and the last."""
    now_s = 0.0
    with submit_screen.bar(1000, clock=lambda: now_s) as on_change:
        for number in range(250):
            now_s = number / 10
            on_change(state(num_done=number, num_running=4))
    captured = capsys.readouterr()
    assert "" == captured.out
    assert ["0/1,000", "100/1,000", "200/1,000", "249/1,000"] == [
        line.split(" ")[0] for line in captured.err.splitlines()
    ]


def test_a_run_that_did_nothing_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor fails on it."""
    with submit_screen.bar(0):
        pass
    assert "" == capsys.readouterr().err


def test_what_it_took_so_far() -> None:
    """Joules and money only where anybody said them."""
    assert "4 running · 0 + 0 tokens" == submit_screen.so_far(state(num_running=4))
    took = Totals(
        input_tokens=1234, output_tokens=5, energy_mj=98_765, num_metered=1, grades={"A", "D"}, cost_nano=1_500_000_000,
        currency="EUR",
    )  # fmt: skip
    expected = "0 running · 2 failed · 1 answers lost · 1,234 + 5 tokens · 98.8 J (grade D, provisional) · 1.500000 EUR"
    assert expected == submit_screen.so_far(state(num_failed=2, num_lost=1, totals=took))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_done": 1000}, "1,000 of 1,000 lines have their answer in out"),
        ({"num_before": 400, "num_done": 600}, "1,000 of 1,000 lines have their answer (400 by earlier runs)"),
        ({"num_before": 400, "num_lost_before": 1, "num_done": 600}, "0 failed, 1 ran but lost their answer"),
        ({"num_done": 990, "num_failed": 10}, "10 failed: err"),
        ({"num_done": 990, "num_failed": 10}, "10 lines are asked again by the same command"),
        ({"num_done": 5, "stop": Stop.INTERRUPTED}, "stopped"),
        ({"num_done": 5, "stop": Stop.INTERRUPTED}, "995 lines are asked again"),
        ({"num_failed": 1, "stop": Stop.QUOTA}, "a budget is used up"),
        ({"num_failed": 1, "stop": Stop.KEY}, "the key is refused"),
        ({"num_failed": 16, "stop": Stop.UNAVAILABLE}, "could not serve"),
    ],
)
def test_every_end_is_said_in_words(fields: dict[str, object], words: str) -> None:
    """With the files that hold it."""
    assert words in "\n".join(submit_screen.summary(state(**fields), output=Path("out"), errors=Path("err")))
