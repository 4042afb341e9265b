"""`jouleway models`: prices, and with `--compare` what makes models comparable: text, joules, accepted results.

Called by ``scheduler.cli_accounts``. It must never compute a figure: it prints what it was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from scheduler.accounting.comparison import ModelFigures
from scheduler.commands.control_plane import own_listener, read_words, send
from scheduler.commands.exits import ExitCode
from scheduler.commands.instants import unix_s
from scheduler.commands.output import print_json, print_table
from scheduler.commands.usage_view import joules_each, money, money_each, share

PATH = "/v1/jouleway/models"
PRICE_NAMES = ("model", "currency", "input", "cached", "output")
TEXT_NAMES = (*PRICE_NAMES, "tok/kB in", "tok/kB out", "in/MB", "out/MB", "paid/MB")
VALUE_NAMES = ("model", "requests", "J/token", "outcomes", "judged", "accepted in %", "money each", "J each")


def run(
    *,
    is_comparing: bool,
    from_text: str | None,
    to_text: str | None,
    config_path: Path | None,
    url: str | None,
    as_json: bool,
) -> ExitCode:
    """Ask, print. Raises: CommandError."""
    listener = own_listener(config_path, url)
    moments = (("from", from_text), ("to", to_text))
    words = [(name, str(unix_s(text, option=f"--{name}"))) for name, text in moments if text is not None]
    path = f"{PATH}?{urlencode(words)}" if words else PATH
    told = read_words(listener, PATH, asyncio.run(send(listener, path)))
    if as_json:
        print_json(told)
        return ExitCode.OK
    models = msgspec.convert(told["data"], list[ModelFigures])
    names, cells = (TEXT_NAMES, _text_cells) if is_comparing else (PRICE_NAMES, _price_cells)
    print_table("prices of a million tokens", names, [cells(model) for model in models], numeric_from=2, is_whole=True)
    if is_comparing:
        title = "per output token and per accepted result, with 95 % intervals"
        print_table(title, VALUE_NAMES, [_value_cells(model) for model in models], is_whole=True)
    return ExitCode.OK


def _price_cells(model: ModelFigures) -> Sequence[str]:
    prices = (model.input_price_nano, model.cached_price_nano, model.output_price_nano)
    return (model.model, model.currency or "–", *map(_money, prices))


def _text_cells(model: ModelFigures) -> Sequence[str]:
    return (
        *_price_cells(model),
        _ratio(model.input_tokens_per_kilobyte, 1),
        _ratio(model.output_tokens_per_kilobyte, 1),
        _money(model.input_price_nano_per_megabyte),
        _money(model.output_price_nano_per_megabyte),
        _money(model.cost_nano_per_megabyte),
    )


def _value_cells(model: ModelFigures) -> Sequence[str]:
    value = model.value
    return (
        model.model,
        f"{model.requests:,}",
        _ratio(model.joules_per_output_token, 3),
        f"{value.results:,}",
        "–" if value.covered_ratio is None else f"{value.covered_ratio:.0%}",
        share(value),
        money_each(value, model.currency),
        joules_each(value),
    )


def _money(nano: int | None) -> str:
    return "–" if nano is None else money(nano, "")


def _ratio(ratio: float | None, places: int) -> str:
    return "–" if ratio is None else f"{ratio:,.{places}f}"
