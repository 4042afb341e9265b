"""The bounds of each value: what is taken, what is refused, and in which words."""

from collections.abc import Callable

import pytest

from scheduler.accounting.changes import KeyTerms, Role, TenantTerms
from scheduler.accounting.directory_values import (
    MAX_BUDGETS,
    MAX_LABEL_CHARS,
    MAX_LIFE_S,
    MAX_OVERLAP_S,
    MAX_SECRETS_PER_KEY,
    MAX_ZONES,
    AdminKey,
    ChangeRefused,
    Refusal,
    Secret,
    Tenant,
    TenantKey,
    check_budgets,
    check_end,
    check_key_terms,
    check_label,
    check_name,
    check_overlap,
    check_secret,
    check_sha256,
    check_tenant_terms,
    fingerprint_of,
    is_over,
    rotated,
)
from tests.directory_words import NOW_US, SECOND_US, key_id, sha256, tokens

TENANT = TenantTerms(max_tier="default", data_class="important", zones=("a", "b"))


def refused(check: Callable[[], object]) -> ChangeRefused:
    with pytest.raises(ChangeRefused) as caught:
        check()
    assert Refusal.INVALID is caught.value.kind
    assert str(caught.value).startswith(caught.value.field)
    return caught.value


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "(operator)", "a" * 64, "a b", "ä", "a\n"])
def test_a_name_is_lower_case_and_short(name: str) -> None:
    """The message does not repeat it: it could be a secret in the wrong place."""
    error = refused(lambda: check_name(name, "name"))
    assert name == "" or f"{name!r}" not in str(error)


def test_good_values_pass() -> None:
    """Each at its bounds."""
    check_name("a" * 63, "name")
    check_name("0.a_b-c", "name")
    check_label("CI of the search team @ hall-a" + "x" * (MAX_LABEL_CHARS - 30))
    check_overlap(0)
    check_overlap(MAX_OVERLAP_S)
    check_end(None, at_us=NOW_US)
    check_end(NOW_US + 1, at_us=NOW_US)
    check_secret(key_id("s"), sha256("s"), prefix="key-")
    check_budgets(tuple(tokens(1, f"{seconds}s") for seconds in range(1, MAX_BUDGETS + 1)))
    check_tenant_terms(TenantTerms())
    check_key_terms(KeyTerms(), TENANT)
    check_key_terms(KeyTerms(max_tier="flex", data_class="core", zones=("b",)), TENANT)
    check_key_terms(KeyTerms(zones=("anywhere",)), TenantTerms())


@pytest.mark.parametrize(
    ("check", "field", "words"),
    [
        (lambda: check_label("x" * (MAX_LABEL_CHARS + 1)), "label", "at most 64 letters"),
        (lambda: check_label("<b>"), "label", "letters, digits, spaces"),
        (lambda: check_overlap(-1), "overlap_s", "from 0 to 2592000 seconds"),
        (lambda: check_overlap(MAX_OVERLAP_S + 1), "overlap_s", "from 0 to"),
        (lambda: check_end(NOW_US, at_us=NOW_US), "expires", "revoke the key to end it now"),
        (lambda: check_end(NOW_US + (MAX_LIFE_S + 1) * SECOND_US, at_us=NOW_US), "expires", "without an end"),
        (lambda: check_sha256("A" * 64), "sha256", "64 hexadecimal digits"),
        (lambda: check_secret("key-0000000000", sha256("s"), prefix="key-"), "key_id", "the first 10 digits"),
        (lambda: check_secret(key_id("s"), sha256("s"), prefix="adm-"), "key_id", "must be adm-"),
        (lambda: check_budgets((tokens(1),) * (MAX_BUDGETS + 1)), "budgets", "at most 256"),
        (lambda: check_budgets((tokens(1), tokens(2, "60m"))), "budgets", "keep one of them"),
        (lambda: check_budgets((tokens(1), tokens(-1))), "budgets[1]", "from 0 to"),
        (lambda: check_tenant_terms(TenantTerms(project="a/b")), "project", "1 to 63"),
        (lambda: check_tenant_terms(TenantTerms(max_tier="gold")), "max_tier", "priority, default, flex"),
        (lambda: check_tenant_terms(TenantTerms(data_class="top")), "data_class", "general, important, core"),
        (lambda: check_tenant_terms(TenantTerms(weight_micro=999)), "weight", "a budget of 0"),
        (lambda: check_tenant_terms(TenantTerms(weight_micro=1_000_000_001)), "weight", "0.001 to 1000"),
        (lambda: check_tenant_terms(TenantTerms(zones=())), "zones", "leave it out for wherever"),
        (lambda: check_tenant_terms(TenantTerms(zones=("A",))), "zones", "1 to 63"),
        (lambda: check_tenant_terms(TenantTerms(zones=("a", "a"))), "zones", "twice"),
        (lambda: check_tenant_terms(TenantTerms(zones=("a",) * (MAX_ZONES + 1))), "zones", "1 to 1024 names"),
        (lambda: check_key_terms(KeyTerms(max_tier="gold"), TENANT), "max_tier", "must be one of"),
        (lambda: check_key_terms(KeyTerms(data_class="gold"), TENANT), "data_class", "must be one of"),
    ],
)
def test_what_could_never_be_is_refused(check: Callable[[], object], field: str, words: str) -> None:
    """With the field and what may stand there."""
    error = refused(check)
    assert (field, "invalid_value") == (error.field, error.code)
    assert words in str(error)


@pytest.mark.parametrize(
    ("terms", "field", "words"),
    [
        (KeyTerms(max_tier="priority"), "max_tier", "priority is above its tenant's default"),
        (KeyTerms(data_class="general"), "data_class", "general is below its tenant's important"),
        (KeyTerms(zones=("a", "c")), "zones", "its tenant may use a, b only"),
    ],
)
def test_a_key_never_gets_more_than_its_tenant(terms: KeyTerms, field: str, words: str) -> None:
    """A word of its own, and the remedy."""
    error = refused(lambda: check_key_terms(terms, TENANT))
    assert (field, "beyond_tenant") == (error.field, error.code)
    assert words in str(error)
    assert "change its tenant first" in str(error)


def test_a_rotation_keeps_the_secret_before_for_a_while() -> None:
    """The newest has no end of its own; without overlap the old one is gone at once."""
    first = (Secret(sha256=sha256("1")),)
    second = rotated(first, sha256("2"), overlap_s=60, at_us=NOW_US)
    assert (Secret(sha256=sha256("2")), Secret(sha256=sha256("1"), until_us=NOW_US + 60 * SECOND_US)) == second
    assert (Secret(sha256=sha256("2")),) == rotated(first, sha256("2"), overlap_s=0, at_us=NOW_US)


def test_a_later_rotation_never_prolongs_an_older_secret() -> None:
    """And what is over is dropped."""
    second = rotated((Secret(sha256=sha256("1")),), sha256("2"), overlap_s=60, at_us=NOW_US)
    third = rotated(second, sha256("3"), overlap_s=3600, at_us=NOW_US + SECOND_US)
    assert [None, NOW_US + 3601 * SECOND_US, NOW_US + 60 * SECOND_US] == [each.until_us for each in third]
    late = rotated(second, sha256("3"), overlap_s=3600, at_us=NOW_US + 60 * SECOND_US)
    assert [sha256("3"), sha256("2")] == [each.sha256 for each in late]


def test_secrets_of_a_key_are_bounded() -> None:
    """The oldest goes, although it would still be valid."""
    secrets: tuple[Secret, ...] = (Secret(sha256=sha256("0")),)
    for number in range(1, 10):
        secrets = rotated(secrets, sha256(str(number)), overlap_s=MAX_OVERLAP_S, at_us=NOW_US)
    assert [sha256(str(number)) for number in (9, 8, 7, 6)] == [each.sha256 for each in secrets]
    assert MAX_SECRETS_PER_KEY == len(secrets)


def test_an_end_is_half_open() -> None:
    """At that microsecond it is over."""
    assert [False, False, True] == [is_over(None, 5), is_over(6, 5), is_over(5, 5)]


def test_a_key_is_dead_by_hand_or_by_time() -> None:
    """Of either kind."""
    key = TenantKey(
        key_id="k", tenant="t", project=None, terms=KeyTerms(expires_us=10), budgets=(), secrets=(), created_us=0
    )
    admin = AdminKey(key_id="k", role=Role.READ, label="", expires_us=None, secrets=(), created_us=0, revoked_us=1)
    assert [False, True, True] == [key.is_dead(9), key.is_dead(10), admin.is_dead(0)]


def test_a_tenants_own_project_needs_no_entry() -> None:
    """Others do."""
    tenant = Tenant(
        name="t", terms=TenantTerms(project="own"), budgets=(), task_budgets=(), projects={"more": ()}, created_us=0
    )
    assert [True, True, False] == [tenant.has_project(name) for name in ("own", "more", "default")]


def test_a_fingerprint_is_what_ids_are_made_of() -> None:
    """Ten digits, safe to print."""
    assert key_id("s") == "key-" + fingerprint_of(sha256("s")) == f"key-{Secret(sha256=sha256('s')).fingerprint}"
