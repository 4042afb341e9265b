"""The sections of a catalogue: GPUs, models, and curves of one on the other; what each key means and its bounds.

Called by ``scheduler.catalogue``, which reads the file. It must never read a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from scheduler.config_sections import Section

USABLE_RATIO = 0.9
"""Share of a GPU's memory that an engine takes, as vLLM does unless told otherwise."""

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Text = Annotated[str, Field(min_length=1, max_length=400)]


def key_of(name: str) -> str:
    """What two spellings of one name share: no case, no punctuation, no owner on a hub."""
    return "".join(letter for letter in name.rpartition("/")[2].lower() if letter.isalnum())


class GpuConfig(Section):
    """One kind of GPU; watts are of one."""

    aliases: tuple[str, ...] = ()
    """As NVML spells it, and others do."""
    memory_gb: Positive
    """10⁹ bytes."""
    board_watts: Positive
    """The most that it may draw."""
    loaded_idle_watts: NotNegative
    """With an engine that has nothing to do."""
    parked_watts: NotNegative
    """Without an engine."""
    start_watts: NotNegative
    """On average while an engine starts."""
    usd_per_gpu_hour: NotNegative
    """An assumption."""
    source: Text
    """Where the watts are from."""


class ModelFactsConfig(Section):
    """What a model takes wherever it runs."""

    aliases: tuple[str, ...] = ()
    """Names on a hub."""
    parameters_billions: Positive
    weights_gb: Positive
    layers: Annotated[int, Field(gt=0)]
    kv_bytes_per_token: Annotated[int, Field(gt=0)]
    is_moe: bool = False
    """A mixture of experts: it may have no curve here, because affine ones are far off."""

    def fewest_gpus(self, gpu: GpuConfig) -> int:
        """A power of two whose usable memory holds the weights."""
        return int(2 ** max(math.ceil(math.log2(self.weights_gb / (USABLE_RATIO * gpu.memory_gb))), 0))


class CurveConfig(Section):
    """Of one engine, all its GPUs together."""

    gpu: str
    model: str
    gpus_per_engine: Annotated[int, Field(gt=0)]
    t0_ms: Positive
    """A step, whatever is in it."""
    t1_ms: NotNegative
    """Each sequence in it."""
    e0_joules: Positive
    e1_joules: NotNegative
    prefill_us: NotNegative
    """A prompt token."""
    prefill_joules: NotNegative
    kv_tokens: Annotated[int, Field(gt=0)]
    """KV room."""
    max_sequences: Annotated[int, Field(gt=0)]
    start_s: NotNegative
    """From parked to ready."""
    batch_min: Positive
    """Sequences between which it was measured."""
    batch_max: Positive
    time_error_ratio: NotNegative = 0.0
    """Mean error of the fit on its own points."""
    energy_error_ratio: NotNegative = 0.0
    basis: Text
    """What was measured, what derived."""

    @model_validator(mode="after")
    def _check(self) -> CurveConfig:
        if self.batch_min >= self.batch_max:
            raise ValueError(f"batch_max: {self.batch_max:g} is not above batch_min ({self.batch_min:g})")
        return self


class CatalogueConfig(Section):
    """The whole file."""

    gpus: Annotated[dict[Name, GpuConfig], Field(min_length=1)]
    models: Annotated[dict[Name, ModelFactsConfig], Field(min_length=1)]
    curves: tuple[CurveConfig, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> CatalogueConfig:
        gpus = _owners("gpus", {name: gpu.aliases for name, gpu in self.gpus.items()})
        models = _owners("models", {name: model.aliases for name, model in self.models.items()})
        seen: dict[tuple[str, str], int] = {}
        for place, curve in enumerate(self.curves):
            gpu, model = gpus.get(key_of(curve.gpu)), models.get(key_of(curve.model))
            if gpu is None:
                raise ValueError(f"curves[{place}].gpu: {curve.gpu!r} is not among gpus ({', '.join(self.gpus)})")
            if model is None:
                raise ValueError(
                    f"curves[{place}].model: {curve.model!r} is not among models ({', '.join(self.models)})"
                )
            if (gpu, model) in seen:
                raise ValueError(f"curves[{place}]: {model} on {gpu} has a curve already, curves[{seen[gpu, model]}]")
            seen[gpu, model] = place
            self._refuse(place, curve, self.gpus[gpu], self.models[model])
        return self

    def _refuse(self, place: int, curve: CurveConfig, gpu: GpuConfig, model: ModelFactsConfig) -> None:
        if model.is_moe:
            raise ValueError(f"curves[{place}]: {curve.model} is a mixture of experts, which no affine curve describes")
        needed_gb = model.weights_gb + curve.kv_tokens * model.kv_bytes_per_token / 1e9
        there_gb = curve.gpus_per_engine * gpu.memory_gb
        if needed_gb > there_gb:
            raise ValueError(
                f"curves[{place}].kv_tokens: weights and KV take {needed_gb:.1f} GB, and {curve.gpus_per_engine} ×"
                f" {curve.gpu} have {there_gb:g}; lower kv_tokens or raise gpus_per_engine"
            )


def _owners(section: str, aliases: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Who is meant by each key. Raises: ValueError where one could mean two."""
    owners: dict[str, str] = {}
    for name, others in aliases.items():
        for each in (name, *others):
            key = key_of(each)
            if not key or owners.setdefault(key, name) != name:
                owner = owners.get(key, "nobody")
                raise ValueError(f"{section}.{name}: {each!r} already means {owner}; leave one of them out")
    return owners
