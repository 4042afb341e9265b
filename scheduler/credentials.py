"""Who has which key: read from files, the configuration or the directory, made for demos; the admin's own in its file.

Called by ``scheduler.service``. It must never log a key; keys that were made are handed to their caller once.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scheduler.accounting.changes import SECOND_US, Role
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import ADMIN_ID_PREFIX, Secret, Tenant, TenantKey, fingerprint_of
from scheduler.api.access import AdminCaller, Caller, Key, digest_of, key_id_of, new_key
from scheduler.config_errors import ConfigError
from scheduler.config_tenants import KeyConfig, TenantConfig
from scheduler.core.request import Band, DataClass

MIN_KEY_CHARS = 16
MAX_KEY_BYTES = 4096
SEED_BYTES = 32


class FileKey(NamedTuple):
    """A key that the configuration names, or one made for a tenant without any."""

    digest: bytes
    tenant: TenantConfig
    terms: KeyConfig | None
    """How it is narrower than its tenant; None: in nothing."""


def tenant_keys(tenants: Iterable[TenantConfig], *, generate: bool) -> tuple[list[Key[Caller]], dict[str, str]]:
    """Every key by its hash, and the keys made here by tenant (``generate``: for tenants that have none).

    Raises: ConfigError, which names the key's place in the configuration and never the key.
    """
    keys, made = file_keys(tenants, generate=generate)
    return [key_of(each) for each in keys], made


def file_keys(tenants: Iterable[TenantConfig], *, generate: bool) -> tuple[list[FileKey], dict[str, str]]:
    """The same before anything is made of them. Raises: ConfigError."""
    keys: list[FileKey] = []
    made: dict[str, str] = {}
    places: dict[bytes, str] = {}
    for index, tenant in enumerate(tenants):
        for number, configured in enumerate(tenant.keys):
            where = f"tenants[{index}].keys[{number}]"
            digest = key_digest(configured, where=where)
            if digest in places:
                raise ConfigError("configuration", [f"{where}: the same key as {places[digest]}"])
            places[digest] = where
            keys.append(FileKey(digest, tenant, configured))
        if not tenant.keys and generate:
            made[tenant.name] = new_key()
            keys.append(FileKey(digest_of(made[tenant.name]), tenant, None))
    return keys, made


def key_of(file_key: FileKey) -> Key[Caller]:
    """Whom it stands for, as the file has it."""
    digest, tenant, key = file_key
    tiers, data_classes, zones, project = [tenant.max_tier], [tenant.data_class], tenant.zones, tenant.project
    if key is not None:
        tiers += [] if key.max_tier is None else [key.max_tier]
        data_classes += [] if key.data_class is None else [key.data_class]
        zones, project = key.zones or zones, key.project or project
    caller = Caller(
        tenant=tenant.name,
        project=project,
        key_id=key_id_of(digest),
        best_band=max(Band.of_service_tier(tier) for tier in tiers),
        data_class=max(DataClass[name.upper()] for name in data_classes),
        zones=None if zones is None else frozenset(zones),
    )
    return Key(digest=digest, caller=caller)


def directory_keys(directory: Directory) -> list[Key[Caller]]:
    """Every secret of every key that may open something, now or until its end."""
    return DirectoryKeys().of(directory)


class DirectoryKeys:
    """The same again and again: only what changed since the last time is made anew."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Tenant, TenantKey, list[Key[Caller]]]] = {}

    def of(self, directory: Directory) -> list[Key[Caller]]:
        """Entries of a directory never change, they are replaced: the same one makes the same callers."""
        made: dict[str, tuple[Tenant, TenantKey, list[Key[Caller]]]] = {}
        for key in directory.keys.values():
            tenant = directory.tenants[key.tenant]
            if key.revoked_us is not None or tenant.closed_us is not None:
                continue
            before = self._made.get(key.key_id)
            if before is None or before[0] is not tenant or before[1] is not key:
                before = (tenant, key, [_directory_key(tenant, key, secret) for secret in key.secrets])
            made[key.key_id] = before
        self._made = made
        return [each for _, _, of_key in made.values() for each in of_key]


def _directory_key(tenant: Tenant, key: TenantKey, secret: Secret) -> Key[Caller]:
    """The narrower of what tenant and key say: a tenant that was narrowed narrows its keys."""
    own, terms = key.terms, tenant.terms
    zone_sets = [frozenset(zones) for zones in (terms.zones, own.zones) if zones is not None]
    caller = Caller(
        tenant=tenant.name,
        project=key.project or terms.project,
        key_id=key.key_id,
        best_band=max(Band.of_service_tier(tier) for tier in (terms.max_tier, own.max_tier or terms.max_tier)),
        data_class=max(DataClass[name.upper()] for name in (terms.data_class, own.data_class or terms.data_class)),
        zones=frozenset.intersection(*zone_sets) if zone_sets else None,
        expires_unix_s=_end_unix_s(own.expires_us, secret),
    )
    return Key(digest=bytes.fromhex(secret.sha256), caller=caller)


def admin_keys(directory: Directory, house_key: str) -> list[Key[AdminCaller]]:
    """The house's own key, which may everything and is in its file, and those of the directory."""
    digest = digest_of(house_key)
    keys = [Key(digest=digest, caller=AdminCaller(key_id=house_key_id(house_key), role=Role.ADMIN))]
    for key in directory.admin_keys.values():
        if key.revoked_us is None:
            for secret in key.secrets:
                end_unix_s = _end_unix_s(key.expires_us, secret)
                caller = AdminCaller(key_id=key.key_id, role=key.role, expires_unix_s=end_unix_s)
                keys.append(Key(digest=bytes.fromhex(secret.sha256), caller=caller))
    return keys


def house_key_id(house_key: str) -> str:
    """The public name of the key that the service keeps in its own file."""
    return ADMIN_ID_PREFIX + fingerprint_of(digest_of(house_key).hex())


def _end_unix_s(expires_us: int | None, secret: Secret) -> float | None:
    """Of a secret: the key's end, or its own where it was rotated away."""
    ends_us = [end_us for end_us in (expires_us, secret.until_us) if end_us is not None]
    return min(ends_us) / SECOND_US if ends_us else None


def key_digest(key: KeyConfig, *, where: str) -> bytes:
    """What is kept of a configured key; ``where`` is its place. Raises: ConfigError where its file cannot be used."""
    if key.sha256 is not None:
        return bytes.fromhex(key.sha256)
    assert key.file is not None
    return digest_of(read_key(key.file, where=f"{where}.file"))


def read_key(path: Path, *, where: str) -> str:
    """The first line of a key's file. Raises: ConfigError where it is missing, too short or open to others."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.read(MAX_KEY_BYTES).split(b"\n", 1)[0].strip()
    except OSError as error:
        raise ConfigError("configuration", [f"{where}: {path} cannot be read: {error.strerror}"]) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError("configuration", [f"{where}: {path} is open to others; remedy: chmod 600 {path}"])
    if len(line) < MIN_KEY_CHARS or not all(0x21 <= byte <= 0x7E for byte in line):
        raise ConfigError(
            "configuration", [f"{where}: {path} must hold a key of {MIN_KEY_CHARS} or more printable ASCII characters"]
        )
    return line.decode("ascii")


def kept_seed(path: Path, *, where: str) -> bytes:
    """The secret of the ledger's signatures: 32 bytes, as hex in a file of its owner's. Raises: ConfigError."""
    made = secrets.token_hex(SEED_BYTES)
    text, _ = _kept(path, made, where=where)
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigError("configuration", [f"{where}: {path} must hold {2 * SEED_BYTES} hexadecimal digits"])
    return seed


def kept_key(path: Path, *, where: str) -> tuple[str, bool]:
    """A key of the house itself, and whether it was made now; readable by its owner only. Raises: ConfigError."""
    return _kept(path, new_key(), where=where)


def _kept(path: Path, made: str, *, where: str) -> tuple[str, bool]:
    """What the file holds, or ``made`` where there was none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_key(path, where=where), False
    except OSError as error:
        raise ConfigError("configuration", [f"{where}: {path} cannot be written: {error.strerror}"]) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(made + "\n")
    return made, True
