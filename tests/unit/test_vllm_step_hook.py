"""The hook's classes over stand-ins for vLLM's schedulers; over the real ones they run in tests/engine."""

import importlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from workers.engines.vllm_messages import SOCKET_VARIABLE, StepMessage, decode


class Scheduler:
    """The methods that the hook listens at, with vLLM's parameters."""

    def __init__(self) -> None:
        self.finished_req_ids: set[str] = set()

    def schedule(self, throttle_prefills: bool = False) -> Any:
        new = SimpleNamespace(req_id="r", num_computed_tokens=0, prompt_len=5)
        return SimpleNamespace(
            scheduled_new_reqs=[new],
            scheduled_cached_reqs=SimpleNamespace(req_ids=[], resumed_req_ids=set(), num_computed_tokens=[]),
            num_scheduled_tokens={"r": 8},
            total_num_scheduled_tokens=8,
            scheduled_spec_decode_tokens={"r": [1, 2, 3]},
            finished_req_ids=set(),
        )

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        self.finished_req_ids = {"r"}
        return {0: SimpleNamespace(outputs=[SimpleNamespace(request_id="r", new_token_ids=[7])])}

    def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Any]:
        return []

    def get_request_counts(self) -> tuple[int, int]:
        return 1, 2

    def get_kv_cache_usage(self) -> float:
        return 0.5


class AsyncScheduler(Scheduler):
    """One step ahead."""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, imported over stand-ins."""
    for name, found in (
        ("scheduler", {"Scheduler": Scheduler}),
        ("async_scheduler", {"AsyncScheduler": AsyncScheduler}),
    ):
        module = ModuleType(f"vllm.v1.core.sched.{name}")
        module.__dict__.update(found)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.delitem(sys.modules, "workers.engines.vllm_step_hook", raising=False)
    module = importlib.import_module("workers.engines.vllm_step_hook")
    monkeypatch.delitem(sys.modules, "workers.engines.vllm_step_hook")
    return module


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Somebody listens."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(1)
    monkeypatch.setenv(SOCKET_VARIABLE, str(path))
    with listener:
        yield listener


def read(peer: socket.socket) -> StepMessage:
    return decode(peer.recv(1 << 16))


MODEL_OUTPUT = SimpleNamespace(sampled_token_ids=[[7, 8]], req_id_to_index={"r": 0})


@pytest.mark.parametrize("name", ["MeteredScheduler", "MeteredAsyncScheduler"])
def test_a_step_is_told(hook: ModuleType, listener: socket.socket, name: str) -> None:
    """What was scheduled, sampled and put out; 3 drafts, 2 sampled, 1 put out: 2 rejected, 1 beyond the stop."""
    scheduler = getattr(hook, name)()
    peer, _ = listener.accept()
    output = scheduler.schedule()
    assert {0} == set(scheduler.update_from_output(output, MODEL_OUTPUT))
    message = read(peer)
    assert (1, 2, 0.5) == (message.num_running, message.num_waiting, message.kv_used_ratio)
    assert [("r", 5)] == [(newcomer.engine_id, newcomer.prompt_tokens) for newcomer in message.newcomers]
    assert ([8], [2], [1]) == tuple(
        [row.tokens for row in rows] for rows in (message.tokens, message.rejected, message.overrun)
    )
    assert [False] == [row.is_stopped for row in message.ended]
    assert 0 < message.scheduled_s <= message.done_s
    scheduler._hook._socket.close()
    peer.close()


def test_an_error_of_the_hook_is_not_the_engines(
    hook: ModuleType, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes silent, the reader sees the end, the scheduler works on."""
    scheduler = hook.MeteredScheduler()
    peer, _ = listener.accept()
    output = scheduler.schedule()
    del output.scheduled_new_reqs
    assert {0} == set(scheduler.update_from_output(output, MODEL_OUTPUT))
    assert b"" == peer.recv(100)
    assert "the step hook failed and is off: AttributeError" in caplog.text
    output = scheduler.schedule()
    assert {0} == set(scheduler.update_from_output(output, MODEL_OUTPUT))
    assert [] == scheduler.finish_requests(["r"], None)
    peer.close()


def test_without_a_listener_the_scheduler_is_vllms_own(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is followed, nothing is kept."""
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)
    scheduler = hook.MeteredScheduler()
    assert not scheduler._hook.is_on
    assert {0} == set(scheduler.update_from_output(scheduler.schedule(), MODEL_OUTPUT))


def test_other_signatures_are_found(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As expected: nothing to say. A parameter more, a method less, another family: each named."""
    assert () == hook.probe()
    monkeypatch.setattr(Scheduler, "schedule", lambda self, throttle_prefills, more: None)
    monkeypatch.delattr(Scheduler, "get_kv_cache_usage")
    monkeypatch.setattr(hook, "AsyncScheduler", object)
    assert ["schedule", "get_kv_cache_usage", "AsyncScheduler"] == [
        difference.removeprefix("Scheduler.").split("(")[0].split(" ")[0] for difference in hook.probe()
    ]
