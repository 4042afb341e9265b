"""Runs wrk against a streaming chat endpoint and reads its figures.

Called by ``relay_vs_litellm``. It must never know which server it loads.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SCRIPT = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
{headers}
done = function(summary, latency, requests)
  io.write(string.format('FIGURES {{"requests":%d,"duration_us":%d,"bytes":%d,"errors_connect":%d,"errors_read":%d,' ..
    '"errors_write":%d,"errors_status":%d,"errors_timeout":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d}}\\n',
    summary.requests, summary.duration, summary.bytes, summary.errors.connect, summary.errors.read,
    summary.errors.write, summary.errors.status, summary.errors.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
"""


class WrkMissing(Exception):
    """wrk is not installed."""


def load(
    url: str,
    *,
    body: Mapping[str, object],
    headers: Mapping[str, str],
    connections: int = 32,
    duration_s: int = 8,
    threads: int = 1,
) -> dict[str, float]:
    """Requests per second and latency of whole streams. Raises: WrkMissing; RuntimeError when wrk fails."""
    program = shutil.which("wrk")
    if program is None:
        raise WrkMissing("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
        script.write_text(SCRIPT.format(body=json.dumps(body), headers=lines), encoding="utf-8")
        command = [
            program,
            f"-t{threads}",
            f"-c{connections}",
            f"-d{duration_s}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + 60, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("FIGURES "):
            return _figures(json.loads(line.removeprefix("FIGURES ")))
    raise RuntimeError(f"wrk said nothing usable: {done.stdout[-500:]} {done.stderr[-500:]}")


def _figures(raw: Mapping[str, int]) -> dict[str, float]:
    errors = sum(
        raw[name] for name in ("errors_connect", "errors_read", "errors_write", "errors_status", "errors_timeout")
    )
    return {
        "requests_per_s": round(raw["requests"] / (raw["duration_us"] / 1e6), 2),
        "requests": raw["requests"],
        "errors": errors,
        "p50_ms": raw["p50_us"] / 1000,
        "p90_ms": raw["p90_us"] / 1000,
        "p99_ms": raw["p99_us"] / 1000,
        "max_ms": raw["max_us"] / 1000,
        "mbytes_per_s": round(raw["bytes"] / raw["duration_us"], 3),
    }
