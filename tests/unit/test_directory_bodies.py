"""What operators send becomes terms, strictly; no error repeats what was sent."""

from typing import Any

import msgspec
import pytest

from scheduler.accounting.changes import KeyTerms, TenantTerms
from scheduler.api.directory_bodies import (
    AdminKeyBody,
    BudgetBody,
    Ends,
    KeyBody,
    KeyPatch,
    Nothing,
    RotateBody,
    TenantBody,
    TenantPatch,
    budget_terms,
    end_us,
    new_key_terms,
    new_tenant_terms,
    patched_key_terms,
    patched_tenant_terms,
    read_body,
)
from scheduler.api.errors import ApiError
from tests.directory_words import NOW_US, SECOND_US, tokens


def refused(kind: type[msgspec.Struct], body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_body(body, kind)
    assert 400 == caught.value.status
    return caught.value


@pytest.mark.parametrize(
    ("kind", "body", "param", "words"),
    [
        (TenantBody, b"{}", None, "missing required field `name`"),
        (TenantBody, b'{"name": 7}', "name", "Expected `str`"),
        (TenantBody, b'{"name": "a", "zone": "x"}', None, "unknown field `zone`. Fields here: name, project"),
        (TenantBody, b'{"name": "a", "budgets": [{"tokens": "CANARY"}]}', "budgets[0].tokens", "Invalid decimal"),
        (TenantBody, b'{"name": "a", "weight": "CANARY"}', "weight", "Expected `float`"),
        (TenantPatch, b'{"is_closed": true}', "is_closed", "Not one of the words"),
        (AdminKeyBody, b'{"role": "CANARY"}', "role", "Not one of the words"),
        (KeyBody, b'{"zones": ["a", 3]}', "zones[1]", "Expected `str`"),
        (RotateBody, b'{"overlap_s": 1.5}', "overlap_s", "Expected `int`"),
        (Nothing, b'{"x": 1}', None, "Fields here: nothing"),
        (KeyBody, b"[]", None, "Expected `object`"),
    ],
)
def test_what_does_not_fit_is_named(kind: type[msgspec.Struct], body: bytes, param: str | None, words: str) -> None:
    """The field and what is known there, never what stood there."""
    error = refused(kind, body)
    assert ("invalid_value", param) == (error.code, error.param)
    assert words in error.message
    assert "CANARY" not in error.message


@pytest.mark.parametrize("body", [b"{", b"\xff", b'"', b'{"name": }', b'{"name": "\xff"}'])
def test_what_is_no_json_is_said(body: bytes) -> None:
    """In one sentence."""
    assert "invalid_json" == refused(TenantBody, body).code


def test_an_empty_body_is_an_empty_object() -> None:
    """Where nothing must be said."""
    assert 0 == read_body(b"", RotateBody).overlap_s
    read_body(b"", Nothing)


def test_budgets_are_written_as_in_the_file() -> None:
    """Numbers or text."""
    bodies = read_body(
        b'[{"tokens": 10, "per": "1h"}, {"money": "0.000000001", "per": "total"}]', tuple[BudgetBody, ...]
    )  # type: ignore[type-var]
    assert [10, 1] == [term.limit for term in budget_terms(bodies)]  # type: ignore[arg-type]
    with pytest.raises(ApiError) as caught:
        budget_terms((BudgetBody(),), "task_budgets")
    assert ("task_budgets", True) == (
        caught.value.param,
        "task_budgets[0]: one budget counts one thing" in caught.value.message,
    )


def test_a_new_tenant_has_the_files_defaults() -> None:
    """Both say the same where nothing is said."""
    assert TenantTerms() == new_tenant_terms(TenantBody(name="a"))
    body = read_body(b'{"name": "a", "weight": 2.5, "zones": ["x"], "max_tier": "flex"}', TenantBody)
    assert TenantTerms(weight_micro=2_500_000, zones=("x",), max_tier="flex") == new_tenant_terms(body)


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), 1e300, -1e300])
def test_a_weight_is_a_number(weight: float) -> None:
    """Its bounds are the directory's, but it must fit an integer."""
    with pytest.raises(ApiError):
        new_tenant_terms(TenantBody(name="a", weight=weight))


def test_a_patch_changes_what_it_names() -> None:
    """None is a value: everywhere, as its tenant's."""
    terms = TenantTerms(zones=("x",), max_tier="flex")
    assert terms == patched_tenant_terms(terms, TenantPatch())
    assert TenantTerms(max_tier="flex", weight_micro=500_000) == patched_tenant_terms(
        terms, read_body(b'{"zones": null, "weight": 0.5}', TenantPatch)
    )
    key = KeyTerms(label="ci", data_class="core", expires_us=5)
    assert key == patched_key_terms(key, KeyPatch(), now_us=NOW_US)
    patch = read_body(b'{"data_class": null, "expires_unix_s": null}', KeyPatch)
    assert KeyTerms(label="ci") == patched_key_terms(key, patch, now_us=NOW_US)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"expires_unix_s": None}, None),
        ({"expires_in_s": 1.5}, NOW_US + 1_500_000),
        ({"expires_unix_s": 1_800_000_000.25}, 1_800_000_000_250_000),
    ],
)
def test_an_end_is_a_moment_or_so_many_seconds_from_now(fields: dict[str, Any], expected: int | None) -> None:
    """In microseconds."""
    assert expected == end_us(Ends(**fields), now_us=NOW_US)
    assert expected == new_key_terms(KeyBody(**fields), now_us=NOW_US).expires_us


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_in_s": 0},
        {"expires_in_s": -1},
        {"expires_in_s": float("inf")},
        {"expires_in_s": float("nan")},
        {"expires_unix_s": 1e30},
        {"expires_in_s": 1, "expires_unix_s": 1_800_000_000.0},
        {"expires_in_s": 1, "expires_unix_s": None},
    ],
)
def test_an_end_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    """By its own name."""
    with pytest.raises(ApiError) as caught:
        end_us(Ends(**fields), now_us=NOW_US)
    assert str(caught.value.param).startswith("expires_")


def test_a_budget_of_each_measure_can_be_sent() -> None:
    """The words are those of the file."""
    assert (tokens(7),) == budget_terms((read_body(b'{"tokens": 7, "per": "1h"}', BudgetBody),))
    assert SECOND_US == 1_000_000
