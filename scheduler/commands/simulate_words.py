"""What people write after `jouleway simulate`, made into a study's parts.

Called by ``scheduler.commands.simulate``. It reads traces, and must never simulate anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler.commands.exits import CommandError, ExitCode
from scheduler.core.request import DEFAULT_SLO, Slo
from scheduler.servegen import read_servegen
from scheduler.study import Part
from scheduler.trace_files import TraceError, TraceRow, read_trace
from scheduler.workloads import WORKLOADS

RATE = re.compile(r"(?P<number>[\d.eE+-]+)/s")
SERVEGEN_RATE_PER_S = 6.0
"""Of the rows that are drawn; what is simulated is scaled anyway."""
MAX_SEEDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The options, as they were given."""

    models: Sequence[str]
    trace: str | None
    fleet: str | None
    load: float | None
    rate: float | None
    policies: Sequence[str]
    seeds: Sequence[int]
    num_seeds: int | None
    slo: str | None
    price_per_kwh: float
    gco2e_per_kwh: float | None
    pue_ratio: float
    until_s: float | None
    num_losses: int
    json_path: Path | None
    png_path: Path | None


def wrong(message: str, remedy: str = "") -> CommandError:
    """The error of arguments that cannot be."""
    return CommandError(message, code=ExitCode.USAGE, remedy=remedy)


def seeds_of(wishes: Wishes) -> tuple[int, ...]:
    """Those named, or so many from 1, or 1."""
    if wishes.num_seeds is None:
        return tuple(dict.fromkeys(wishes.seeds)) or (1,)
    if wishes.seeds:
        raise wrong("--seed and --seeds are both given", "--seeds 5 means seeds 1 to 5; --seed may be repeated")
    if not 1 <= wishes.num_seeds <= MAX_SEEDS:
        raise wrong(f"--seeds {wishes.num_seeds}: from 1 to {MAX_SEEDS}")
    return tuple(range(1, wishes.num_seeds + 1))


def policies_of(wishes: Wishes) -> tuple[str, ...]:
    """By comma or repeated, each once."""
    names = [name.strip() for text in wishes.policies for name in text.split(",") if name.strip()]
    return tuple(dict.fromkeys(names)) or ("jouleway",)


def slo_of(text: str | None) -> Slo:
    """``1/0.05``: seconds to the first token and for each further one; ``ms`` may be written."""
    if text is None:
        return DEFAULT_SLO
    match [_seconds(part) for part in text.split("/")]:
        case [float(ttft_s), float(tpot_s)] if 0 < ttft_s < math.inf and 0 < tpot_s < math.inf:
            return DEFAULT_SLO._replace(ttft_s=ttft_s, tpot_s=tpot_s)
    raise wrong(f"--slo {text!r} is no objective", "write TTFT/TPOT in seconds: 1/0.05, or 500ms/25ms")


def _seconds(text: str) -> float | None:
    text, factor = text.strip(), 1.0
    if text.endswith("ms"):
        text, factor = text[:-2], 1e-3
    try:
        return float(text.removesuffix("s")) * factor
    except ValueError:
        return None


def parts_of(wishes: Wishes) -> list[Part]:
    """``--model NAME[=TRACE[:LOAD]][@FLEET]``; what is left out is what --trace, --load, --rate and --fleet say."""
    if not wishes.models:
        raise wrong("no model is named", "--model llama-3.1-8b; `configs/catalogue.yaml` lists them")
    if len(wishes.models) > 1 and not all("@" in text for text in wishes.models):
        raise wrong(
            "several models share no engine: each needs GPUs of its own",
            "--model llama-3.1-8b=chat:0.25@h100x8 --model llama-3.1-70b=code:0.5@h100x32",
        )
    return [_part(text, wishes) for text in wishes.models]


def _part(text: str, wishes: Wishes) -> Part:
    left, _, fleet = text.rpartition("@") if "@" in text else (text, "", wishes.fleet or "")
    model, _, workload = left.partition("=")
    trace, _, amount = workload.rpartition(":") if _ends_in_amount(workload) else (workload, "", "")
    trace = trace or wishes.trace or ""
    if not fleet:
        raise wrong(f"--model {text!r}: on which GPUs?", "--fleet h100x8")
    if not trace:
        raise wrong(f"--model {text!r}: which trace?", f"--trace FILE, or one of {', '.join(WORKLOADS)}")
    load, rate_per_s = (wishes.load, wishes.rate) if not amount else _amount(amount)
    if (load is None) == (rate_per_s is None):
        raise wrong(
            "give a load or a rate, one of the two", "--load 0.25 is a share of the round-robin limit, --rate 12 is /s"
        )
    given = load if load is not None else rate_per_s
    if given is None or not 0 < given < math.inf:
        raise wrong(f"{'a load' if load is not None else 'a rate'} of {given} is not above 0")
    return Part(model=model, fleet=fleet, rows=rows_of(trace), load=load, rate_per_s=rate_per_s)


def _ends_in_amount(workload: str) -> bool:
    """A path may have a colon of its own."""
    before, _, after = workload.rpartition(":")
    return bool(before) and (RATE.fullmatch(after) is not None or _seconds(after) is not None)


def _amount(text: str) -> tuple[float | None, float | None]:
    rate = RATE.fullmatch(text)
    number = _seconds(rate["number"] if rate is not None else text)
    if number is None:
        raise wrong(f"{text!r} is neither a load as 0.25 nor a rate as 12/s")
    return (None, number) if rate is not None else (number, None)


def rows_of(trace: str) -> list[TraceRow]:
    """Of a made-up workload by its name, or of a file: Azure's CSV, Mooncake's JSON lines, ServeGen's clients.

    Raises: CommandError.
    """
    if trace in WORKLOADS:
        return WORKLOADS[trace].rows(seed=1)
    path = Path(trace)
    if not path.is_file():
        raise CommandError(
            f"{trace}: there is no such trace", code=ExitCode.NOT_FOUND, remedy=f"a file, or {', '.join(WORKLOADS)}"
        )
    try:
        if path.suffix == ".json":
            return read_servegen(path, rate_per_s=SERVEGEN_RATE_PER_S, seed=1)
        return read_trace(path, must_be_in_order=True)
    except TraceError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from None
