"""Places are bounded of each caller and of all, given back however a question ends, and kept for operators."""

import asyncio
import threading

import pytest

from scheduler.accounting.errors import LedgerError
from scheduler.accounting.growth import Growth
from scheduler.accounting.receipts import Receipt
from scheduler.api import places
from scheduler.api.access import Hosts
from scheduler.api.admin import AdminApp
from scheduler.api.app import RelayApp
from scheduler.api.checkpoint import CHECKPOINT_PATH
from scheduler.api.errors import ApiError
from scheduler.api.limits import RelayLimits
from scheduler.api.places import Places
from scheduler.api.receipts import RECEIPTS_PREFIX
from scheduler.metrics import Metrics
from tests.asgi_client import ask
from tests.fake_dispatcher import FakeDispatcher
from tests.ledger_words import request_id
from tests.local_link import ADMIN_KEY, KEYS, admin_keys, caller_keys


async def is_busy(asked: Places, tenant: str | None) -> bool:
    """Whether one more is refused; what waits for its turn is not."""
    try:
        async with asyncio.timeout(0.001), asked.taken(tenant):
            return False
    except ApiError as error:
        return (503, "x_busy", 1) == (error.status, error.code, error.retry_after_s)
    except TimeoutError:
        return False


async def hold(asked: Places, tenant: str | None, until: asyncio.Event) -> None:
    async with asked.taken(tenant):
        await until.wait()


@pytest.mark.parametrize(("tenant", "other"), [("a", "b"), (None, "b"), ("a", None)])
async def test_one_caller_leaves_room_for_others(tenant: str | None, other: str | None) -> None:
    """Tenants to each other, tenants to operators, operators to tenants; then everything is free again."""
    asked, done = Places("x", code="x_busy"), asyncio.Event()
    tasks = [asyncio.create_task(hold(asked, tenant, done)) for _ in range(places.MAX_OPEN_PER_CALLER)]
    await asyncio.sleep(0)
    assert [True, False] == [await is_busy(asked, tenant), await is_busy(asked, other)]
    done.set()
    await asyncio.gather(*tasks)
    assert not await is_busy(asked, tenant)
    assert not asked._open


async def test_all_tenants_together_leave_an_operators_turn() -> None:
    """However many keep every place of theirs."""
    asked, done = Places("x", code="x_busy"), asyncio.Event()
    tasks = [asyncio.create_task(hold(asked, f"t{number}", done)) for number in range(places.MAX_OPEN)]
    await asyncio.sleep(0)
    assert await is_busy(asked, "new")
    async with asyncio.timeout(1), asked.taken(None):
        pass
    done.set()
    await asyncio.gather(*tasks)


async def test_a_ledger_that_is_away_is_a_503_and_gives_its_place_back() -> None:
    """As anything else that goes wrong."""
    asked = Places("x", code="x_busy")
    for error, expected in ((LedgerError("CANARY"), ApiError), (KeyError("x"), KeyError)):
        with pytest.raises(expected) as caught:
            async with asked.taken("a"):
                raise error
        assert "CANARY" not in str(caught.value)
    assert not asked._open


@pytest.mark.parametrize("path", [f"{RECEIPTS_PREFIX}{request_id(1)}", CHECKPOINT_PATH])
@pytest.mark.parametrize("listener", ["server", "admin"])
async def test_receipts_and_checkpoints_take_places(path: str, listener: str) -> None:
    """A flood of questions keeps few threads; whoever comes too many is told to come again."""
    may_go, running = threading.Event(), []

    def receipt(asked_id: str, tenant: str | None) -> Receipt | None:
        running.append(asked_id)
        may_go.wait(5)
        return None

    def growth(size: int) -> Growth:
        running.append(str(size))
        may_go.wait(5)
        return Growth(checkpoint="", from_size=size, proof=[])

    common = {"dispatcher": FakeDispatcher(), "hosts": Hosts(), "metrics": Metrics()}
    common |= {"receipts": receipt, "growths": growth}
    relay = RelayApp(keys=caller_keys(), models={}, limits=RelayLimits(), **common)  # type: ignore[arg-type]
    admin = AdminApp(keys=admin_keys(), **common)  # type: ignore[arg-type]
    app, key = (relay, KEYS["alpha"]) if listener == "server" else (admin, ADMIN_KEY)
    asked = [ask(app, path, key=key) for _ in range(places.MAX_OPEN_PER_CALLER)]
    await asyncio.sleep(0.01)
    refused = await ask(app, path, key=key).finished()
    assert (503, "proofs_busy", "1") == (refused.status, refused.error()["code"], refused.headers["retry-after"])
    num_running = len(running)
    may_go.set()
    assert num_running <= places.MAX_RUNNING
    assert {200 if path == CHECKPOINT_PATH else 404} == {(await each.finished()).status for each in asked}
