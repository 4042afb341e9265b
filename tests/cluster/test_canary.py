"""Text of prompts and answers is nowhere but on its way: no row, log, metric, receipt, export or core dump has it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.commands.http_client import fetch
from tests.cluster.plane import MODEL, host_pids
from tests.cluster.standing import ADMIN_KEY, KEYS, Place, ServedPlane, place

CANARY = f"canary-{secrets.token_hex(16)}"
LONG_CHARS = 24
"""So much of an answer cannot be anywhere by chance."""


@pytest.fixture(scope="module")
def at() -> Iterator[Place]:
    with place() as made:
        yield made


async def ask(plane: ServedPlane, path: str, body: object, **headers: str) -> Any:
    fields = {"Authorization": f"Bearer {KEYS['alpha']}", **headers}
    return await fetch(f"{plane.url}{path}", method="POST", payload=body, headers=fields, timeout_s=60.0)


async def everything(plane: ServedPlane) -> tuple[list[str], list[bytes]]:
    """Asks in every way with the canary in it; the texts to look for, and what was exported."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], "max_tokens": 40, "ignore_eos": True}
    prompt = {"model": MODEL, "prompt": CANARY, "max_tokens": 40, "ignore_eos": True}
    texts, request_ids = [CANARY], []
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/completions", prompt),
        ("/v1/completions", {**prompt, "stream": True}),
        ("/v1/completions", {**prompt, "n": 2}),
        ("/v1/completions", {**prompt, "prompt": [CANARY, CANARY + "2"]}),
    ):
        reply = await ask(plane, path, body, **{"x-jouleway-metering": "1"})
        assert 200 == reply.status, reply.body
        request_ids.append(reply.headers["x-request-id"])
        if not body.get("stream"):
            choices = reply.json()["choices"]
            answers = [choice.get("text") or choice["message"]["content"] for choice in choices]
            assert all(len(answer) >= LONG_CHARS for answer in answers)
            texts += [answer[:LONG_CHARS] for answer in answers] + [answer[-LONG_CHARS:] for answer in answers]
    for path, body, status in (
        ("/v1/chat/completions", {**chat, "unknown_field": CANARY}, 400),
        ("/v1/chat/completions", {**chat, "model": CANARY}, 404),
        ("/v1/chat/completions", b'{"model": "' + CANARY.encode() + b'", ', 400),
        ("/v1/completions", {**prompt, "max_tokens": 10**9}, 400),
        (f"/v1/{CANARY}", prompt, 404),
        ("/v1/jouleway/outcomes", {"request_id": request_ids[0], "accepted": True, "label": CANARY[:40]}, 200),
    ):
        reply = await ask(plane, path, body)
        assert (status, path) == (reply.status, path)
    await asyncio.sleep(2.0)  # windows close, postings come
    exported = []
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    tenant = {"Authorization": f"Bearer {KEYS['alpha']}"}
    for url, headers in [
        (f"{plane.admin_url}/metrics", admin),
        *((f"{plane.admin_url}/v1/jouleway/{name}", admin) for name in ("snapshot", "admin/audit", "queues")),
        (f"{plane.admin_url}/v1/jouleway/usage?from=0&to=9999999999&by=tenant,model,key,task", admin),
        *((f"{plane.url}/v1/jouleway/receipts/{each}", tenant) for each in request_ids),
        *((f"{plane.url}/v1/jouleway/requests/{each}", tenant) for each in request_ids),
    ]:
        reply = await fetch(url, headers=headers)
        assert 200 == reply.status, (url, reply.body)
        exported.append(reply.body)
    return texts, exported


def test_no_text_is_left_anywhere(at: Place) -> None:
    """Whatever the control plane, the worker and Ray wrote is read whole."""
    workers = [{"name": "sim", "calibration_s": 0.5, "window_s": 0.5, "engine_args": {"fixed_step_s": 0.002}}]
    plane = at.serve(at.configuration(workers))
    pids = [plane.process.pid, *host_pids(temp_dir=str(at.folder))]
    limits = [Path(f"/proc/{pid}/limits").read_text() for pid in pids]
    assert len(limits) >= 2
    for each in limits:
        (line,) = [line for line in each.splitlines() if line.startswith("Max core file size")]
        assert ["0", "0"] == line.split()[-3:-1], "a core dump would hold every prompt"
    texts, exported = asyncio.run(everything(plane))
    label = CANARY[:40]
    assert 0 == plane.stop()
    wanted = [text.encode() for text in texts] + [json.dumps(text).encode()[1:-1] for text in texts]
    places = [("an export", body) for body in exported]
    places += [(str(path), path.read_bytes()) for path in at.folder.rglob("*") if path.is_file()]
    assert any(name.endswith("ledger.db") for name, _ in places)
    assert any("serve-0.log" in name for name, _ in places)
    assert any("/logs/" in name for name, _ in places), "Ray's own logs are looked at"
    for name, data in places:
        # A label is a word of the tenant's own, kept on purpose: only there may a part of the canary stand.
        left = data.replace(f'"label":"{label}"'.encode(), b"")
        for text in wanted:
            assert text not in left, name
