"""What a simulated engine can be told, checked: the constants of its device and its fault switches.

Called by ``workers.engines.simulated`` and by the simulation on virtual time. It must never know a sequence or a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from workers.errors import EngineStartError

OptionValue = str | int | float | bool | None | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOptions:
    """Plain numbers. The defaults are one H100-SXM with Llama-3.1-8B on vLLM 0.11.1, batch 8–691.

    Source: the row H100 / Llama-3.1-8B of ``simulation_constants.csv`` (affine fits of the ML.ENERGY v3 chat runs;
    the prefill figures there are derived from the dense peak, not measured; idle watts from powertrace-sim's docs).
    """

    # Step time (s) = time_t0_s + time_decode_s · decodes + time_prefill_s · prefill tokens + time_context_s · context.
    time_t0_s: float = 0.006672
    time_decode_s: float = 0.0000894604
    time_prefill_s: float = 0.0000325
    time_context_s: float = 0.0
    fixed_step_s: float | None = None
    """Every step takes exactly this long, whatever is in it; None = the curve above."""

    # Step energy: see ``simulated_energy``.
    energy_e0_joules: float = 3.16232
    energy_decode_joules: float = 0.0665024
    energy_prefill_joules: float = 0.0216
    energy_context_joules: float = 0.00002
    """Per token of KV read. Order of magnitude from the fits: e1 of Qwen3-8B on H100 rises from 0.069 J (chat) to
    0.198 J (GPQA, thousands of tokens longer)."""
    energy_attention_joules: float = 1e-7
    """Per pair of prompt tokens in a prefill chunk (the quadratic part of attention); an assumption."""
    energy_exponent: float = 0.98
    """Curvature of the batch-dependent part: 1 = affine; mixtures of experts were fitted at 0.4–0.9."""
    energy_pivot_joules: float = 4.0
    """Batch-dependent energy at which curved and affine cost agree (about 60 decodes of the default)."""
    energy_spread_ratio: float = 0.3
    """Each hidden coefficient is drawn once per seed from 1 ± this; 0 = the published constants."""
    energy_noise_ratio: float = 0.02
    """Standard deviation of one step's energy."""
    idle_watts: float = 119.0
    start_watts: float = 200.0
    """While it starts, on average; an assumption."""
    parked_watts: float = 60.0
    """While its engine is stopped; by published anchors."""
    refresh_s: float = 0.1
    """Period of the energy counter; 0.02–0.1 on real boards."""

    # Capacity and batching, as vLLM's options of the same meaning.
    kv_tokens: int = 412_000
    max_sequences: int = 512
    max_model_len: int = 131_072
    max_batched_tokens: int = 2048
    block_tokens: int = 16
    prefix_caching: bool = True

    # Outputs that the client does not bound by ignore_eos end after an exponential draw with this mean.
    output_tokens_mean: float = 256.0
    start_s: float = 0.0
    """How long the engine takes to start."""

    # Fault switches, in seconds after the start; None = never.
    start_fails: bool = False
    hang_after_s: float | None = None
    hang_for_s: float | None = None
    die_after_s: float | None = None
    die_mode: Literal["engine", "process"] = "engine"
    """engine: the engine reports its death; process: the process exits at once, without a word (code 137)."""
    slow_after_s: float | None = None
    slow_ratio: float = 4.0
    meter_lost_after_s: float | None = None
    meter_lost_for_s: float | None = None
    counter_stuck_after_s: float | None = None
    counter_reset_after_s: float | None = None


_POSITIVE = ("kv_tokens", "max_sequences", "max_model_len", "max_batched_tokens", "block_tokens", "refresh_s")
_OPTIONAL = {field.name for field in fields(SimulatedOptions) if "None" in str(field.type)}


def parse_options(engine_args: Mapping[str, OptionValue]) -> SimulatedOptions:
    """Checked options. Raises: EngineStartError that names the unknown or wrong argument."""
    kinds = {field.name: str(field.type) for field in fields(SimulatedOptions)}
    values: dict[str, OptionValue] = {}
    for name, value in engine_args.items():
        if name not in kinds:
            known = ", ".join(sorted(kinds))
            raise EngineStartError(f"engine_args.{name} is not an option of the simulated engine; known: {known}")
        values[name] = _checked(name, kinds[name], value)
    options = SimulatedOptions(**values)  # type: ignore[arg-type]  # each value was checked against its field
    for name in _POSITIVE:
        if getattr(options, name) <= 0:
            raise EngineStartError(f"engine_args.{name} must be above 0, got {getattr(options, name)}")
    if not 0 <= options.energy_spread_ratio < 1:
        raise EngineStartError(f"engine_args.energy_spread_ratio must be in [0, 1), got {options.energy_spread_ratio}")
    if options.fixed_step_s is not None and options.fixed_step_s <= 0:
        raise EngineStartError(f"engine_args.fixed_step_s must be above 0, got {options.fixed_step_s}")
    return options


def _checked(name: str, kind: str, value: OptionValue) -> OptionValue:
    if value is None and name in _OPTIONAL:
        return None
    if kind == "bool":
        if isinstance(value, bool):
            return value
    elif kind.startswith("Literal"):
        if value in ("engine", "process"):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and number >= 0 and (kind != "int" or number.is_integer()):
            return int(value) if kind == "int" else number
    raise EngineStartError(f"engine_args.{name} must be {kind}, not negative; got {value!r}")
