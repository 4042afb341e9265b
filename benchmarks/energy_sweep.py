"""An energy sweep of real vLLM behind Jouleway on this machine: three rates, goodput per watt, idle, balance.

Called by hand: ``python benchmarks/energy_sweep.py``. Without a GPU or a readable RAPL counter the watts are modelled
from the engine's CPU-seconds (grade D): the curve then shows how the sweep works, not what a processor draws. It does
not wait for a quiet machine; the load that it began and ended with is in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine_tax import VLLM_ENVIRONMENT
from benchmarks.jouleway_server import ADMIN_KEY, OPERATOR_KEY, serving, vllm_configuration
from benchmarks.record import ROOT, record

OPTIONS = (
    "--repeats 1 --input-tokens 32 --output-tokens 8 --duration-s 40 --warmup-s 5 --idle-s 12 --cooldown-s 2 "
    "--slo-ttft-s 2 --slo-tpot-s 0.5"
)

NOTE = (
    "measured beside other work on shared cores, niced: where the load exceeds the cores the engine is starved, and "
    "rates are overload that are a tenth of what it did alone (engine_tax_vllm.json: about 250 tokens/s); watts are of "
    "grade D: modelled from CPU-seconds, no device was read. Runs that may not be quoted are on no curve."
)


def compact(document: dict[str, Any]) -> dict[str, Any]:
    """What a result keeps of a sweep: options, curves, and of each point the joules, watts and verdict."""
    kept = []
    for point in document["points"]:
        report, conditions = point["report"], point["conditions"]
        kept.append(
            {
                **{key: conditions[key] for key in ("setting", "rate_rps", "repeat")},
                **{key: point[key] for key in ("position", "idle_before", "steady", "idle_after", "missing")},
                **{key: point[key] for key in ("good_tokens_per_s", "good_tokens_per_joule")},
                "started_utc": report["started_utc"],
                "energy": report["energy"],
                "requests": report["requests"],
                "findings": report["verdict"]["findings"],
            }
        )
    options = {
        **document["options"],
        "settings": [{**each, "base_url": ""} for each in document["options"]["settings"]],
    }
    return {"options": options, "complete": document["complete"], "curves": document["curves"], "points": kept}


def main() -> int:
    """Serve, sweep, record; the sweep's own exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="0.8,1.6,3.2")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    configuration, _ = vllm_configuration()
    with tempfile.TemporaryDirectory() as folder:
        path, picture = Path(folder) / "sweep.json", Path(folder) / "sweep.png"
        with serving(configuration, Path(folder), environment=VLLM_ENVIRONMENT, timeout_s=300) as server:
            command = [sys.executable, "-m", "scheduler.cli", "bench", "sweep", server.url, "--rates", arguments.rates]
            command += [*shlex.split(OPTIONS), "--metrics-url", f"{server.admin_url}/metrics"]
            keys = {"JOULEWAY_API_KEY": OPERATOR_KEY, "JOULEWAY_ADMIN_KEY": ADMIN_KEY, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [*command, "--json", str(path), "--png", str(picture)], env={**os.environ, **keys}, check=False
            )
        values = compact(json.loads(path.read_text(encoding="utf-8")))
    path = record(
        "energy_sweep_vllm",
        {
            **values,
            "exit_code": done.returncode,
            "load_1min_before": round(load_before, 2),
            "load_1min_after": round(os.getloadavg()[0], 2),
            "note": NOTE,
        },
        what="jouleway bench sweep of real vLLM (SmolLM2-135M) behind Jouleway: good output tokens per joule of the "
        "meter over the arrival rate, idle watts before and after each point, balance of joules",
    )
    print(path.relative_to(ROOT))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
