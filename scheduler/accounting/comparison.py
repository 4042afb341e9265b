"""Models side by side in figures that compare: per kilobyte of text and per accepted result, not per token alone.

Called by ``scheduler.api.usage``. Pure. It must never know a tenant.

Tokens of two models are different things: each tokenizer cuts the same text into more or fewer. UTF-8 bytes are the
same for all of them, so that prices compare per megabyte. A kilobyte is 1,000 bytes, a megabyte 1,000,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

import msgspec

from scheduler.accounting.outcomes import Value, rounded, value_of
from scheduler.accounting.usage import UsageRow, summed
from scheduler.core.request import Rates

MEGABYTE = 1_000_000


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One model in one currency. None: it cannot be told, for want of a price or of use."""

    model: str
    currency: str
    requests: int
    input_price_nano: int | None
    """Of a million tokens that were not cached, as it is now."""
    cached_price_nano: int | None
    output_price_nano: int | None
    input_tokens_per_kilobyte: float | None
    """Tokens of text, what its template adds among them, over the bytes of the prompts."""
    output_tokens_per_kilobyte: float | None
    input_price_nano_per_megabyte: int | None
    """The price of a million tokens times the tokens of a megabyte."""
    output_price_nano_per_megabyte: int | None
    cost_nano_per_megabyte: int | None
    """What was really paid over all bytes, in and out: cached tokens at their own price."""
    joules_per_output_token: float | None
    value: Value


def compare(rows: Iterable[UsageRow], prices: Mapping[str, Rates]) -> list[ModelFigures]:
    """Every model with a price or with usage, by name. Usage that cost nothing stands beside the price's currency."""
    used = {(row.model, row.currency): row for row in summed(rows, width_us=None, by=("model",))}
    for model, price in prices.items():
        free = used.pop((model, ""), None)
        known = used.get((model, price.currency), UsageRow(bucket_us=0, model=model, currency=price.currency))
        both = [known] if free is None else [known, msgspec.structs.replace(free, currency=price.currency)]
        (used[model, price.currency],) = summed(both, width_us=None, by=("model",))
    return [_figures(used[key], prices.get(key[0])) for key in sorted(used)]


def _figures(row: UsageRow, price: Rates | None) -> ModelFigures:
    if price is not None and price.currency != row.currency:
        price = None
    text_tokens = row.input_tokens - row.image_tokens - row.audio_tokens
    input_ratio = Fraction(text_tokens, row.input_bytes) if row.input_bytes else None
    output_ratio = Fraction(row.output_tokens, row.output_bytes) if row.output_bytes else None
    num_bytes = row.input_bytes + row.output_bytes
    return ModelFigures(
        model=row.model,
        currency=row.currency,
        requests=row.requests,
        input_price_nano=None if price is None else price.input_nano,
        cached_price_nano=None if price is None else price.cached_nano,
        output_price_nano=None if price is None else price.output_nano,
        input_tokens_per_kilobyte=_per_kilobyte(input_ratio),
        output_tokens_per_kilobyte=_per_kilobyte(output_ratio),
        input_price_nano_per_megabyte=_per_megabyte(None if price is None else price.input_nano, input_ratio),
        output_price_nano_per_megabyte=_per_megabyte(None if price is None else price.output_nano, output_ratio),
        cost_nano_per_megabyte=rounded(Fraction(row.cost_nano * MEGABYTE, num_bytes)) if num_bytes else None,
        joules_per_output_token=row.energy_mj / 1000 / row.output_tokens if row.output_tokens else None,
        value=value_of(row),
    )


def _per_kilobyte(tokens_per_byte: Fraction | None) -> float | None:
    return None if tokens_per_byte is None else float(tokens_per_byte * 1000)


def _per_megabyte(price_nano: int | None, tokens_per_byte: Fraction | None) -> int | None:
    """A price of a million tokens, and so many tokens a byte: a million of each cancel out."""
    return None if price_nano is None or tokens_per_byte is None else rounded(price_nano * tokens_per_byte)
