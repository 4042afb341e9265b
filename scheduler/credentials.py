"""Who has which key: read from files or the configuration, made for demos; the admin's own key in the state folder.

Called by ``scheduler.service``. It must never log a key; keys that were made are handed to their caller once.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from scheduler.api.access import Caller, Key, digest_of, key_id_of
from scheduler.config_errors import ConfigError
from scheduler.config_tenants import KeyConfig, TenantConfig
from scheduler.core.request import Band, DataClass

MIN_KEY_CHARS = 16
MAX_KEY_BYTES = 4096
KEY_PREFIX = "jw-"
SEED_BYTES = 32


def new_key() -> str:
    """A key that nobody can guess: 256 bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def tenant_keys(tenants: Iterable[TenantConfig], *, generate: bool) -> tuple[list[Key], dict[str, str]]:
    """Every key by its hash, and the keys made here by tenant (``generate``: for tenants that have none).

    Raises: ConfigError, which names the key's place in the configuration and never the key.
    """
    keys: list[Key] = []
    made: dict[str, str] = {}
    places: dict[bytes, str] = {}
    for index, tenant in enumerate(tenants):
        for number, configured in enumerate(tenant.keys):
            where = f"tenants[{index}].keys[{number}]"
            digest = key_digest(configured, where=where)
            if digest in places:
                raise ConfigError("configuration", [f"{where}: the same key as {places[digest]}"])
            places[digest] = where
            keys.append(_key(tenant, digest, configured))
        if not tenant.keys and generate:
            made[tenant.name] = new_key()
            keys.append(_key(tenant, digest_of(made[tenant.name]), None))
    return keys, made


def _key(tenant: TenantConfig, digest: bytes, key: KeyConfig | None) -> Key:
    """``key`` None: it was made here, and is its tenant's in everything."""
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
