"""SIGKILL at random instants, hundreds of times: on simulated engines with both databases, and on real ones.

``JOULEWAY_KILLS`` and ``JOULEWAY_ENGINE_KILLS`` say how often (200 and 5). Figures are recorded in
``benchmarks/results/kill_sqlite.json``, ``kill_postgresql.json`` and ``kill_vllm.json``.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.record import record
from scheduler.config import BUILTIN_WEIGHTS, weights_folder
from tests.cluster.kills import NUM_CLIENTS, Run, kill_under_load, simulated_workers
from tests.cluster.plane import MODEL
from tests.cluster.standing import Place, place, standing_ray
from tests.postgres import running_server

pytestmark = pytest.mark.soak

NUM_KILLS = int(os.environ.get("JOULEWAY_KILLS", "200"))
NUM_ENGINE_KILLS = int(os.environ.get("JOULEWAY_ENGINE_KILLS", "5"))
SEED = int(os.environ.get("JOULEWAY_SEED", "0"))
MODELS = {MODEL: {"default_output_tokens": 64, "normalizer": "none", "price": {"input": 0.2, "output": 0.8}}}


@pytest.fixture
def at() -> Iterator[Place]:
    with place() as made, standing_ray(made):
        yield made


def figures(run: Run, *, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "clients": NUM_CLIENTS,
        "kills": dict(run.kills),
        "answers_seen_to_end": len(run.ended),
        "answers_broken": dict(run.broken),
        "rows": dict(sorted(run.rows.items())),
        "restart_to_ready_p50_s": round(statistics.median(run.recovery_s), 2) if run.recovery_s else None,
        "restart_to_ready_max_s": round(max(run.recovery_s), 2) if run.recovery_s else None,
        "energy_mj_by_worker": run.energy,
        "unattributed_mj_by_cause": dict(run.causes),
        "problems": run.problems[:20],
        "num_problems": len(run.problems),
    }


@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_hundreds_of_kills_lose_nothing_and_double_nothing(at: Place, database: str) -> None:
    """What a client saw end is in the ledger, once; holds are 0; the tree verifies; every joule has an account."""
    with running_server() as server:
        ledger = {"url": server.new_database()} if database == "postgresql" else {}
        config = at.configuration(simulated_workers(at), models=MODELS, ledger=ledger)
        run = kill_under_load(at, config, num_kills=NUM_KILLS, seed=SEED)
        version = server.version
    record(
        f"kill_{database}" if NUM_KILLS >= 100 else f"kill_{database}_short",
        {"simulated": True, **figures(run, seed=SEED)},
        command=f"JOULEWAY_KILLS={NUM_KILLS} JOULEWAY_SEED={SEED} make soak-kill",
        what="SIGKILL of control planes and simulated workers under load; then the ledger is held against what clients "
        "saw end and against the counter of each worker",
        versions={"postgresql": version} if database == "postgresql" else {},
    )
    assert [] == run.problems
    assert NUM_KILLS == run.kills.total()
    assert len(run.ended) > NUM_KILLS


@pytest.mark.timeout(3600)
def test_kills_of_real_engines(at: Place) -> None:
    """vLLM on the CPU with the demo's model: what it generated for the killed is the operator's, and it serves on."""
    workers = [
        {
            "name": "cpu",
            "engine": "vllm",
            "cpus": 1,
            "engine_args": {"max_model_len": 1024, "max_num_seqs": 16, "enforce_eager": True},
            "environment": {"VLLM_CPU_KVCACHE_SPACE": "1"},
            "calibration_s": 5,
            "window_s": 1.0,
        }
    ]
    price = {"input": 0.2, "output": 0.8}
    weights = str(weights_folder(BUILTIN_WEIGHTS))  # of this home, not of the place's
    models = {MODEL: {"weights": weights, "default_output_tokens": 64, "normalizer": "none", "price": price}}
    config = at.configuration(workers, models=models)
    run = kill_under_load(at, config, num_kills=NUM_ENGINE_KILLS, seed=SEED, max_pause_s=25.0, min_pause_s=8.0)
    record(
        "kill_vllm",
        figures(run, seed=SEED),
        command=f"JOULEWAY_ENGINE_KILLS={NUM_ENGINE_KILLS} make soak-kill",
        what="SIGKILL of control planes and of a real vLLM worker under load; then what clients saw is in the ledger",
    )
    assert [] == run.problems
    assert NUM_ENGINE_KILLS == run.kills.total()
    assert len(run.ended) > NUM_ENGINE_KILLS
