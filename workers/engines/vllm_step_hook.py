"""vLLM's schedulers with a tap: the step hook. Runs in vLLM's engine process, named there by ``--scheduler-cls``.

``workers.engines.vllm`` names the class and probes the signatures first. It must never block the engine or raise into
it; on an error of its own it closes its socket and lets vLLM run on without it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from workers.engines.vllm_step_tap import open_tap

logger = logging.getLogger("jouleway.step_hook")

EXPECTED = {
    "schedule": ("self", "throttle_prefills"),
    "update_from_output": ("self", "scheduler_output", "model_runner_output"),
    "finish_requests": ("self", "request_ids", "finished_status"),
    "get_request_counts": ("self",),
    "get_kv_cache_usage": ("self",),
}
"""Parameters of what is overridden or called, as in the tested range of versions."""


def probe() -> tuple[str, ...]:
    """What differs in the installed vLLM from what the hook was written for; empty when all is well."""
    differences = []
    for name, expected in EXPECTED.items():
        method = getattr(Scheduler, name, None)
        found = tuple(inspect.signature(method).parameters) if callable(method) else None
        if found != expected:
            differences.append(f"Scheduler.{name}{found or ' is missing'}, expected {expected}")
    if not issubclass(AsyncScheduler, Scheduler):
        differences.append("AsyncScheduler is no Scheduler")
    return tuple(differences)


class _Hook:
    """One scheduler's tap and its way out; ``is_on`` until its first error."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        opened = open_tap()
        self.is_on = opened is not None
        if opened is not None:
            self.tap, self._socket = opened

    def scheduled(self, output: Any) -> None:
        try:
            self.tap.scheduled(output)
        except Exception as error:
            self.give_up(error)

    def stopped(self, requests: Iterable[Any]) -> None:
        try:
            self.tap.stopped(requests)
        except Exception as error:
            self.give_up(error)

    def booked(self, output: Any, model_output: Any, emitted_by_client: Any) -> None:
        scheduler = self._scheduler

        def sampled(name: str) -> int:
            return len(model_output.sampled_token_ids[model_output.req_id_to_index[name]])

        def emitted(name: str) -> int:
            outputs = (row for client in emitted_by_client.values() for row in client.outputs)
            return next((len(row.new_token_ids) for row in outputs if row.request_id == name), 0)

        try:
            self.tap.booked(
                output,
                finished=scheduler.finished_req_ids,
                sampled=sampled,
                emitted=emitted,
                counts=scheduler.get_request_counts(),
                kv_used_ratio=scheduler.get_kv_cache_usage(),
            )
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """The engine must not suffer from its meter; the reader sees the socket end."""
        self.is_on = False
        self._socket.close()
        logger.error("the step hook failed and is off: %s", type(error).__name__)


def _metered(scheduler: type[Any]) -> type[Any]:
    """One of vLLM's schedulers with the hook; both have the same three methods to listen at."""

    class Metered(scheduler):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._hook = _Hook(self)

        def schedule(self, throttle_prefills: bool = False) -> Any:
            output = super().schedule(throttle_prefills)
            if self._hook.is_on:
                self._hook.scheduled(output)
            return output

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            hook = self._hook
            if not hook.is_on:
                return super().update_from_output(scheduler_output, model_runner_output)
            hook.tap.returned()
            emitted = super().update_from_output(scheduler_output, model_runner_output)
            if hook.is_on:
                hook.booked(scheduler_output, model_runner_output, emitted)
            return emitted

        def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
            stopped = super().finish_requests(request_ids, finished_status)
            if stopped and self._hook.is_on:
                self._hook.stopped(stopped)
            return stopped

    return Metered


MeteredScheduler = _metered(Scheduler)
"""Without overlap (the CPU build runs it)."""

MeteredAsyncScheduler = _metered(AsyncScheduler)
"""One step ahead of the device."""
