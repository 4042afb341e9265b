"""What is known of GPUs, models and the curves of one on the other, before anything was measured here.

Called by ``scheduler.service`` (where workers' curves start) and by simulation and planning. It must never know a
worker or a request. Nothing in it was measured by us: grade D.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from pydantic import ValidationError

from scheduler.catalogue_sections import CatalogueConfig, CurveConfig, GpuConfig, ModelFactsConfig, key_of
from scheduler.config import read_sections
from scheduler.config_errors import ConfigError, problems_of
from scheduler.config_sections import ModelConfig
from scheduler.shipped import shipped_config
from scheduler.simulation.power import Draw
from workers.engines.simulated_options import SimulatedOptions
from workers.step_curves import StepCurves
from workers.types import WorkerSpec

SOURCE = "catalogue"
"""Source of curves that come from here."""


class CatalogueError(LookupError):
    """What was asked for is not in the catalogue, or cannot be; the words say what is, or what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """A model's engine on GPUs of one kind."""

    gpu: str
    model: str
    gpus_per_engine: int
    options: SimulatedOptions
    """Its published curve without hidden parts: affine, no spread, no noise; contexts cost nothing of their own,
    because the fits hold chat's."""
    draw: Draw
    curves: StepCurves
    batch_range: tuple[float, float]
    """Sequences between which the fit was measured; beyond it is extrapolated."""
    time_error_ratio: float
    """Mean error of the fit on its own points."""
    energy_error_ratio: float
    basis: str
    usd_per_gpu_hour: float
    """Assumed."""


class Catalogue:
    """One file, checked. Names are looked up regardless of case, punctuation and a hub's owner; aliases count."""

    def __init__(self, config: CatalogueConfig, *, source: str = "catalogue") -> None:
        self.source = source
        """Its file."""
        self.gpus: Mapping[str, GpuConfig] = dict(config.gpus)
        self.models: Mapping[str, ModelFactsConfig] = dict(config.models)
        self._gpu_names = _by_key({name: gpu.aliases for name, gpu in config.gpus.items()})
        self._model_names = _by_key({name: model.aliases for name, model in config.models.items()})
        self._curves = {
            (self._gpu_names[key_of(each.gpu)], self._model_names[key_of(each.model)]): each for each in config.curves
        }

    def gpu_name(self, gpu: str) -> str:
        """As it is spelt here. Raises: CatalogueError, which lists what is known."""
        return self._named("GPU", gpu, self._gpu_names, self.gpus)

    def model_name(self, model: str) -> str:
        """As it is spelt here. Raises: CatalogueError, which lists what is known."""
        return self._named("model", model, self._model_names, self.models)

    def engine(self, gpu: str, model: str, *, num_gpus: int | None = None) -> EngineKind:
        """The model's engine on such GPUs, of which there are ``num_gpus`` (None: enough).

        Raises: CatalogueError where either name is unknown, where nobody measured the two together, and where the
        model does not fit, with the GB needed and there.
        """
        gpu_name, model_name = self.gpu_name(gpu), self.model_name(model)
        curve, of, facts = self._curves.get((gpu_name, model_name)), self.gpus[gpu_name], self.models[model_name]
        fewest = facts.fewest_gpus(of) if curve is None else curve.gpus_per_engine
        if num_gpus is not None and num_gpus < fewest:
            raise CatalogueError(
                f"{model_name} does not fit: an engine of it takes {fewest} × {gpu_name} ({facts.weights_gb:g} GB of"
                f" weights beside KV room, of {fewest * of.memory_gb:g} GB), and there are {num_gpus}"
                f" ({num_gpus * of.memory_gb:g} GB); give at least {fewest}"
            )
        if curve is None:
            raise CatalogueError(self._no_curve(gpu_name, model_name))
        return _engine(gpu_name, model_name, of, curve)

    def curves_for(self, gpu: str, model: str, *, num_gpus: int) -> StepCurves | None:
        """Where a worker's own curve starts; None where nobody measured such an engine."""
        pair = (self._gpu_names.get(key_of(gpu), ""), self._model_names.get(key_of(model), ""))
        curve = self._curves.get(pair)
        if curve is None or curve.gpus_per_engine != num_gpus:
            return None
        return _engine(*pair, self.gpus[pair[0]], curve).curves

    def curves_by_gpu(self, names: Iterable[str], *, num_gpus: int) -> dict[str, StepCurves]:
        """The same of every GPU, by each of its names, for a model of any of these names."""
        models = list(names)
        return {
            alias: curves
            for gpu, facts in self.gpus.items()
            for model in models
            if (curves := self.curves_for(gpu, model, num_gpus=num_gpus)) is not None
            for alias in (gpu, *facts.aliases)
        }

    def kinds(self) -> tuple[EngineKind, ...]:
        """Every engine that has a curve, in the file's order."""
        return tuple(_engine(*pair, self.gpus[pair[0]], curve) for pair, curve in self._curves.items())

    def _named(self, what: str, name: str, names: Mapping[str, str], known: Iterable[str]) -> str:
        found = names.get(key_of(name))
        if found is None:
            raise CatalogueError(f"{what} {name!r} is not in {self.source}; known: {', '.join(known)}")
        return found

    def _no_curve(self, gpu: str, model: str) -> str:
        of, facts = self.gpus[gpu], self.models[model]
        with_model = ", ".join(each for each, other in self._curves if other == model) or "no GPU"
        if facts.is_moe:
            return (
                f"{model} is a mixture of experts: how many experts a step touches saturates with its sequences, so an"
                " affine curve errs by up to 18 % where it was fitted and must never be extrapolated: workers fit them"
            )
        room_gb = facts.fewest_gpus(of) * of.memory_gb
        return (
            f"{self.source} has no curve of {model} on {gpu} (it has one on {with_model}); its {facts.weights_gb:g} GB"
            f" of weights take {facts.fewest_gpus(of)} × {gpu} ({room_gb:g} GB). Add one under curves, or let a worker"
            " fit its own"
        )


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Reads and checks a catalogue; None: the one that we ship.

    Raises: ConfigError, which names the file and every wrong key.
    """
    try:
        path = path or shipped_config("catalogue.yaml")
    except FileNotFoundError as error:
        raise ConfigError(str(error), ["there is no such file; install Jouleway whole, or name a catalogue"]) from None
    raw = read_sections(path, sections="gpus, models, curves")
    try:
        return Catalogue(CatalogueConfig.model_validate(raw), source=str(path))
    except ValidationError as error:
        raise ConfigError(str(path), problems_of(error, CatalogueConfig, {})) from None


def _by_key(aliases: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {key_of(each): name for name, others in aliases.items() for each in (name, *others)}


def _engine(gpu_name: str, model_name: str, gpu: GpuConfig, curve: CurveConfig) -> EngineKind:
    num_gpus, idle_watts = curve.gpus_per_engine, gpu.loaded_idle_watts * curve.gpus_per_engine
    options = SimulatedOptions(
        time_t0_s=curve.t0_ms / 1e3,
        time_decode_s=curve.t1_ms / 1e3,
        time_prefill_s=curve.prefill_us / 1e6,
        energy_e0_joules=curve.e0_joules,
        energy_decode_joules=curve.e1_joules,
        energy_prefill_joules=curve.prefill_joules,
        energy_context_joules=0.0,
        energy_attention_joules=0.0,
        energy_exponent=1.0,
        energy_spread_ratio=0.0,
        energy_noise_ratio=0.0,
        idle_watts=idle_watts,
        kv_tokens=curve.kv_tokens,
        max_sequences=curve.max_sequences,
    )
    return EngineKind(
        gpu=gpu_name,
        model=model_name,
        gpus_per_engine=num_gpus,
        options=options,
        draw=Draw(
            idle_watts=idle_watts,
            parked_watts=gpu.parked_watts * num_gpus,
            start_s=curve.start_s,
            start_watts=gpu.start_watts * num_gpus,
        ),
        curves=StepCurves(
            time_s=(options.time_t0_s, options.time_prefill_s, options.time_decode_s, 0.0),
            energy_joules=(curve.e0_joules, curve.prefill_joules, curve.e1_joules, 0.0),
            idle_watts=idle_watts,
            source=f"{SOURCE}: {model_name} on {num_gpus} × {gpu_name}",
            batch_range=(curve.batch_min, curve.batch_max),
        ),
        batch_range=(curve.batch_min, curve.batch_max),
        time_error_ratio=curve.time_error_ratio,
        energy_error_ratio=curve.energy_error_ratio,
        basis=curve.basis,
        usd_per_gpu_hour=gpu.usd_per_gpu_hour,
    )


def with_published_curves(
    groups: Iterable[Iterable[WorkerSpec]], models: Mapping[str, ModelConfig], path: Path | None = None
) -> list[list[WorkerSpec]]:
    """The same workers; those with GPUs are told where their curves start. A model's weights may name it, too.

    Raises: ConfigError of the catalogue, which is only read where somebody has a GPU.
    """
    listed = [list(group) for group in groups]
    if not any(_has_gpus(spec) for group in listed for spec in group):
        return listed
    catalogue = load_catalogue(path)

    def told(spec: WorkerSpec) -> WorkerSpec:
        names = (spec.model, models[spec.model].weights or "")
        curves = catalogue.curves_by_gpu(names, num_gpus=spec.num_gpus) if _has_gpus(spec) else {}
        return msgspec.structs.replace(spec, prior_curves=curves)

    return [[told(spec) for spec in group] for group in listed]


def _has_gpus(spec: WorkerSpec) -> bool:
    return spec.engine != "simulated" and spec.num_gpus > 0
