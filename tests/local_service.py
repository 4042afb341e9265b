"""``RayCluster`` without Ray: a whole service over simulated engines on this event loop, and one request to it.

Used by tests of ``scheduler.service`` (``from tests.local_service import LocalCluster, complete``), which put it in the
place of ``scheduler.service.RayCluster``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler.commands.http_client import fetch
from scheduler.service import Service
from tests.local_link import LocalLink
from workers.build import build_worker
from workers.types import WorkerSpec


class Link(LocalLink):
    """With a name for its process; a successor counts its records from one again."""

    @property
    def incarnation(self) -> str:
        return f"process-{id(self.worker)}"


class LocalCluster:
    """``RayCluster`` without Ray: workers on this event loop."""

    is_standing = False

    def __init__(self, **_: object) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.links: list[Link] = []
        self.starting: list[Any] = []
        self.events: list[str] = []

    def connect(self) -> None:
        self.events.append("connect")

    def start(self, specs: list[WorkerSpec]) -> list[Link]:
        assert self.loop is not None

        async def begin() -> list[Link]:
            links = [Link(build_worker(spec)) for spec in specs]
            self.starting += [asyncio.create_task(link.worker.start()) for link in links]
            return links

        links = asyncio.run_coroutine_threadsafe(begin(), self.loop).result(10)
        self.links += links
        return links

    def find(self) -> list[Link]:
        raise AssertionError("a cluster of our own has nothing to find")

    def shutdown(self) -> None:
        self.events.append("shutdown")


async def complete(service: Service, key: str, headers: dict[str, str] | None = None, **fields: object) -> Any:
    body = {"model": "m", "prompt": "to be or not", "max_tokens": 8, "ignore_eos": True, **fields}
    given = {"Authorization": f"Bearer {key}", **(headers or {})}
    return await fetch(f"{service.url}/v1/completions", method="POST", payload=body, headers=given)
