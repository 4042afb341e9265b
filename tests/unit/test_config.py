"""One file, every key checked: what is wrong is named with its path, never with a value that could be a secret."""

import os
from pathlib import Path

import pytest

from scheduler.config import (
    BUILTIN_EMBEDDING_WEIGHTS,
    BUILTIN_WEIGHTS,
    MAX_CONFIG_BYTES,
    Config,
    ConfigError,
    load_config,
    unknown_variables,
    weights_folder,
    worker_specs,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

GOOD = """
models: {m: {}}
workers: [{name: w, engine: simulated, model: m}]
tenants: [{name: a}]
generate_keys: true
"""
SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("JOULEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))


def load(folder: Path, text: str | bytes) -> Config:
    path = folder / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path)


def problems_of(folder: Path, text: str | bytes) -> tuple[str, ...]:
    """What is wrong with it; the file is named in front of each line, and nothing is chained that could say more."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert str(folder / "c.yaml") == caught.value.where
    assert all(line.startswith(f"{folder / 'c.yaml'}: ") for line in str(caught.value).splitlines())
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.problems


# -- what loads


@pytest.mark.parametrize("name", ["cluster.yaml", "cpu.yaml", "demo.yaml", "gpu.yaml", "tenants.yaml"])
def test_every_configuration_that_we_ship_loads(name: str) -> None:
    """And gives at least one worker for each of its models."""
    config = load_config(CONFIGS / name)
    assert set(config.models) == {spec.model for group in worker_specs(config) for spec in group}


def test_the_smallest_configuration_has_sane_defaults(tmp_path: Path) -> None:
    """Loopback, two ports, Ray of its own, state below the user's folder."""
    config = load(tmp_path, GOOD)
    assert ("127.0.0.1", 8000, 8001, None) == (
        config.server.host, config.server.port, config.admin.port, config.ray.address
    )  # fmt: skip
    assert tmp_path / "state-home" / "jouleway" == config.state_dir


def test_the_file_owns_the_tenants_unless_the_api_does(tmp_path: Path) -> None:
    """Where the API does, tenants may begin without keys; the file is known by its name."""
    assert "file" == load(tmp_path, GOOD).directory
    config = load(tmp_path, GOOD.replace("generate_keys: true", "directory: api"))
    assert ("api", str(tmp_path / "c.yaml")) == (config.directory, config.source)
    assert config.source == config.model_copy(update={"currency": "EUR"}).source


def test_nothing_changes_after_loading(tmp_path: Path) -> None:
    """Frozen down to the sections."""
    config = load(tmp_path, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.generate_keys = False  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.server.port = 1  # type: ignore[misc]


def test_defaults_may_be_written_once_and_merged(tmp_path: Path) -> None:
    """YAML's own way; what stands beside the merge wins, and a key given twice is still an error."""
    merged = """
models: {m: {}}
workers:
  - &one {name: w, engine: simulated, model: m, count: 2}
  - {<<: *one, name: v}
tenants: [{name: a}]
generate_keys: true
"""
    assert [("w", 2), ("v", 2)] == [(worker.name, worker.count) for worker in load(tmp_path, merged).workers]
    (problem,) = problems_of(tmp_path, merged.replace("name: v}", "name: v, name: u}"))
    assert "key 'name' was given before" in problem


def test_relative_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is run; ~ is the user's home, absolute paths stay, a hub's name is no path."""
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "here").mkdir()
    config = load(
        tmp_path,
        """
server: {tls_cert_file: tls/cert.pem, tls_key_file: /etc/key.pem}
admin: {key_file: ~/admin.key}
state_dir: state
models: {m: {weights: ./w}, home: {weights: ~/w}, hub: {weights: some/name}, there: {weights: here}}
workers: [{name: w, engine: simulated, model: m, meter: {counter_path: counter}}]
tenants: [{name: a, keys: [{file: keys/a}]}]
""",
    )
    assert (tmp_path / "tls/cert.pem", Path("/etc/key.pem")) == (
        config.server.tls_cert_file, config.server.tls_key_file
    )  # fmt: skip
    assert (Path("/home/someone/admin.key"), tmp_path / "state") == (config.admin.key_file, config.state_dir)
    assert [str(tmp_path / "w"), "/home/someone/w", "some/name", str(tmp_path / "here")] == [
        config.models[name].weights for name in ("m", "home", "hub", "there")
    ]
    assert (tmp_path / "keys/a", tmp_path / "counter") == (
        config.tenants[0].keys[0].file, config.workers[0].meter.counter_path
    )  # fmt: skip


def test_a_home_that_nobody_has_is_said(tmp_path: Path) -> None:
    """Not a trace."""
    (problem,) = problems_of(tmp_path, GOOD + "state_dir: ~no-such-user-here/x\n")
    assert "~" in problem


# -- what does not: the file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("\tserver: {}", "line 1"),
        ("", "must be a mapping of sections"),
        ("[1, 2]", "must be a mapping of sections"),
        ("1: 2", "must be a mapping of sections"),
        ("server: {port: 1}\nserver: {port: 2}", "line 2, column 1: key 'server' was given before, in line 1"),
        ("server: {port: 1, port: 2}", "key 'port' was given before, in line 1"),
        ("? {a: 1}\n: 2", "a key must be a word"),
        ("? !!set {a}\n: 2", "a key must be a word"),
        ("[" * 100_000, "nested too deep"),
        ("{a: " * 1_000, "nested too deep"),
        ("a: \x00", "forbidden character"),
        (b"server: \xff\xfe", "not UTF-8"),
        (b" " * (MAX_CONFIG_BYTES + 1), f"more than {MAX_CONFIG_BYTES} bytes"),
        ("state_dir: 2026-13-45", "a number or a date"),
        ("server: {port: " + "9" * 5_000 + "}", "a number or a date"),
        ("a: &x 1\nb: &x 2", "an anchor (&name) is given twice"),
        ("a: 1\n---\nb: 2", "line 2"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    """With the line where there is one."""
    (problem,) = problems_of(tmp_path, text)
    assert words in problem
    assert len(problem) < 200


@pytest.mark.parametrize(
    "text",
    [
        f"server: {{host: *{SECRET}}}",
        f"server: {{host: !{SECRET} x}}",
        f"server: {{host: !{SECRET}!x x}}",
        f"server: {{port: !!int {SECRET}}}",
        f"server: {{port: !!timestamp {SECRET}}}",
        f"server: {{port: {SECRET}}}",
        f"server: {{host: [{SECRET}]}}",
        f"admin: {{host: {SECRET}}}",
        f"tenants: [{{name: a, keys: [{SECRET}]}}]",
        f"tenants: [{{name: a, keys: ['sha256:{SECRET}']}}]",
        f"tenants: [{{name: a, keys: [{{sha256: {SECRET}}}]}}]",
        f"tenants: [{{name: a, keys: {SECRET}}}]",
        f"tenants: {SECRET}",
        f"tenants: [{SECRET}]",
        f"workers: [{{name: w, engine: {SECRET}, model: m}}]",
        f"workers: [{{name: w, engine: vllm, model: m, environment: {{A: [{SECRET}]}}}}]",
        f"workers: [{{name: w, engine: vllm, model: m, engine_args: {{a: {{b: {SECRET}}}}}}}]",
        f"generate_keys: {SECRET}",
        f'server: {{host: "\\{SECRET}"}}',
        f'server: {{host: "{SECRET}',
    ],
)
def test_no_message_repeats_a_value(tmp_path: Path, text: str) -> None:
    """A value in the wrong place can be a key or a password."""
    for problem in problems_of(tmp_path, text):
        assert SECRET not in problem


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path, words in ((tmp_path / "none.yaml", "there is no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=words) as caught:
            load_config(path)
        assert str(path) == caught.value.where


# -- what does not: the keys


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("models:", "modles:", "modles: unknown key; did you mean models?"),
        ("name: w,", "nam: w,", "workers[0].nam: unknown key; did you mean name?"),
        ("name: w,", "", "workers[0].name: is missing"),
        ("model: m}", "model: x}", "workers[0].model: 'x' is not among models (m)"),
        ("models: {m: {}}", "models: {}", "workers[0].model: 'm' is not among models (none)"),
        (
            "engine: simulated",
            "engine: vllm",
            "models.m.weights: worker 'w' runs vllm and needs weights",
        ),
        ("[{name: a}]", "[{name: a}, {name: b}, {name: a}]", "tenants: tenant 'a' is given twice (entries 0 and 2)"),
        ("generate_keys: true", "", "tenants[0].keys: empty; give a key, or generate_keys: true on loopback"),
        ("generate_keys: true", "generate_keys: true\ndirectory: api",
         "generate_keys: keys are made by the API where directory is api; leave it out"),
        ("generate_keys: true", "generate_keys: true\ndirectory: both", "directory: input should be 'file' or 'api'"),
        ("{name: a}", "{name: A}", "tenants[0].name: string should match pattern '^[a-z0-9][a-z0-9._-]{0,62}$'"),
        ("model: m}", "model: m, window_s: 5s}",
         "workers[0].window_s: is a plain number of seconds, without a unit: the name says it"),
        ("model: m}", "model: m, window_ms: 5000}", "workers[0].window_ms: unknown key; did you mean window_s?"),
        ("generate_keys: true", "generate_keys: true\nserver: {port: 8001}", "admin.port: 8001 is also server.port"),
        ("generate_keys: true", "generate_keys: true\nserver: {port: yes}",
         "server: port is a number, not true or false"),
        ("generate_keys: true", "generate_keys: true\nserver:",
         "server: must be a mapping of keys to values; leave it out where it is empty"),
        ("generate_keys: true", "generate_keys: true\nlimits: {drain_s: .nan}",
         "limits.drain_s: input should be a finite number"),
        ("{name: a}", "{name: a, budgets: [{tokens: 1, per: 1h}, {tokens: -1, per: 1h}]}",
         "tenants[0].budgets[1].tokens: must be 0 or more"),
        ("{name: a}", "{name: a, budgets: [{tokens: .nan, per: 1h}]}",
         "tenants[0].budgets[0].tokens: input should be a finite number"),
        ("{name: a}", "{name: a, task_budgets: [{money: 1, per: week}]}",
         "tenants[0].task_budgets[0].per: no window that is known here: write 1h (a number with s, m, h or d), minute, "
         "hour, day, calendar minute, hour, day or month, or total"),
        ("{name: a}", "{name: a, budgets: [{token: 1, per: 1h}]}",
         "tenants[0].budgets[0].token: unknown key; did you mean tokens?"),
        ("{name: a}", "{name: a, projects: {p: {parent: q}}}",
         "tenants[0].projects.p.parent: unknown key; known here: budgets"),
        ("{name: a}", "{name: a, weight: 0}",
         "tenants[0].weight: must be from 0.001 to 1000; who shall get nothing gets no key, or a budget of 0"),
        ("{name: a}", "{name: a, data_class: secret}",
         "tenants[0].data_class: input should be 'general', 'important' or 'core'"),
        ("{name: a}", "{name: a, zones: [hall]}",
         "tenants[0].zones: there is no zone 'hall' (local); name it in zones, or give it a worker"),
        ("models: {m: {}}", "models: {m: {slo: {value_per_s: 5s}}}",
         "models.m.slo.value_per_s: is a plain number of currency units a second, without a unit: the name says it"),
        ("models: {m: {}}", "currency: euro\nmodels: {m: {}}", "currency: string should match pattern '^[A-Z]{3}$'"),
        ("generate_keys: true", "generate_keys: true\nserver: {host: 0.0.0.0}",
         "server: host 0.0.0.0 is beyond loopback: give tls_cert_file and tls_key_file, or behind_proxy: true"),
        ("generate_keys: true",
         "generate_keys: true\nserver: {host: 0.0.0.0, behind_proxy: true, allowed_hosts: [x.example]}",
         "generate_keys: host 0.0.0.0 is beyond loopback, where keys must be given"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_by_its_path(tmp_path: Path, old: str, new: str, problem: str) -> None:
    """With what was expected there, and the nearest right word."""
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    assert problem in problems_of(tmp_path, text)


def test_two_workers_of_one_name_and_one_key_of_two_tenants_are_refused(tmp_path: Path) -> None:
    """Worker ids would be the same; nobody could say whose request it is."""
    twice = GOOD.replace("model: m}]", "model: m}, {name: w, engine: simulated, model: m}]")
    assert ("workers: worker 'w' is given twice (entries 0 and 1)",) == problems_of(tmp_path, twice)
    key = "sha256:" + "0" * 64
    shared = GOOD.replace("[{name: a}]", f"[{{name: a, keys: ['{key}']}}, {{name: b, keys: ['{key}']}}]")
    (problem,) = problems_of(tmp_path, shared)
    assert "the same key is given twice" in problem
    assert "0" * 64 not in problem


def test_a_section_that_contains_itself_is_refused(tmp_path: Path) -> None:
    """A cycle of anchors: no level is its own parent."""
    cyclic = GOOD.replace("{name: a}", "&a {name: a, projects: {p: *a}}")
    (problem,) = problems_of(tmp_path, cyclic)
    assert problem.startswith("bad YAML: line 4")


# -- the environment


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of a section; the others stay as the file has them."""
    monkeypatch.setenv("JOULEWAY_SERVER__PORT", "9000")
    monkeypatch.setenv("JOULEWAY_MODELS__M__DEFAULT_OUTPUT_TOKENS", "7")
    config = load(tmp_path, GOOD + "server: {port: 8123, behind_proxy: true}\n")
    assert (9000, True, 7) == (config.server.port, config.server.behind_proxy, config.models["m"].default_output_tokens)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("JOULEWAY_SERVER__PORT", "x", "server.port: input should be a valid integer, unable to parse string as an "
         "integer (from the environment variable JOULEWAY_SERVER__PORT)"),
        ("JOULEWAY_SERVER__PROT", "1",
         "server.prot: unknown key; did you mean port? (from the environment variable JOULEWAY_SERVER__PROT)"),
        ("JOULEWAY_SEVER__PORT", "1", "environment: JOULEWAY_SEVER__PORT names no section of the configuration"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    """The key in the file may be right."""
    monkeypatch.setenv(name, value)
    assert (problem,) == tuple(line.rstrip(".") for line in problems_of(tmp_path, GOOD))


def test_a_variable_that_is_no_json_is_named_without_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole section may come from one variable."""
    monkeypatch.setenv("JOULEWAY_TENANTS", "{" + SECRET)
    (problem,) = problems_of(tmp_path, GOOD)
    assert "tenants" in problem
    assert SECRET not in problem


def test_variables_of_others_are_left_alone() -> None:
    """Only what looks like an override of a section."""
    assert [] == unknown_variables({"PATH": "x", "JOULEWAY_LOG_LEVEL": "x", "JOULEWAY_RAY__ADDRESS": "x", "A__B": "x"})


# -- plain values


def test_workers_become_plain_specs(tmp_path: Path) -> None:
    """Numbered names and seeds, one process each or one for all; every value of the file arrives."""
    config = load(
        tmp_path,
        """
models: {m: {}}
workers:
  - {name: apart, engine: simulated, model: m, count: 2, seed: 7, zone: hall-a, max_running: 9, cpus: 0.5,
     window_s: 3, calibration_s: 0, stall_timeout_s: 11, orphan_timeout_s: 12, policy: tokens, gpus: 2, can_park: false,
     environment: {A: b}, engine_args: {start_s: 1.5},
     meter: {kind: simulated, idle_watts: 4, watts_per_cpu_second: 5, counter_path: /tmp/counter}}
  - {name: together, engine: simulated, model: m, count: 3, one_process: true}
tenants: [{name: a}]
generate_keys: true
""",
    )
    groups = worker_specs(config)
    assert [["apart-0"], ["apart-1"], ["together-0", "together-1", "together-2"]] == [
        [spec.worker_id for spec in group] for group in groups
    ]
    spec = groups[1][0]
    assert (8, "hall-a", 9, 0.5, 3, 0, 11, 12, "tokens", 2, {"A": "b"}, {"start_s": 1.5}) == (
        spec.seed, spec.zone, spec.max_running, spec.num_cpus, spec.window_s, spec.calibration_s,
        spec.stall_timeout_s, spec.orphan_timeout_s, spec.policy, spec.num_gpus, spec.environment, spec.engine_args,
    )  # fmt: skip
    assert [False, False, True] == [group[0].can_park for group in groups]
    assert ("simulated", 4, 5, "/tmp/counter-1") == (
        spec.meter.kind, spec.meter.idle_watts, spec.meter.watts_per_cpu_second, spec.meter.counter_path
    )  # fmt: skip


def test_vllm_gets_its_weights_as_its_model(tmp_path: Path) -> None:
    """A hub's name as it is, a folder by its path; an argument that names a model wins."""
    config = load(
        tmp_path,
        GOOD.replace("{m: {}}", "{m: {}, hub: {weights: some/name}, here: {weights: ./w}}").replace(
            "model: m}]",
            "model: m}, {name: x, engine: vllm, model: hub}, {name: y, engine: vllm, model: here}, "
            "{name: z, engine: vllm, model: hub, engine_args: {model: other}}]",
        ),
    )
    assert [None, "some/name", str(tmp_path / "w"), "other"] == [
        group[0].engine_args.get("model") for group in worker_specs(config)
    ]


def test_builtin_weights_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Built or not; a hub's name has no folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "jouleway/models/smollm2-135m-instruct" == weights_folder(BUILTIN_WEIGHTS)
    assert tmp_path / "jouleway/models/all-minilm-l6-v2" == weights_folder(BUILTIN_EMBEDDING_WEIGHTS)
    assert (None, Path("/abs/w")) == (weights_folder("some/name"), weights_folder("/abs/w"))
