"""Every deed becomes a row of integers and text and comes back from it; none of them can hold a key."""

import json
from typing import Any

import msgspec
import pytest

from scheduler.accounting import changes
from scheduler.accounting.changes import FILE_ACTOR, NOBODY, WHATS, AccessDenied, Change, Deed, Owner, Role
from tests.directory_words import NOW_US, WHO, admin_key, changed, key, sha256, tenant, tokens

DEEDS: tuple[Deed, ...] = (
    changes.OwnerSet(owner=Owner.API, file_sha256=sha256("file")),
    tenant("acme", zones=("hall-a",), weight_micro=2_500_000),
    changes.TenantChanged(name="acme", terms=changes.TenantTerms(max_tier="flex")),
    changes.TenantClosed(name="acme"),
    changes.TenantReopened(name="acme"),
    changes.ProjectCreated(tenant="acme", name="search", budgets=(tokens(5),)),
    changes.ProjectRemoved(tenant="acme", name="search"),
    changes.BudgetsSet(level="tenant", name="acme", budgets=(tokens(5), tokens(9, "total"))),
    key("secret", expires_us=NOW_US + 1, label="ci"),
    changes.KeyChanged(key_id="key-0", terms=changes.KeyTerms(data_class="core")),
    changes.KeyRotated(key_id="key-0", sha256=sha256("new"), overlap_s=60),
    changes.KeyRevoked(key_id="key-0"),
    changes.KeyMoved(key_id="key-0", tenant="other", project=None),
    admin_key("admin", Role.BILLING),
    changes.AdminKeyRotated(key_id="adm-0", sha256=sha256("new"), overlap_s=0),
    changes.AdminKeyRevoked(key_id="adm-0"),
    AccessDenied(listener="admin", source="127.0.0.1", route="/metrics", status=401, code="x", also_denied=3),
)


def values_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in values_of(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in values_of(each)]
    return [value]


def test_every_deed_is_tried_here() -> None:
    """None is forgotten."""
    assert sorted(WHATS) == sorted(change.what for change in changed(*DEEDS))


@pytest.mark.parametrize("change", changed(*DEEDS), ids=lambda change: change.what)
def test_a_row_comes_back_as_the_same_change(change: Change) -> None:
    """Through canonical JSON, which knows no floats."""
    fields = json.loads(json.dumps(change.fields(), sort_keys=True))
    assert change == Change.of(fields)
    assert {"id", "at_us", "who", "what", "target", "values"} == fields.keys()
    assert set() == {type(leaf) for leaf in values_of(fields)} - {int, str, type(None)}
    assert fields["target"]


@pytest.mark.parametrize(
    ("deed", "target"),
    [
        (DEEDS[0], "directory"),
        (DEEDS[1], "acme"),
        (DEEDS[5], "acme/search"),
        (DEEDS[11], "key-0"),
        (DEEDS[15], "adm-0"),
        (DEEDS[16], "admin /metrics"),
    ],
)
def test_the_target_is_what_it_happened_to(deed: Deed, target: str) -> None:
    """In the words by which people know it."""
    assert target == Change(change_id="c", at_us=1, who=WHO, deed=deed).target


def test_who_is_a_key_or_a_word() -> None:
    """The file and nobody have no key."""
    assert [("file", None), ("nobody", None)] == [(who.role, who.key_id) for who in (FILE_ACTOR, NOBODY)]


@pytest.mark.parametrize(
    "spoilt",
    [
        {"what": "price_adopted"},
        {"values": {"key_id": 7}},
        {"values": {}},
        {"who": {"role": "admin"}},
        {"values": None},
    ],
)
def test_what_nobody_wrote_is_no_change(spoilt: dict[str, Any]) -> None:
    """A row of another kind, or a damaged one, is said and not guessed at."""
    with pytest.raises(ValueError, match="this is no change"):
        Change.of({**changed(changes.KeyRevoked(key_id="key-0"))[0].fields(), **spoilt})
    with pytest.raises(ValueError, match="this is no change"):
        Change.of({})


def test_no_deed_has_a_place_for_a_key() -> None:
    """Only hashes, public ids and words have fields."""
    names = {field.name for deed in Deed.__args__ for field in msgspec.structs.fields(deed)}
    assert set() == names & {"key", "secret", "token", "password"}
    assert "sha256" in names
