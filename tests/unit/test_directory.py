"""The fold of changes: each whole or not at all, once, and the same every time."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting import changes, directory, known_changes
from scheduler.accounting.changes import Change, Deed, KeyTerms, Owner, Role, TenantTerms
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import ChangeRefused, Refusal
from tests.directory_words import (
    NOW_US,
    SECOND_US,
    TWO_TENANTS,
    WHO,
    admin_key,
    changed,
    directory_of,
    key,
    key_id,
    sha256,
    tenant,
    tokens,
)

A, B, R = key_id("secret-a"), key_id("secret-b"), key_id("secret-r", "adm-")


def after(*deeds: Deed) -> Directory:
    """The two tenants, and then these."""
    return directory_of([*TWO_TENANTS, *deeds])


def refused(standing: Directory, deed: Deed, at_us: int = NOW_US + 100 * SECOND_US) -> ChangeRefused:
    """The refusal; that nothing changed is shown here too."""
    before = standing.state()
    with pytest.raises(ChangeRefused) as caught:
        standing.apply(Change(change_id="chg-x", at_us=at_us, who=WHO, deed=deed))
    assert before == standing.state()
    assert not standing.knows("chg-x")
    return caught.value


# -- what each deed does


def test_tenants_are_created_changed_closed_and_reopened() -> None:
    """A closed one keeps everything that it had."""
    standing = after(
        changes.TenantChanged(name="other", terms=TenantTerms(max_tier="flex", weight_micro=5_000_000)),
        changes.TenantClosed(name="acme"),
        changes.TenantClosed(name="acme"),
    )
    assert ("flex", 5_000_000) == (
        standing.tenants["other"].terms.max_tier,
        standing.tenants["other"].terms.weight_micro,
    )
    assert NOW_US + 7 * SECOND_US == standing.tenants["acme"].closed_us
    standing.apply(changed(changes.TenantReopened(name="acme"), first=50)[0])
    assert None is standing.tenants["acme"].closed_us
    assert ["search"] == list(standing.tenants["acme"].projects)
    assert [A] == [each.key_id for each in standing.keys_of("acme")]


def test_budgets_are_set_on_every_level() -> None:
    """They replace what was there."""
    one = (tokens(1),)
    standing = after(
        changes.BudgetsSet(level="tenant", name="acme", budgets=one),
        changes.BudgetsSet(level="task", name="acme", budgets=one),
        changes.BudgetsSet(level="project", name="acme/search", budgets=one),
        changes.BudgetsSet(level="project", name="acme/default", budgets=one),
        changes.BudgetsSet(level="key", name=A, budgets=one),
    )
    acme = standing.tenants["acme"]
    assert (one, one, {"search": one, "default": one}) == (acme.budgets, acme.task_budgets, acme.projects)
    assert one == standing.keys[A].budgets


def test_a_rotated_key_keeps_its_id_its_budgets_and_for_a_while_its_old_secret() -> None:
    """So that nothing counts anew."""
    standing = after(
        changes.BudgetsSet(level="key", name=A, budgets=(tokens(5),)),
        changes.KeyRotated(key_id=A, sha256=sha256("newer"), overlap_s=60),
    )
    rotated = standing.keys[A]
    assert (("search", (tokens(5),)), NOW_US + 67 * SECOND_US) == (
        (rotated.project, rotated.budgets), rotated.secrets[1].until_us,
    )  # fmt: skip
    assert [A, A] == [standing.owner_of(sha256(secret)).key_id for secret in ("newer", "secret-a")]  # type: ignore[union-attr]


def test_a_moved_key_is_its_new_tenants() -> None:
    """Within a tenant and between two."""
    standing = after(changes.KeyMoved(key_id=B, tenant="acme", project="search"))
    assert ("acme", "search") == (standing.keys[B].tenant, standing.keys[B].project)
    assert [[A, B], []] == [[each.key_id for each in standing.keys_of(name)] for name in ("acme", "other")]
    standing.apply(changed(changes.KeyMoved(key_id=B, tenant="acme", project=None), first=50)[0])
    assert None is standing.keys[B].project


def test_a_key_is_changed_and_revoked() -> None:
    """Revoking twice keeps the first moment."""
    standing = after(
        changes.KeyChanged(key_id=A, terms=KeyTerms(label="ci", max_tier="flex", expires_us=NOW_US + 10**9)),
        changes.KeyRevoked(key_id=A),
        changes.KeyRevoked(key_id=A),
    )
    assert ("flex", NOW_US + 7 * SECOND_US) == (standing.keys[A].terms.max_tier, standing.keys[A].revoked_us)


def test_admin_keys_have_the_same_life() -> None:
    """Created, rotated, revoked."""
    standing = after(changes.AdminKeyRotated(key_id=R, sha256=sha256("r2"), overlap_s=60))
    assert (Role.READ, 2) == (standing.admin_keys[R].role, len(standing.admin_keys[R].secrets))
    for number in (50, 51):
        standing.apply(changed(changes.AdminKeyRevoked(key_id=R), first=number)[0])
    assert NOW_US == standing.admin_keys[R].revoked_us


def test_the_owner_is_the_last_that_was_said() -> None:
    """Nobody at first."""
    assert None is Directory().owner
    standing = after(*(changes.OwnerSet(owner=owner, file_sha256="0" * 64) for owner in (Owner.FILE, Owner.API)))
    assert standing.owner is not None
    assert Owner.API is standing.owner.owner


def test_projects_come_and_go() -> None:
    """A project that no living key names."""
    standing = after(
        changes.KeyRevoked(key_id=A),
        changes.ProjectRemoved(tenant="acme", name="search"),
        changes.ProjectCreated(tenant="acme", name="own"),
        changes.TenantChanged(name="acme", terms=TenantTerms(project="own")),
    )
    assert ({"own": ()}, "own") == (standing.tenants["acme"].projects, standing.tenants["acme"].terms.project)


def test_a_denied_access_changes_nothing() -> None:
    """Not even what is remembered."""
    denied = changes.AccessDenied(listener="admin", source="::1", route="/", status=401, code="x", also_denied=0)
    standing, (change,) = after(), changed(denied, first=50)
    before = standing.state()
    assert (False, False) == (standing.check(change), standing.apply(change))
    assert (before, False) == (standing.state(), standing.knows(change.change_id))


def test_whose_a_secret_was_is_known_by_all_of_its_hash() -> None:
    """Its first digits are not enough; a revoked one is still known."""
    standing = after(changes.KeyRevoked(key_id=A))
    found = standing.owner_of(sha256("secret-a"))
    assert found is not None
    assert (A, R) == (found.key_id, standing.owner_of(sha256("secret-r")).key_id)  # type: ignore[union-attr]
    assert [None, None] == [standing.owner_of(each) for each in (sha256("secret-a")[:10] + "0" * 54, sha256("nobody"))]


# -- what is refused

UNKNOWN, CONFLICT, INVALID = Refusal


@pytest.mark.parametrize(
    ("deed", "kind", "code", "field"),
    [
        (tenant("acme"), CONFLICT, "duplicate_name", "name"),
        (tenant("Acme"), INVALID, "invalid_value", "name"),
        (changes.TenantCreated(name="n", budgets=(tokens(-1),)), INVALID, "invalid_value", "budgets[0]"),
        (changes.TenantCreated(name="n", task_budgets=(tokens(-1),)), INVALID, "invalid_value", "task_budgets[0]"),
        (changes.TenantChanged(name="no", terms=TenantTerms()), UNKNOWN, "unknown_tenant", "name"),
        (changes.TenantChanged(name="acme", terms=TenantTerms(project="no")), UNKNOWN, "unknown_project", "project"),
        (changes.TenantClosed(name="no"), UNKNOWN, "unknown_tenant", "name"),
        (changes.TenantReopened(name="no"), UNKNOWN, "unknown_tenant", "name"),
        (changes.ProjectCreated(tenant="no", name="p"), UNKNOWN, "unknown_tenant", "tenant"),
        (changes.ProjectCreated(tenant="acme", name="search"), CONFLICT, "duplicate_name", "name"),
        (changes.ProjectCreated(tenant="acme", name="a/b"), INVALID, "invalid_value", "name"),
        (changes.ProjectRemoved(tenant="acme", name="no"), UNKNOWN, "unknown_project", "name"),
        (changes.ProjectRemoved(tenant="acme", name="search"), CONFLICT, "in_use", "name"),
        (changes.BudgetsSet(level="tenant", name="no", budgets=()), UNKNOWN, "unknown_tenant", "name"),
        (changes.BudgetsSet(level="project", name="acme/no", budgets=()), UNKNOWN, "unknown_project", "name"),
        (changes.BudgetsSet(level="key", name="key-no", budgets=()), UNKNOWN, "unknown_key", "name"),
        (changes.BudgetsSet(level="fleet", name="acme", budgets=()), INVALID, "invalid_value", "level"),
        (key("new", "no"), UNKNOWN, "unknown_tenant", "tenant"),
        (key("new", project="no"), UNKNOWN, "unknown_project", "project"),
        (key("new", max_tier="priority"), INVALID, "beyond_tenant", "max_tier"),
        (key("new", data_class="general"), INVALID, "beyond_tenant", "data_class"),
        (key("new", zones=("hall-c",)), INVALID, "beyond_tenant", "zones"),
        (key("new", expires_us=NOW_US), INVALID, "invalid_value", "expires"),
        (key("secret-b"), CONFLICT, "duplicate_key", "sha256"),
        (key("secret-r"), CONFLICT, "duplicate_key", "sha256"),
        (changes.KeyCreated(key_id="key-01", sha256=sha256("x"), tenant="acme"), INVALID, "invalid_value", "key_id"),
        (changes.KeyChanged(key_id="key-no", terms=KeyTerms()), UNKNOWN, "unknown_key", "key_id"),
        (changes.KeyChanged(key_id=A, terms=KeyTerms(zones=("x",))), INVALID, "beyond_tenant", "zones"),
        (changes.KeyChanged(key_id=A, terms=KeyTerms(expires_us=1)), INVALID, "invalid_value", "expires"),
        (changes.KeyRotated(key_id="key-no", sha256=sha256("x"), overlap_s=0), UNKNOWN, "unknown_key", "key_id"),
        (changes.KeyRotated(key_id=A, sha256="x", overlap_s=0), INVALID, "invalid_value", "sha256"),
        (changes.KeyRotated(key_id=A, sha256=sha256("x"), overlap_s=-1), INVALID, "invalid_value", "overlap_s"),
        (changes.KeyRotated(key_id=A, sha256=sha256("secret-a"), overlap_s=0), CONFLICT, "duplicate_key", "sha256"),
        (changes.KeyRevoked(key_id="key-no"), UNKNOWN, "unknown_key", "key_id"),
        (changes.KeyRevoked(key_id=R), UNKNOWN, "unknown_key", "key_id"),
        (changes.KeyMoved(key_id=A, tenant="no", project=None), UNKNOWN, "unknown_tenant", "tenant"),
        (changes.KeyMoved(key_id=A, tenant="other", project="search"), UNKNOWN, "unknown_project", "project"),
        (admin_key("secret-a"), CONFLICT, "duplicate_key", "sha256"),
        (admin_key("x", label="<>"), INVALID, "invalid_value", "label"),
        (changes.AdminKeyRevoked(key_id=A), UNKNOWN, "unknown_key", "key_id"),
        (changes.AdminKeyRotated(key_id="adm-no", sha256=sha256("x"), overlap_s=0), UNKNOWN, "unknown_key", "key_id"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_changes_nothing(deed: Deed, kind: Refusal, code: str, field: str) -> None:
    """With a word that programs read and a field that people find."""
    error = refused(after(), deed)
    assert (kind, code, field) == (error.kind, error.code, error.field)


@pytest.mark.parametrize(
    "deed",
    [
        changes.ProjectCreated(tenant="acme", name="p"),
        changes.BudgetsSet(level="tenant", name="acme", budgets=()),
        key("new"),
        changes.KeyChanged(key_id=A, terms=KeyTerms()),
        changes.KeyRotated(key_id=A, sha256=sha256("x"), overlap_s=0),
        changes.KeyMoved(key_id=B, tenant="acme", project=None),
    ],
)
def test_of_a_closed_tenant_nothing_can_be_made(deed: Deed) -> None:
    """It is reopened first; its keys can still be revoked."""
    standing = after(changes.TenantClosed(name="acme"))
    assert "tenant_closed" == refused(standing, deed).code
    assert standing.apply(changed(changes.KeyRevoked(key_id=A), first=50)[0])


@pytest.mark.parametrize("ended", ["revoked", "expired"])
def test_a_key_at_its_end_stays_there(ended: str) -> None:
    """Nothing makes it valid again."""
    terms = KeyTerms(expires_us=NOW_US + 50 * SECOND_US)
    standing = after(
        changes.KeyRevoked(key_id=A) if ended == "revoked" else changes.KeyChanged(key_id=A, terms=terms),
        changes.AdminKeyRevoked(key_id=R),
    )
    for deed in (
        changes.KeyChanged(key_id=A, terms=KeyTerms()),
        changes.KeyRotated(key_id=A, sha256=sha256("x"), overlap_s=0),
        changes.KeyMoved(key_id=A, tenant="other", project=None),
        changes.AdminKeyRotated(key_id=R, sha256=sha256("x"), overlap_s=0),
    ):
        assert "key_ended" == refused(standing, deed).code


def test_the_own_project_of_a_tenant_stays() -> None:
    """Keys that name none are of it."""
    standing = after(
        changes.ProjectCreated(tenant="other", name="own"),
        changes.TenantChanged(name="other", terms=TenantTerms(project="own")),
    )
    assert "in_use" == refused(standing, changes.ProjectRemoved(tenant="other", name="own")).code


def test_a_revoked_key_may_be_given_anew() -> None:
    """The file may take one back; its old entry is gone then."""
    standing = after(changes.KeyRevoked(key_id=A), key("secret-a", "other"))
    assert ("other", None) == (standing.keys[A].tenant, standing.keys[A].revoked_us)
    assert [[], [B, A]] == [[each.key_id for each in standing.keys_of(name)] for name in ("acme", "other")]


def test_a_secret_that_took_over_first_digits_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoking the key before once more does not take them back."""
    alike = sha256("secret-a")[:10] + "0" * 54
    standing = after(
        changes.KeyRevoked(key_id=A),
        changes.KeyRotated(key_id=B, sha256=alike, overlap_s=0),
        changes.KeyRevoked(key_id=A),
    )
    assert B == standing.owner_of(alike).key_id  # type: ignore[union-attr]


# -- bounds


def test_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants, projects, keys, admin keys."""
    for name in ("MAX_TENANTS", "MAX_PROJECTS_PER_TENANT", "MAX_KEYS_PER_TENANT", "MAX_ADMIN_KEYS"):
        monkeypatch.setattr(directory, name, 2)
    standing = directory_of(
        [
            *TWO_TENANTS,
            changes.ProjectCreated(tenant="acme", name="q"),
            key("secret-c"),
            admin_key("secret-s"),
        ]
    )
    full: list[Deed] = [
        tenant("third"),
        changes.ProjectCreated(tenant="acme", name="r"),
        key("new"),
        changes.KeyMoved(key_id=B, tenant="acme", project=None),
        admin_key("new"),
    ]
    assert ["limit_reached"] * len(full) == [refused(standing, deed).code for deed in full]


def test_dead_keys_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of them is forgotten, whether it was revoked or expired."""
    monkeypatch.setattr(directory, "MAX_KEYS_PER_TENANT", 2)
    monkeypatch.setattr(directory, "MAX_ADMIN_KEYS", 1)
    standing = after(
        key("dies", expires_us=NOW_US + 7 * SECOND_US),
        changes.AdminKeyRevoked(key_id=R),
        key("next"),
        admin_key("next-admin"),
    )
    assert [A, key_id("next")] == [each.key_id for each in standing.keys_of("acme")]
    assert [key_id("next-admin", "adm-")] == list(standing.admin_keys)
    assert None is standing.owner_of(sha256("dies"))


def test_ids_of_changes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first; then nobody is sure of what is not there."""
    monkeypatch.setattr(known_changes, "MAX_KNOWN_CHANGES", 3)
    assert not directory_of(TWO_TENANTS[:3]).known.may_have_forgotten("chg-new")
    standing = directory_of(TWO_TENANTS)
    assert [False, True] == [standing.knows("chg-2"), standing.knows("chg-3")]
    assert [True, False] == [standing.known.may_have_forgotten(each) for each in ("chg-2", "chg-3")]
    standing.known.add("chg-2")
    assert [True, False] == [standing.knows("chg-2"), standing.knows("chg-3")]


# -- any sequence

NAMES = st.sampled_from(["a", "b", "Bad"])
SECRETS = st.sampled_from([f"s{number}" for number in range(6)])
PROJECTS = st.sampled_from([None, "p", "default"])
TIERS = st.sampled_from([None, "flex", "priority", "gold"])
CLASSES = st.sampled_from([None, "general", "core"])
ENDS = st.sampled_from([None, NOW_US + 5 * SECOND_US, NOW_US + 10**12])
BUDGETS = st.sampled_from([(), (tokens(5),), (tokens(5), tokens(5)), (tokens(-1),)])
KEY_IDS = SECRETS.map(key_id)
ADMIN_IDS = SECRETS.map(lambda secret: key_id(secret, "adm-"))
ZONES = st.sampled_from([None, ("x",), ("x", "y")])
KEY_TERMS = st.builds(KeyTerms, max_tier=TIERS, data_class=CLASSES, zones=ZONES, expires_us=ENDS)
TENANT_TERMS = st.builds(
    TenantTerms,
    project=st.sampled_from(["default", "p"]),
    max_tier=st.sampled_from(["flex", "priority"]),
    data_class=st.sampled_from(["general", "core"]),
    zones=ZONES,
)
HASHES = SECRETS.map(sha256)
DEEDS: st.SearchStrategy[Any] = st.one_of(
    st.builds(changes.TenantCreated, name=NAMES, terms=TENANT_TERMS, budgets=BUDGETS),
    st.builds(changes.TenantChanged, name=NAMES, terms=TENANT_TERMS),
    st.builds(changes.TenantClosed, name=NAMES),
    st.builds(changes.TenantReopened, name=NAMES),
    st.builds(changes.ProjectCreated, tenant=NAMES, name=st.just("p"), budgets=BUDGETS),
    st.builds(changes.ProjectRemoved, tenant=NAMES, name=st.just("p")),
    st.builds(changes.BudgetsSet, level=st.sampled_from(["tenant", "task"]), name=NAMES, budgets=BUDGETS),
    st.builds(changes.BudgetsSet, level=st.just("key"), name=KEY_IDS, budgets=BUDGETS),
    st.builds(
        lambda secret, tenant, project, terms: changes.KeyCreated(
            key_id=key_id(secret), sha256=sha256(secret), tenant=tenant, project=project, terms=terms
        ),
        SECRETS, NAMES, PROJECTS, KEY_TERMS,
    ),
    st.builds(changes.KeyChanged, key_id=KEY_IDS, terms=KEY_TERMS),
    st.builds(changes.KeyRotated, key_id=KEY_IDS, sha256=HASHES, overlap_s=st.sampled_from([0, 3, 60])),
    st.builds(changes.KeyRevoked, key_id=KEY_IDS),
    st.builds(changes.KeyMoved, key_id=KEY_IDS, tenant=NAMES, project=PROJECTS),
    st.builds(lambda secret, role: admin_key(secret, role), SECRETS, st.sampled_from(list(Role))),
    st.builds(changes.AdminKeyRotated, key_id=ADMIN_IDS, sha256=HASHES, overlap_s=st.just(3)),
    st.builds(changes.AdminKeyRevoked, key_id=ADMIN_IDS),
)  # fmt: skip


def assert_sound(standing: Directory, at_us: int) -> None:
    """Indexes say what the tables say; no two living keys share first digits; who there is belongs to a tenant."""
    for key_id_, each in standing.keys.items():
        assert key_id_ == each.key_id
        assert key_id_ in [other.key_id for other in standing.keys_of(each.tenant)]
        assert each.tenant in standing.tenants
    assert len(standing.keys) == sum(len(standing.keys_of(name)) for name in standing.tenants)
    prints = [
        (secret.fingerprint, each.key_id)
        for each in [*standing.keys.values(), *standing.admin_keys.values()]
        if each.revoked_us is None
        for secret in each.secrets
    ]
    assert len(prints) == len({print_ for print_, _ in prints})
    for print_, key_id_ in prints:
        assert key_id_ == standing._key_of[print_]


@given(st.lists(DEEDS, max_size=40))
def test_any_sequence_folds_to_the_same_whichever_way(deeds: list[Deed]) -> None:
    """An invalid change changes nothing, a change that comes again changes nothing, and rows make the same again."""
    standing, valid = Directory(), []
    for change in changed(*deeds):
        before = standing.state()
        try:
            is_new = standing.apply(change)
        except ChangeRefused:
            assert before == standing.state()
            continue
        assert is_new
        valid.append(change)
        assert_sound(standing, change.at_us)
    again = Directory.of(Change.of(change.fields()) for change in valid)
    assert standing.state() == again.state()
    assert [False] * len(valid) == [again.apply(change) for change in valid]
    assert standing.state() == again.state()
