"""Who says which tenants there are, the configuration file or the admin API, and what follows: callers and rules.

Owned by ``scheduler.service``. It must never let both say it: one is the owner, and the other is refused or ignored
with words that name the owner.

With ``directory: file`` callers and rules are those of the file, and each difference of a new reading is logged. With
``directory: api`` the file is read once, when the API takes over; from then on the log alone makes the directory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from scheduler.accounting.change_log import ChangeLog
from scheduler.accounting.changes import AdminKeyRevoked, Change, Owner, OwnerSet
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import ChangeRefused
from scheduler.api.access import AdminCaller, Caller, Keys
from scheduler.config import Config
from scheduler.config_errors import ConfigError
from scheduler.config_tenants import misplaced, zone_classes
from scheduler.core.rules import Rules
from scheduler.credentials import DirectoryKeys, FileKey, admin_keys, file_keys, key_of
from scheduler.directory_file import deeds_of_file, file_sha256
from scheduler.policies import rules_of, with_directory
from scheduler.tenancy import NotCommitted, Tenancy, ZoneProblem

logger = logging.getLogger("jouleway.service")


class DirectoryOwner:
    """``keys`` and ``admin_keys`` are live: what they know changes, they stay. ``generated``: keys made for a demo."""

    def __init__(self, config: Config, *, house_key: str, log: ChangeLog, logged: Iterable[Change] = ()) -> None:
        """``logged``: every change that the log holds, in its order. Raises: ConfigError."""
        self._config = config
        self.owner = Owner(config.directory)
        self._house_key = house_key
        self._on_rules: Callable[[Rules], None] = lambda rules: None
        self._committing: asyncio.Task[None] | None = None
        self._file_keys: list[FileKey] = []
        self._directory_keys = DirectoryKeys()
        self.generated: dict[str, str] = {}
        self.keys: Keys[Caller] = Keys([])
        self.admin_keys: Keys[AdminCaller] = Keys([])
        self.tenancy = Tenancy(
            log=log,
            directory=_directory_of(logged),
            publish=self._publish,
            file_owner=config.source if self.owner is Owner.FILE else None,
            zone_problem=_zone_problem(config),
        )
        standing = self.tenancy.directory.owner
        if self.owner is Owner.FILE or standing is None or standing.owner is Owner.FILE:
            self._file_keys, self.generated = file_keys(config.tenants, generate=config.generate_keys)
            self._read_file(config, self._file_keys)
        else:
            self._say_ignored(config)
        self._set_owner(config)
        owner = f"the file {config.source}" if self.owner is Owner.FILE else "the API"
        logger.info("tenants, keys and budgets are owned by %s (directory: %s)", owner, self.owner)
        self.rules = self._rules_of(config)
        self._publish_keys()

    def start(self, on_rules: Callable[[Rules], None]) -> None:
        """From now on each change reaches the core too."""
        self._on_rules = on_rules

    async def commit(self) -> None:
        """What the file changed is durable. Raises: NotCommitted."""
        await self.tenancy.commit()

    async def stop(self) -> None:
        """Waits for a commit under way."""
        if self._committing is not None:
            await self._committing
        await self.tenancy.stop()

    def reload(self, config: Config) -> None:
        """The file was read again. Who the owner is only a restart can change. Raises: ConfigError; nothing changes."""
        rules, keys = self._rules_of(config), self._file_keys
        if self.owner is Owner.API:
            self._say_ignored(config)
        else:
            if not config.generate_keys:  # those that were made live as long as this process
                keys, _ = file_keys(config.tenants, generate=False)
            self._read_file(config, keys)
            self._committing = asyncio.get_running_loop().create_task(self._commit_after(self._committing))
        self._config, self.rules, self._file_keys = config, rules, keys
        self.tenancy.zone_problem = _zone_problem(config)
        self._publish_keys()
        self._on_rules(rules)

    # -- inside

    def _publish(self) -> None:
        """The directory changed by the API; what a change leaves as it was costs the core nothing."""
        before, self.rules = self.rules, self._rules_of(self._config)
        self._publish_keys()
        if self.rules != before:
            self._on_rules(self.rules)

    def _publish_keys(self) -> None:
        directory = self.tenancy.directory
        if self.owner is Owner.FILE:
            self.keys.reload(key_of(each) for each in self._file_keys)
        else:
            self.keys.reload(self._directory_keys.of(directory))
        self.admin_keys.reload(admin_keys(directory, self._house_key))

    def _rules_of(self, config: Config) -> Rules:
        """Raises: ConfigError."""
        if self.owner is Owner.FILE:
            return rules_of(config)
        without_tenants = config.model_copy(update={"tenants": ()})
        return with_directory(rules_of(without_tenants), self.tenancy.directory)

    def _read_file(self, config: Config, keys: list[FileKey]) -> None:
        """What it says becomes changes. Further admin keys are the API's: where the file owns, there are none."""
        directory = self.tenancy.directory
        try:
            self.tenancy.record(deeds_of_file(directory, config.tenants, keys))
            if self.owner is Owner.FILE:
                valid = [key.key_id for key in directory.admin_keys.values() if key.revoked_us is None]
                self.tenancy.record(AdminKeyRevoked(key_id=key_id) for key_id in valid)
        except ChangeRefused as error:
            raise ConfigError(config.source, [f"tenants: {error}"]) from None

    def _set_owner(self, config: Config) -> None:
        standing = self.tenancy.directory.owner
        if standing is None or standing.owner is not self.owner:
            self.tenancy.record([OwnerSet(owner=self.owner, file_sha256=file_sha256(config.tenants))])

    def _say_ignored(self, config: Config) -> None:
        """Loudly, where the file says something else than when the API took over."""
        standing = self.tenancy.directory.owner
        if standing is not None and standing.file_sha256 != file_sha256(config.tenants):
            logger.warning(
                "tenants, keys and budgets are owned by the API (directory: api): what %s says of tenants was edited "
                "and is ignored; change them by `jouleway tenants`, `keys` and `budgets`, or set directory: file",
                config.source,
            )

    async def _commit_after(self, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await earlier
        try:
            await self.tenancy.commit()
        except NotCommitted as error:
            logger.error("what the file changed is not durable yet, the next commit takes it: %s", error)


def _directory_of(logged: Iterable[Change]) -> Directory:
    try:
        return Directory.of(logged)
    except ChangeRefused as error:
        remedy = "restore the ledger from a copy that `jouleway ledger verify` accepts"
        raise ConfigError("the ledger", [f"its changes make no directory: {error}; {remedy}"]) from None


def _zone_problem(config: Config) -> ZoneProblem:
    known = zone_classes(config.zones, [worker.zone for worker in config.workers])
    return lambda data_class, zones: misplaced(data_class, zones, known)
