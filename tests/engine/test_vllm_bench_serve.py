"""vLLM's own serving benchmark, unmodified, against `jouleway serve` (simulated engine): every request succeeds."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.jouleway_server import OPERATOR_KEY, relay_configuration, serving
from benchmarks.servers import ROOT, Server
from scheduler.api.streaming import KEEP_ALIVE
from scheduler.config import BUILTIN_WEIGHTS, weights_folder

NUM_PROMPTS = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(relay_configuration(), tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")]
)
def test_every_request_of_the_benchmark_succeeds(server: Server, backend: str, endpoint: str) -> None:
    """It streams with ignore_eos and reads usage; token counts are those asked for."""
    command = [
        sys.executable, "benchmarks/vllm_bench_serve.py", "--backend", backend, "--endpoint", endpoint,
        "--model", "simulated", "--tokenizer", str(weights_folder(BUILTIN_WEIGHTS)), "--dataset-name", "random",
        "--random-input-len", "64", "--random-output-len", "32", "--num-prompts", str(NUM_PROMPTS),
        "--request-rate", "50", "--ignore-eos",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, "--base-url", server.url],
        cwd=ROOT,
        env={**os.environ, "OPENAI_API_KEY": OPERATOR_KEY, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{NUM_PROMPTS}" == _figure(done.stdout, "Successful requests")
    assert f"{NUM_PROMPTS * 32}" == _figure(done.stdout, "Total generated tokens")


def test_its_client_reads_a_stream_that_began_with_keep_alives() -> None:
    """It strips what arrives, message by message: an answer that waited long must not look like none."""
    from vllm.benchmarks.lib.endpoint_request_func import StreamedResponseHandler

    handler = StreamedResponseHandler()
    arrived = [KEEP_ALIVE, KEEP_ALIVE, b'data: {"a":1}\n\n', b"data: [DONE]\n\n"]
    read = [message for part in arrived if (rest := part.strip()) for message in handler.add_chunk(rest)]
    assert ['data: {"a":1}', "data: [DONE]"] == read


def _figure(text: str, name: str) -> str:
    found = re.search(rf"{name}:\s+(\d+)", text)
    assert found is not None, text[-2000:]
    return found[1]
