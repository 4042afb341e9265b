"""The routes of usage: rows and their pages, models side by side, both listeners, and a bound on open questions."""

import asyncio
import json
import threading
from typing import Any
from urllib.parse import urlencode

import pytest

from scheduler.accounting.errors import LedgerError
from scheduler.accounting.usage import HOUR_US, MemoryUsage, UsageRow
from scheduler.api import places, usage
from scheduler.api.access import Caller, Hosts
from scheduler.api.admin import AdminApp
from scheduler.api.app import RelayApp
from scheduler.api.errors import ApiError
from scheduler.api.limits import RelayLimits
from scheduler.api.usage import MODELS_PATH, USAGE_PATH, USAGE_PATHS, UsageDesk
from scheduler.core.request import Rates
from scheduler.metrics import Metrics
from tests.asgi_client import Asked, ask
from tests.fake_dispatcher import FakeDispatcher
from tests.local_link import ADMIN_KEY, KEYS, admin_keys, caller_keys
from tests.usage_rows import NOW_US, START_S, UNITS, caller, memory

ALPHA = caller("alpha")
PRICES = {"m": Rates(input_nano=10**9, output_nano=2 * 10**9, currency="EUR")}


def asked(who: Caller | None = ALPHA, path: str = USAGE_PATH, **words: Any) -> dict[str, Any]:
    pairs = {"from": START_S, **words}
    text = urlencode({name: value for name, value in pairs.items() if value is not None}, doseq=True).encode()
    return json.loads(usage.answer(path, text, memory(), who, now_us=NOW_US, prices=PRICES))


def refused(**words: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asked(**words)
    assert 400 == caught.value.status
    return caught.value


# -- rows


def test_rows_have_the_fields_of_usage() -> None:
    """Whole numbers, so that nothing is rounded; what is not grouped by is empty."""
    told = asked(by="tenant,day", to=START_S + 86_400)
    assert ("jouleway.usage", START_S, START_S + 86_400, ["tenant", "day"], False, None) == (
        told["object"], told["from_unix_s"], told["to_unix_s"], told["by"], told["has_more"], told["next_page"],
    )  # fmt: skip
    (row,) = told["rows"]
    assert set(UsageRow.__struct_fields__) == row.keys()
    assert ("alpha", "", START_S * 10**6, 5, 55, "EUR") == (
        row["tenant"], row["model"], row["bucket_us"], row["requests"], row["cost_nano"], row["currency"],
    )  # fmt: skip
    assert all(isinstance(value, int | str) for value in row.values())


def test_everything_is_one_row_by_default() -> None:
    """Until now."""
    (row,) = asked()["rows"]
    assert (0, 7) == (row["bucket_us"], row["requests"])


def test_time_is_grouped_by_its_words() -> None:
    """Hours begin with the hour."""
    rows = asked(by="hour")["rows"]
    assert [3, 1, 1, 1, 1] == [row["requests"] for row in rows]
    assert {0} == {row["bucket_us"] % HOUR_US for row in rows}
    assert 7 == len(asked(by="minute")["rows"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"model": "m"}, 4), ({"model": ["m", "n"]}, 7), ({"key": "key-alpha"}, 7), ({"task": ""}, 4),
        ({"task": "nightly", "model": "m"}, 2), ({"tier": "flex"}, 2), ({"project": "q"}, 3), ({"tenant": "beta"}, 0),
    ],
)  # fmt: skip
def test_filters(words: dict[str, Any], expected: int) -> None:
    """An empty task are the requests without one."""
    assert expected == sum(row["requests"] for row in asked(**words)["rows"])


@pytest.mark.parametrize("by", ["week", "tenant,", "day,hour", "model,model", "cost_nano", "tenant;day"])
def test_what_nobody_can_group_by_is_refused(by: str) -> None:
    """With the words that there are."""
    error = refused(by=by)
    assert ("by", True) == (error.param, "day" in error.message)


@pytest.mark.parametrize(
    "words", [{"limit": 0}, {"limit": 10_001}, {"from": None}, {"page": "x"}, {"group_by": "model"}]
)
def test_what_cannot_be_meant_is_refused(words: dict[str, Any]) -> None:
    """Nothing is guessed."""
    assert refused(**words).code in ("invalid_value", "unknown_parameter")


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_are_the_whole(limit: int) -> None:
    """In the order of the whole."""
    words: dict[str, Any] = {"who": None, "by": ["model,day", "tenant"], "limit": limit}
    pages = [asked(**words)]
    while pages[-1]["has_more"]:
        assert limit == len(pages[-1]["rows"])
        pages.append(asked(**words, page=pages[-1]["next_page"]))
    assert asked(**{**words, "limit": 10_000})["rows"] == [row for page in pages for row in page["rows"]]


# -- models


def test_models_side_by_side() -> None:
    """Over the caller's own usage, at the prices of now."""
    told = asked(path=MODELS_PATH)
    assert ("list", ["m", "n"]) == (told["object"], [each["model"] for each in told["data"]])
    first = told["data"][0]
    assert (4, 10**9, 250.0, 2) == (
        first["requests"], first["input_price_nano"], first["input_tokens_per_kilobyte"], first["value"]["results"],
    )  # fmt: skip
    assert 4 * sum(UNITS.values()) == asked(None, MODELS_PATH)["data"][0]["requests"]


def test_models_are_compared_over_thirty_days_by_default() -> None:
    """Or over what is asked for."""
    told = asked(path=MODELS_PATH, **{"from": None})
    assert 30 * 86_400 <= told["to_unix_s"] - told["from_unix_s"] <= 30 * 86_400 + 61
    assert [3, 1] == [asked(path=MODELS_PATH, to=START_S + seconds)["data"][0]["requests"] for seconds in (86_400, 60)]
    with pytest.raises(ApiError, match="from"):
        asked(path=MODELS_PATH, **{"from": None, "to": START_S})


# -- both listeners


def relay(desk: UsageDesk | None) -> RelayApp:
    return RelayApp(
        dispatcher=FakeDispatcher(),  # type: ignore[arg-type]
        keys=caller_keys(), hosts=Hosts(), models={}, limits=RelayLimits(), metrics=Metrics(), usage=desk,
    )  # fmt: skip


def admin(desk: UsageDesk | None) -> AdminApp:
    return AdminApp(
        dispatcher=FakeDispatcher(),  # type: ignore[arg-type]
        keys=admin_keys(), hosts=Hosts(), metrics=Metrics(), usage=desk,
    )  # fmt: skip


def desk(source: Any = None) -> UsageDesk:
    return UsageDesk(source or memory(), prices=lambda: PRICES, unix_clock=lambda: NOW_US / 1e6)


async def got(app: Any, path: str, key: str, **how: Any) -> Asked:
    return await ask(app, path, key=key, **how).finished()


@pytest.mark.parametrize("path", USAGE_PATHS)
async def test_a_tenant_and_the_operator_get_their_own_answers(path: str) -> None:
    """On their own listeners, by their own keys; never kept by a cache."""
    start = "from" if path.startswith("/v1/jouleway") else "start_time"
    url = f"{path}?{start}={START_S}"
    own = await got(relay(desk()), url, KEYS["alpha"])
    everybody = await got(admin(desk()), url, ADMIN_KEY)
    assert [(200, "no-store")] * 2 == [(each.status, each.headers["cache-control"]) for each in (own, everybody)]
    words = urlencode({start: START_S}).encode()
    for told, who in ((own, ALPHA), (everybody, None)):
        expected = usage.answer(path, words, memory(), who, now_us=NOW_US, prices=PRICES)
        assert json.loads(expected) == told.json()
    assert own.json() != everybody.json()


@pytest.mark.parametrize("path", USAGE_PATHS)
async def test_without_a_ledger_there_are_no_such_routes(path: str) -> None:
    """The words of any route that is not there, on both listeners."""
    for app, key in ((relay(None), KEYS["alpha"]), (admin(None), ADMIN_KEY)):
        missing, unknown = await got(app, path, key), await got(app, "/v1/jouleway/none", key)
        assert (404, "route_not_found", unknown.body) == (missing.status, missing.error()["code"], missing.body)


@pytest.mark.parametrize("path", USAGE_PATHS)
async def test_usage_is_read_with_a_key(path: str) -> None:
    """The other listener's key opens nothing; nothing can be written."""
    for app, key in ((relay(desk()), ADMIN_KEY), (admin(desk()), KEYS["alpha"])):
        assert 401 == (await got(app, path, key)).status
    for app, key in ((relay(desk()), KEYS["alpha"]), (admin(desk()), ADMIN_KEY)):
        assert 405 == (await got(app, path, key, method="DELETE")).status
        assert 400 == (await got(app, f"{path}?what=1", key)).status


class Away(MemoryUsage):
    """Its database does not answer."""

    def usage(self, **how: Any) -> list[UsageRow]:
        raise LedgerError("postgresql://CANARY: connection refused")


@pytest.mark.parametrize("path", USAGE_PATHS)
async def test_a_ledger_that_cannot_be_read_is_said_without_its_words(path: str) -> None:
    """On both listeners."""
    start = "from" if path.startswith("/v1/jouleway") else "start_time"
    for app, key in ((relay(desk(Away())), KEYS["alpha"]), (admin(desk(Away())), ADMIN_KEY)):
        asked = await got(app, f"{path}?{start}={START_S}", key)
        assert (503, "ledger_unavailable", "5") == (asked.status, asked.error()["code"], asked.headers["retry-after"])
        assert b"CANARY" not in asked.body


# -- how many at a time


class Slow(MemoryUsage):
    """Answers when told to; knows how many it answered at once."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go = threading.Event()
        self.num_running = self.num_most = 0
        self._lock = threading.Lock()

    def usage(self, **how: Any) -> list[UsageRow]:
        with self._lock:
            self.num_running += 1
            self.num_most = max(self.num_most, self.num_running)
        self.may_go.wait(5)
        with self._lock:
            self.num_running -= 1
        return []


async def test_open_questions_are_bounded() -> None:
    """So many run, some wait, and the others are told to come again; an operator is not one of them."""
    source = Slow()
    asking = desk(source)
    words = f"from={START_S}".encode()
    open_questions = [
        asyncio.create_task(asking.answer(USAGE_PATH, words, caller(f"t{index // places.MAX_OPEN_PER_CALLER}")))
        for index in range(places.MAX_OPEN)
    ]
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as caught:
        await asking.answer(USAGE_PATH, words, caller("new"))
    assert (503, "usage_busy", 1) == (caught.value.status, caught.value.code, caught.value.retry_after_s)
    operator = asyncio.create_task(asking.answer(USAGE_PATH, words, None))
    while source.num_running <= places.MAX_RUNNING:
        await asyncio.sleep(0.001)
    source.may_go.set()
    await asyncio.gather(operator, *open_questions)
    assert places.MAX_RUNNING + 1 == source.num_most


async def test_a_question_that_fails_gives_its_place_back() -> None:
    """However often."""
    asking = desk()
    for _ in range(places.MAX_OPEN + 1):
        with pytest.raises(ApiError) as caught:
            await asking.answer(USAGE_PATH, b"", ALPHA)
        assert 400 == caught.value.status
