"""Keys come from files, hashes or chance; what is wrong is named by its place, and no key is ever said."""

import hashlib
import stat
from pathlib import Path

import pytest

from scheduler.accounting import changes
from scheduler.accounting.changes import Role
from scheduler.api.access import Keys, digest_of
from scheduler.config_errors import ConfigError
from scheduler.config_tenants import KeyConfig, TenantConfig
from scheduler.core.request import Band, DataClass
from scheduler.credentials import (
    DirectoryKeys,
    admin_keys,
    directory_keys,
    file_keys,
    house_key_id,
    kept_key,
    key_of,
    new_key,
    read_key,
    tenant_keys,
)
from tests.directory_words import NOW_US, SECOND_US, TWO_TENANTS, admin_key, changed, directory_of, key_id, sha256
from tests.directory_words import key as key_created

KEY = "jw-0123456789abcdef-CANARY"


def key_file(folder: Path, text: str = KEY + "\n", mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(text.encode("utf-8"))
    path.chmod(mode)
    return path


def bearer(key: str) -> list[bytes]:
    return [f"Bearer {key}".encode()]


def test_a_key_from_a_file_and_one_from_its_hash_lead_to_their_tenants(tmp_path: Path) -> None:
    """Both forms, one table."""
    other = "another-key-of-enough-length"
    tenants = [
        TenantConfig(name="a", project="p", keys=(KeyConfig(file=key_file(tmp_path)),)),
        TenantConfig(name="b", keys=(KeyConfig(sha256=hashlib.sha256(other.encode()).hexdigest()),)),
    ]
    keys, made = tenant_keys(tenants, generate=False)
    table = Keys(keys)
    assert ("a", "p") == (table.caller(bearer(KEY)).tenant, table.caller(bearer(KEY)).project)
    assert "b" == table.caller(bearer(other)).tenant
    assert {} == made


@pytest.mark.parametrize(
    ("of_tenant", "of_key", "expected"),
    [
        ("priority", None, Band.PRIORITY),
        ("default", None, Band.DEFAULT),
        ("priority", "flex", Band.FLEX),
        ("flex", "priority", Band.FLEX),
    ],
)
def test_a_key_can_only_narrow_its_tenants_tier(of_tenant: str, of_key: str | None, expected: Band) -> None:
    """The lower of both counts."""
    key = KeyConfig(sha256="a" * 64, max_tier=of_key)  # type: ignore[arg-type]
    tenant = TenantConfig(name="t", keys=(key,), max_tier=of_tenant)  # type: ignore[arg-type]
    keys, _ = tenant_keys([tenant], generate=False)
    assert [expected] == [key.caller.best_band for key in keys]


def test_a_key_narrows_its_tenants_data_and_zones_and_may_have_a_project_of_its_own() -> None:
    """What it does not say is its tenant's."""
    keys = (
        KeyConfig(sha256="a" * 64),
        KeyConfig(sha256="b" * 64, data_class="core", zones=("north",), project="search"),
    )
    tenant = TenantConfig(name="t", keys=keys, data_class="important", zones=("north", "south"))
    of_tenant, narrower = (key.caller for key in tenant_keys([tenant], generate=False)[0])
    assert (DataClass.IMPORTANT, {"north", "south"}, "default") == (
        of_tenant.data_class,
        of_tenant.zones,
        of_tenant.project,
    )
    assert (DataClass.CORE, {"north"}, "search") == (narrower.data_class, narrower.zones, narrower.project)


def test_a_key_that_was_made_is_its_tenants_in_everything() -> None:
    """And without a word of its tenant it is nobody's in particular."""
    tenants = [TenantConfig(name="a", data_class="core", zones=("north",), project="p"), TenantConfig(name="b")]
    first, second = (key.caller for key in tenant_keys(tenants, generate=True)[0])
    assert (DataClass.CORE, {"north"}, "p") == (first.data_class, first.zones, first.project)
    assert (DataClass.GENERAL, None) == (second.data_class, second.zones)


def test_keys_are_made_only_where_asked_and_none_was_given() -> None:
    """Each made key works and is unlike the others."""
    tenants = [
        TenantConfig(name="a"),
        TenantConfig(name="b"),
        TenantConfig(name="c", keys=(KeyConfig(sha256="c" * 64),)),
    ]
    keys, made = tenant_keys(tenants, generate=True)
    assert ["a", "b"] == sorted(made)
    assert made["a"] != made["b"]
    assert "a" == Keys(keys).caller(bearer(made["a"])).tenant
    assert {} == tenant_keys(tenants, generate=False)[1]


def test_the_same_key_in_a_file_and_as_a_hash_is_refused(tmp_path: Path) -> None:
    """Nobody could say whose request it is; both places are named, the key is not."""
    tenants = [
        TenantConfig(name="a", keys=(KeyConfig(file=key_file(tmp_path)),)),
        TenantConfig(name="b", keys=(KeyConfig(sha256=hashlib.sha256(KEY.encode()).hexdigest()),)),
    ]
    with pytest.raises(ConfigError, match=r"tenants\[1\].keys\[0\].*tenants\[0\].keys\[0\]") as caught:
        tenant_keys(tenants, generate=False)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (KEY, 0o644, "chmod 600"),
        ("short\n", 0o600, "16 or more"),
        ("", 0o600, "16 or more"),
        ("a key with spaces CANARY", 0o600, "printable ASCII"),
        ("schlüssel-CANARY-0123", 0o600, "printable ASCII"),
    ],
)
def test_a_bad_key_file_is_named_and_not_repeated(tmp_path: Path, text: str, mode: int, words: str) -> None:
    """Open to others, short, or not printable: the remedy without the key."""
    with pytest.raises(ConfigError, match=words) as caught:
        read_key(key_file(tmp_path, text, mode), where="tenants[0].keys[0].file")
    assert "tenants[0].keys[0].file" in str(caught.value)
    assert "CANARY" not in str(caught.value)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    """With the system's reason."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_key(tmp_path / "none", where="x")


def test_the_admin_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    """The second start finds the first one's key."""
    path = tmp_path / "state" / "admin.key"
    key, was_made = kept_key(path, where="admin.key_file")
    assert was_made
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert (key, False) == kept_key(path, where="admin.key_file")


def test_an_admin_key_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The place in the configuration, the path and the system's reason."""
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ConfigError, match=r"admin\.key_file"):
        kept_key(blocker / "admin.key", where="admin.key_file")


def test_new_keys_have_256_bits() -> None:
    """43 characters of base64 behind the prefix, never the same twice."""
    keys = {new_key() for _ in range(100)}
    assert 100 == len(keys)
    assert {46} == set(map(len, keys))


# -- keys of the directory


def test_what_the_file_names_is_told_before_anything_is_made_of_it() -> None:
    """Digest, tenant and terms; a key made for a demo has none of the last."""
    named = TenantConfig(name="a", keys=(KeyConfig(sha256=sha256("k")),))
    keys, made = file_keys([named, TenantConfig(name="b")], generate=True)
    assert [("a", True), ("b", False)] == [(each.tenant.name, each.terms is not None) for each in keys]
    assert [digest_of("k"), digest_of(made["b"])] == [key_of(each).digest for each in keys]


def test_every_valid_secret_of_a_key_leads_to_it() -> None:
    """Under one id; the old one until it is over, none longer than the key."""
    deeds = (
        changes.KeyChanged(key_id=key_id("secret-a"), terms=changes.KeyTerms(expires_us=NOW_US + 60 * SECOND_US)),
        changes.KeyRotated(key_id=key_id("secret-a"), sha256=sha256("newer"), overlap_s=10),
        changes.KeyRotated(key_id=key_id("secret-a"), sha256=sha256("newest"), overlap_s=3600),
        changes.KeyRevoked(key_id=key_id("secret-b")),
    )
    keys = {key.digest: key.caller for key in directory_keys(directory_of([*TWO_TENANTS, *deeds]))}
    assert {"newest": 60, "newer": 60, "secret-a": 17} == {
        secret: keys[digest_of(secret)].expires_unix_s - NOW_US / 1e6  # type: ignore[operator]
        for secret in ("newest", "newer", "secret-a")
    }
    assert {key_id("secret-a")} == {caller.key_id for caller in keys.values()}


def test_a_caller_is_the_narrower_of_tenant_and_key() -> None:
    """In tier, class and zones; its project is its own or its tenant's."""
    deeds = (
        key_created("narrow", max_tier="flex", data_class="core", zones=("hall-a",)),
        changes.TenantChanged(
            name="acme", terms=changes.TenantTerms(max_tier="default", data_class="important", zones=("hall-b",))
        ),
    )
    callers = {key.caller.key_id: key.caller for key in directory_keys(directory_of([*TWO_TENANTS, *deeds]))}
    narrow, plain, free = (callers[key_id(secret)] for secret in ("narrow", "secret-a", "secret-b"))
    assert (Band.FLEX, DataClass.CORE, frozenset(), "default") == (
        narrow.best_band, narrow.data_class, narrow.zones, narrow.project,
    )  # fmt: skip
    assert (Band.DEFAULT, DataClass.IMPORTANT, frozenset({"hall-b"}), "search") == (
        plain.best_band, plain.data_class, plain.zones, plain.project,
    )  # fmt: skip
    assert (Band.PRIORITY, DataClass.GENERAL, None, None) == (
        free.best_band, free.data_class, free.zones, free.expires_unix_s,
    )  # fmt: skip


def test_only_what_changed_is_made_anew() -> None:
    """With many keys a change must not hold up those who are served."""
    directory, keys = directory_of(TWO_TENANTS), DirectoryKeys()
    first = {key.caller.key_id: key for key in keys.of(directory)}
    for number, deed in enumerate(
        (
            changes.KeyRotated(key_id=key_id("secret-a"), sha256=sha256("newer"), overlap_s=0),
            changes.TenantChanged(name="other", terms=changes.TenantTerms(max_tier="flex")),
            key_created("third", "acme"),
            changes.KeyRevoked(key_id=key_id("secret-a")),
        )
    ):
        directory.apply(changed(deed, first=50 + number)[0])
        told = keys.of(directory)
        assert directory_keys(directory) == told
    second = {key.caller.key_id: key for key in told}
    third = key_id("third")
    assert {key_id("secret-b"), third} == second.keys()
    assert second[key_id("secret-b")] != first[key_id("secret-b")]
    assert second[third] is keys.of(directory)[-1]


def test_keys_of_closed_tenants_open_nothing() -> None:
    """However valid they are."""
    directory = directory_of([*TWO_TENANTS, changes.TenantClosed(name="acme")])
    assert ["other"] == [key.caller.tenant for key in directory_keys(directory)]


def test_admin_keys_are_the_houses_and_the_directorys() -> None:
    """Each with its role; revoked ones are not among them."""
    directory = directory_of(
        [
            *TWO_TENANTS,
            admin_key("books", Role.BILLING, expires_us=NOW_US + 60 * SECOND_US),
            admin_key("gone"),
            changes.AdminKeyRevoked(key_id=key_id("gone", "adm-")),
        ]
    )
    told = [(key.digest, key.caller.role, key.caller.expires_unix_s) for key in admin_keys(directory, "house")]
    assert [
        (digest_of("house"), Role.ADMIN, None),
        (digest_of("secret-r"), Role.READ, None),
        (digest_of("books"), Role.BILLING, NOW_US / 1e6 + 60),
    ] == told
    assert house_key_id("house") == f"adm-{sha256('house')[:10]}"
