"""A key runs once: again only where the first run was not answered, and never with another body."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.api.errors import ApiError
from scheduler.api.idempotency import Idempotency
from tests.core_words import thorough
from tests.fake_dispatcher import charge

PATH = "/v1/chat/completions"
DAY_S = 86_400.0


class Table:
    """The table with a clock that stands."""

    def __init__(self, **bounds: int) -> None:
        self.now_s = 1000.0
        self.table = Idempotency(clock=lambda: self.now_s, **bounds)

    def begin(self, key: str, *, body: bytes = b"{}", path: str = PATH, tenant: str = "alpha"):  # type: ignore[no-untyped-def]
        return self.table.begin(tenant, key.encode(), path, body, salt=tenant.encode())

    def answered(self, key: str, *, tenant: str = "alpha") -> None:
        self.table.end(self.begin(key, tenant=tenant), charge())

    def refused(self, key: str, **how: object) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.begin(key, **how)  # type: ignore[arg-type]
        return caught.value


def test_a_finished_run_is_remembered_with_its_charge() -> None:
    """Tokens and the receipt's id, not the text."""
    table = Table()
    table.answered("k")
    known = table.begin("k")
    assert charge() == known.charge


def test_a_key_in_flight_is_a_conflict() -> None:
    """Asking again in a second can help."""
    table = Table()
    table.begin("k")
    error = table.refused("k")
    assert (409, "idempotency_key_in_flight", "idempotency-key", 1) == (
        error.status, error.code, error.param, error.retry_after_s,
    )  # fmt: skip


@pytest.mark.parametrize("is_over", [True, False])
@pytest.mark.parametrize("other", [{"body": b"{ }"}, {"path": "/v1/completions"}])
def test_another_body_or_route_under_the_same_key_is_refused(is_over: bool, other: dict[str, str | bytes]) -> None:
    """Whether the first one runs or ran: repeating never helps."""
    table = Table()
    if is_over:
        table.answered("k")
    else:
        table.begin("k")
    error = table.refused("k", **other)
    assert (422, "idempotency_key_reused", None) == (error.status, error.code, error.retry_after_s)


def test_a_run_without_an_answer_frees_its_key() -> None:
    """Whoever got nothing may ask again, also with another body."""
    table = Table()
    table.table.end(table.begin("k"), None)
    assert 0 == len(table.table)
    assert table.begin("k", body=b"other").charge is None


def test_tenants_have_keys_of_their_own() -> None:
    """Nobody can learn or block what another one asks."""
    table = Table()
    table.answered("k")
    assert table.begin("k", tenant="beta").charge is None


def test_after_a_day_a_key_is_forgotten() -> None:
    """Not before, and not while it runs."""
    table = Table()
    running = table.begin("running")
    table.answered("k")
    table.now_s += DAY_S - 1
    assert table.begin("k").charge is not None
    table.now_s += 2
    assert 409 == table.refused("running").status
    table.table.end(running, charge())
    assert table.begin("k").charge is None


def test_a_tenant_beyond_its_share_forgets_its_own_oldest() -> None:
    """The keys of others stay."""
    table = Table(max_keys_per_tenant=2)
    table.answered("theirs", tenant="beta")
    for key in ("a", "b", "c"):
        table.answered(key)
    assert 3 == len(table.table)
    assert table.begin("b").charge is not None
    assert table.begin("theirs", tenant="beta").charge is not None
    assert table.begin("a").charge is None


def test_a_full_table_forgets_of_whoever_has_most() -> None:
    """A small tenant is not pushed out by a large one."""
    table = Table(max_keys=3)
    table.answered("theirs", tenant="beta")
    table.answered("a")
    table.answered("b")
    table.answered("new", tenant="gamma")
    assert table.begin("theirs", tenant="beta").charge is not None
    assert table.begin("b").charge is not None
    assert 3 == len(table.table)


def test_what_runs_is_never_forgotten() -> None:
    """It would run twice; better a refusal that says when to come again."""
    table = Table(max_keys_per_tenant=2)
    runs = [table.begin("a"), table.begin("b")]
    error = table.refused("c")
    assert (503, "idempotency_table_full", 10) == (error.status, error.code, error.retry_after_s)
    table.table.end(runs[1], charge())
    table.begin("c")
    assert 409 == table.refused("a").status


def test_neither_keys_nor_bodies_are_kept() -> None:
    """Hashes only, salted by tenant: equal bodies of two tenants cannot be told from the table."""
    table = Table()
    run, other = (
        table.begin("CANARY-key", body=b"CANARY-body"),
        table.begin("CANARY-key", body=b"CANARY-body", tenant="beta"),
    )
    assert "CANARY" not in repr(run)
    assert run.key_digest != other.key_digest
    assert run.body_digest != other.body_digest


@thorough
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("klmno"), st.sampled_from(["ask", "answer", "fail", "wait"]))
    )
)
def test_a_key_never_runs_twice_at_a_time_nor_after_its_answer(events: list[tuple[str, str, str]]) -> None:
    """A table with room for every key that is used forgets none within a day."""
    table = Table(max_keys=10, max_keys_per_tenant=5)
    running: dict[tuple[str, str], object] = {}
    answered: set[tuple[str, str]] = set()
    for tenant, key, event in events:
        at = (tenant, key)
        if event == "wait":
            table.now_s += 1.0
        elif event == "ask":
            with contextlib.suppress(ApiError):
                run = table.begin(key, tenant=tenant)
                if run.charge is None:
                    assert at not in running
                    assert at not in answered
                    running[at] = run
                else:
                    assert at in answered
        elif at in running:
            table.table.end(running.pop(at), charge() if event == "answer" else None)  # type: ignore[arg-type]
            if event == "answer":
                answered.add(at)
        assert len(running) + len(answered) == len(table.table)
