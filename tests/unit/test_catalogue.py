"""Curves by GPU and model: the published constants exactly, names as people and NVML write them, refusals in words."""

import csv
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import shipped
from scheduler.catalogue import Catalogue, CatalogueError, EngineKind, load_catalogue, with_published_curves
from scheduler.config_errors import ConfigError
from scheduler.config_sections import ModelConfig
from workers.engines.simulated_options import SimulatedOptions
from workers.types import WorkerSpec

CONSTANTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "energy" / "simulation_constants.csv"
CATALOGUE = load_catalogue()

GOOD = """
gpus:
  G: {aliases: [GPU of G], memory_gb: 10, board_watts: 100, loaded_idle_watts: 9, parked_watts: 5, start_watts: 20,
      usd_per_gpu_hour: 1, source: a test}
models:
  m: {aliases: [org/m-Instruct], parameters_billions: 4, weights_gb: 8, layers: 2, kv_bytes_per_token: 1000}
  x: {parameters_billions: 9, weights_gb: 18, layers: 2, kv_bytes_per_token: 1000, is_moe: true}
curves:
  - {gpu: G, model: m, gpus_per_engine: 2, t0_ms: 10, t1_ms: 0.1, e0_joules: 3, e1_joules: 0.05, prefill_us: 30,
     prefill_joules: 0.02, kv_tokens: 1000, max_sequences: 16, start_s: 45, batch_min: 8, batch_max: 64, basis: a test}
"""


def load(folder: Path, text: str) -> Catalogue:
    path = folder / "c.yaml"
    path.write_text(text)
    return load_catalogue(path)


def problem_of(folder: Path, text: str) -> str:
    """What is wrong with it, the file named in front."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert str(folder / "c.yaml") == caught.value.where
    assert 1 == len(caught.value.problems)
    return caught.value.problems[0]


# -- what we ship


def constants() -> list[dict[str, str]]:
    with CONSTANTS.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(not CONSTANTS.exists(), reason="the published constants are not here")
def test_the_published_constants_are_in_it_exactly() -> None:
    """All six rows, every figure; contexts cost nothing of their own, because the fits hold chat's."""
    rows = constants()
    assert 6 == len(rows)
    for row in rows:
        kind = CATALOGUE.engine(row["fleet_gpu"], row["model"])
        num_gpus, of, draw = int(row["gpus_per_engine"]), kind.options, kind.draw
        expected = [
            num_gpus,
            *[float(row[name]) / 1e3 for name in ("decode_t0_ms", "decode_t1_ms")],
            *[float(row[name]) for name in ("decode_e0_joules", "decode_e1_joules", "prefill_joules_per_token")],
            float(row["prefill_us_per_token"]) / 1e6,
            *[int(row[name]) for name in ("kv_tokens", "max_sequences")],
            *[float(row[f"{name}_watts_per_gpu"]) * num_gpus for name in ("loaded_idle", "parked", "start")],
            float(row["start_s"]),
        ]
        found = [
            kind.gpus_per_engine,
            of.time_t0_s, of.time_decode_s,
            of.energy_e0_joules, of.energy_decode_joules, of.energy_prefill_joules,
            of.time_prefill_s,
            of.kv_tokens, of.max_sequences,
            draw.idle_watts, draw.parked_watts, draw.start_watts,
            draw.start_s,
        ]  # fmt: skip
        assert pytest.approx(expected, rel=1e-12) == found
        assert 0.0 == of.energy_context_joules == of.energy_attention_joules == of.energy_spread_ratio
        assert kind.basis.startswith(row["basis"].split(" (")[0])


def test_the_default_simulated_engine_is_one_of_its_rows() -> None:
    """Two sets of constants for one engine would be two answers to one question."""
    kind, default = CATALOGUE.engine("h100", "llama-3.1-8b").options, SimulatedOptions()
    for name in (
        "time_t0_s",
        "time_decode_s",
        "time_prefill_s",
        "energy_e0_joules",
        "energy_decode_joules",
        "kv_tokens",
    ):
        assert pytest.approx(getattr(default, name), rel=1e-12) == getattr(kind, name), name


@pytest.mark.parametrize("kind", CATALOGUE.kinds(), ids=lambda kind: f"{kind.gpu}-{kind.model}")
def test_every_engine_that_we_ship_can_be(kind: EngineKind) -> None:
    """It fits the memory vLLM takes (two published rows are rounded by up to 3 % above it), its derived figures follow
    their formulas, no step draws more than the boards may (a fit may say 2 % more),
    and what it publishes is what it simulates."""
    gpu, model, of = CATALOGUE.gpus[kind.gpu], CATALOGUE.models[kind.model], kind.options
    usable_gb = 0.9 * gpu.memory_gb * kind.gpus_per_engine
    assert model.weights_gb + of.kv_tokens * model.kv_bytes_per_token / 1e9 <= usable_gb * 1.03
    peak_flops = {"H100": 989e12, "B200": 2250e12}[kind.gpu] * kind.gpus_per_engine
    assert pytest.approx(2 * model.parameters_billions * 1e9 / (peak_flops * 0.5), rel=0.01) == of.time_prefill_s
    board_watts = gpu.board_watts * kind.gpus_per_engine
    assert pytest.approx(0.95 * board_watts * of.time_prefill_s, rel=0.01) == of.energy_prefill_joules
    for num_sequences in (1, of.max_sequences):
        joules = of.energy_e0_joules + num_sequences * of.energy_decode_joules
        assert joules <= 1.02 * board_watts * (of.time_t0_s + num_sequences * of.time_decode_s)
    assert kind.draw.parked_watts < kind.draw.idle_watts < board_watts
    assert kind.batch_range[0] < of.max_sequences <= kind.batch_range[1] + 1
    assert (of.time_t0_s, of.time_prefill_s, of.time_decode_s, 0.0) == kind.curves.time_s
    assert (of.energy_e0_joules, of.energy_prefill_joules, of.energy_decode_joules, 0.0) == kind.curves.energy_joules
    assert f"catalogue: {kind.model} on {kind.gpus_per_engine} × {kind.gpu}" == kind.curves.source


def test_mixtures_of_experts_are_known_and_have_no_curve() -> None:
    """The refusal says why: it is no gap that somebody forgot to fill."""
    experts = [name for name, model in CATALOGUE.models.items() if model.is_moe]
    assert 5 == len(experts)
    assert set() == {kind.model for kind in CATALOGUE.kinds()} & set(experts)
    for name in experts:
        with pytest.raises(CatalogueError, match=r"mixture of experts.*never be extrapolated"):
            CATALOGUE.engine("H100", name)


def test_an_installed_catalogue_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no checkout; and without any, the words name a file."""
    monkeypatch.setattr(shipped, "ROOT", tmp_path / "nowhere")
    monkeypatch.setattr(shipped.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"catalogue\.yaml: there is no such file"):
        load_catalogue()
    installed = tmp_path / "share" / "jouleway" / "configs" / "catalogue.yaml"
    installed.parent.mkdir(parents=True)
    installed.write_text(GOOD)
    assert str(installed) == load_catalogue().source


# -- names


@pytest.mark.parametrize("gpu", ["H100", "h100", "NVIDIA H100 80GB HBM3", "nvidia h100 80gb hbm3", "H100-SXM"])
@pytest.mark.parametrize(
    "model", ["llama-3.1-8b", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "LLAMA 3.1 8B Instruct"]
)
def test_names_are_read_as_people_write_them(gpu: str, model: str) -> None:
    """Case, punctuation, a hub's owner, and what NVML says."""
    kind = CATALOGUE.engine(gpu, model)
    assert ("H100", "llama-3.1-8b") == (kind.gpu, kind.model)


@pytest.mark.parametrize("gpu", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "H10", ""])
def test_a_name_that_only_resembles_one_is_unknown(gpu: str) -> None:
    """Half the board power, another curve; what is known is listed."""
    with pytest.raises(CatalogueError, match="known: H100, H200, B200, A100-80GB, L40S"):
        CATALOGUE.engine(gpu, "llama-3.1-8b")


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(CatalogueError, match=r"model 'gpt-9' is not in .*known: llama-3\.1-8b, llama-3\.1-70b"):
        CATALOGUE.engine("H100", "gpt-9")


@given(st.sampled_from([(kind.gpu, kind.model) for kind in CATALOGUE.kinds()]), st.data())
def test_no_spelling_changes_who_is_meant(pair: tuple[str, str], data: st.DataObject) -> None:
    """Letters in any case, and anything that is neither a letter nor a digit between them."""

    def respelt(name: str) -> str:
        return "".join(
            data.draw(st.sampled_from([each.lower(), each.upper()]))
            + data.draw(st.sampled_from(["", " ", "-", "_", "."]))
            for each in name
        )

    kind = CATALOGUE.engine(respelt(pair[0]), respelt(pair[1]))
    assert pair == (kind.gpu, kind.model)


# -- what cannot be


def test_a_fleet_without_the_models_memory_says_what_is_needed_and_there() -> None:
    """In GB and in GPUs; one more would be enough."""
    with pytest.raises(CatalogueError, match=r"4 × H100 \(141\.2 GB of weights.*320 GB\), and there are 3 \(240 GB\)"):
        CATALOGUE.engine("H100", "llama-3.1-70b", num_gpus=3)
    assert 4 == CATALOGUE.engine("H100", "llama-3.1-70b", num_gpus=4).gpus_per_engine
    with pytest.raises(CatalogueError, match=r"takes 4 × L40S .*of 192 GB\), and there are 1 \(48 GB\)"):
        CATALOGUE.engine("L40S", "llama-3.1-70b", num_gpus=1)


def test_two_that_nobody_measured_together_say_who_was() -> None:
    """And what the model would take there."""
    with pytest.raises(CatalogueError, match=r"no curve of llama-3.1-70b on L40S \(it has one on H100, B200\).*192 GB"):
        CATALOGUE.engine("L40S", "llama-3.1-70b")


def test_a_worker_starts_from_a_curve_of_its_very_engine() -> None:
    """As many GPUs as were measured; else nothing is known, and no error either."""
    found = CATALOGUE.curves_for("NVIDIA H100 80GB HBM3", "meta-llama/Llama-3.1-70B-Instruct", num_gpus=4)
    assert CATALOGUE.engine("H100", "llama-3.1-70b").curves == found
    for gpu, model, num_gpus in [
        ("H100", "llama-3.1-70b", 8),
        ("H100", "nobody/knows", 4),
        ("RTX", "llama-3.1-70b", 4),
        ("", "", 0),
        ("H100", "qwen3-30b-a3b", 1),
    ]:
        assert CATALOGUE.curves_for(gpu, model, num_gpus=num_gpus) is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("t0_ms: 10", "t0_ms: 0", "curves[0].t0_ms: input should be greater than 0"),
        ("e1_joules: 0.05", "e1_joules: -1", "curves[0].e1_joules: input should be greater than or equal to 0"),
        ("t0_ms: 10", "t0_ms: .nan", "curves[0].t0_ms: input should be a finite number"),
        ("start_s: 45", "start_s: 45, start: 45", "curves[0].start: unknown key; did you mean start_s?"),
        ("batch_max: 64", "batch_max: 8", "curves[0]: batch_max: 8 is not above batch_min (8)"),
        ("gpu: G,", "gpu: H,", "curves[0].gpu: 'H' is not among gpus (G)"),
        ("model: m,", "model: n,", "curves[0].model: 'n' is not among models (m, x)"),
        ("model: m,", "model: x,", "curves[0]: x is a mixture of experts, which no affine curve describes"),
        ("kv_tokens: 1000", "kv_tokens: 13000000",
         "curves[0].kv_tokens: weights and KV take 21.0 GB, and 2 × G have 20; lower kv_tokens or raise"),
        ("models:\n  m: {aliases: [org/m-Instruct]", "models:\n  m: {aliases: [other/X]",
         "models.x: 'x' already means m; leave one of them out"),
        ("aliases: [GPU of G]", "aliases: ['--']", "gpus.G: '--' already means nobody; leave one of them out"),
        ("memory_gb: 10,", "memory_gb: yes,", "gpus.G: memory_gb is a number, not true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_catalogue_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    """The key by its path, what was expected, and the remedy where there is one."""
    assert old in GOOD
    assert words == problem_of(tmp_path, GOOD.replace(old, new, 1))[: len(words)]


def test_a_pair_has_one_curve(tmp_path: Path) -> None:
    """By whatever names."""
    second = GOOD[GOOD.index("  - {gpu") :].replace("model: m", "model: M-instruct")
    assert "curves[1]: m on G has a curve already, curves[0]" == problem_of(tmp_path, GOOD + second)


def test_watts_of_an_engine_are_of_all_its_gpus(tmp_path: Path) -> None:
    """Worked by hand: two GPUs of 9, 5 and 20 W."""
    kind = load(tmp_path, GOOD).engine("g", "M")
    assert (18.0, 10.0, 40.0, 45.0) == (
        kind.draw.idle_watts, kind.draw.parked_watts, kind.draw.start_watts, kind.draw.start_s
    )  # fmt: skip
    assert ((8.0, 64.0), 1.0, "a test") == (kind.batch_range, kind.usd_per_gpu_hour, kind.basis)


# -- where workers start

MODELS = {"chat": ModelConfig(weights="meta-llama/Llama-3.1-8B-Instruct")}
MODELS |= {name: ModelConfig() for name in ("llama-3.1-8b", "unknown", "gpt-oss-20b", "M")}


def spec(**fields: object) -> WorkerSpec:
    words: dict[str, object] = {"worker_id": "w-0", "engine": "vllm", "model": "chat", "num_gpus": 1, **fields}
    return WorkerSpec(**words)  # type: ignore[arg-type]


def test_workers_with_gpus_are_told_by_every_name_of_the_gpu() -> None:
    """The model by the name it is served under, or by its weights'."""
    [[found]] = with_published_curves([[spec()]], MODELS)
    assert {"H100", "B200", "NVIDIA H100 80GB HBM3", "NVIDIA B200"} < set(found.prior_curves)
    assert CATALOGUE.engine("B200", "llama-3.1-8b").curves == found.prior_curves["NVIDIA B200"]
    [[found]] = with_published_curves([[spec(model="llama-3.1-8b")]], MODELS)
    assert CATALOGUE.engine("H100", "llama-3.1-8b").curves == found.prior_curves["NVIDIA H100 80GB HBM3"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=WorkerSpec) == found


@pytest.mark.parametrize("fields", [{"num_gpus": 8}, {"model": "unknown"}, {"model": "gpt-oss-20b"}])
def test_engines_that_nobody_measured_are_told_nothing(fields: dict[str, object]) -> None:
    """Another number of GPUs is another curve; a mixture of experts has none."""
    [[found]] = with_published_curves([[spec(**{"model": "llama-3.1-8b", **fields})]], MODELS)
    assert {} == found.prior_curves


def test_without_gpus_no_catalogue_is_read(tmp_path: Path) -> None:
    """A laptop needs none; who has a GPU hears what is wrong with his."""
    cpu = [[spec(num_gpus=0)], [spec(engine="simulated")]]
    assert cpu == with_published_curves(cpu, MODELS, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file"):
        with_published_curves([*cpu, [spec()]], MODELS, tmp_path / "none.yaml")


def test_an_operators_own_catalogue_is_taken(tmp_path: Path) -> None:
    """Whole, in place of ours."""
    (tmp_path / "c.yaml").write_text(GOOD)
    [[found]] = with_published_curves([[spec(model="M", num_gpus=2)]], MODELS, tmp_path / "c.yaml")
    assert {"G", "GPU of G"} == set(found.prior_curves)
    assert (8.0, 64.0) == found.prior_curves["G"].batch_range
