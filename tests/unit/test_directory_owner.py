"""One owner at a time: the file with every reading, or the API once it took over; each says so."""

import logging
from pathlib import Path
from typing import Any

import pytest

from scheduler.accounting.change_log import MemoryChangeLog
from scheduler.accounting.changes import Actor, BudgetsSet, Change, KeyRevoked, Owner, Role
from scheduler.config import Config, load_config
from scheduler.config_errors import ConfigError
from scheduler.core.budget_accounts import Level
from scheduler.core.rules import Rules
from scheduler.directory_owner import DirectoryOwner
from tests.directory_office import Ledger
from tests.directory_words import admin_key, changed, key_id, sha256, tenant, tokens

HOUSE_KEY = "house-key-of-the-tests"
WHO = Actor(key_id="adm-0", role=Role.ADMIN)
TEXT = """
directory: {directory}
models: {{m: {{}}}}
workers: [{{name: w, engine: simulated, model: m, zone: hall}}]
tenants:
  - name: acme
    budgets: [{{tokens: {limit}, per: 1h}}]
    keys: [{{sha256: {sha256}, budgets: [{{requests: 3, per: 1m}}]}}]
"""


def config_of(folder: Path, directory: str, *, limit: int = 5, secret: str = "one") -> Config:
    path = folder / "cluster.yaml"
    path.write_text(TEXT.format(directory=directory, limit=limit, sha256=sha256(secret)))
    return load_config(path)


def owner_of(config: Config, log: MemoryChangeLog, **how: Any) -> DirectoryOwner:
    return DirectoryOwner(config, house_key=HOUSE_KEY, log=log, **how)


async def logged(log: MemoryChangeLog) -> list[Change]:
    return [Change.of(dict(row.fields)) for row in reversed(await log.page(before=None, limit=1_000))]


def opens(owner: DirectoryOwner, secret: str) -> bool:
    try:
        owner.keys.caller([b"Bearer " + secret.encode()])
    except Exception:
        return False
    return True


def limits(rules: Rules) -> dict[str, int]:
    return {str(level): budgets[0].limit for level, budgets in rules.budgets.items()}


STANDING = {"tenant acme": 5, f"key {key_id('one')}": 3}


async def test_with_the_file_as_owner_everything_is_as_the_file_says(tmp_path: Path) -> None:
    """Keys, rules, and a row for each thing that was new."""
    log = MemoryChangeLog()
    owner = owner_of(config_of(tmp_path, "file"), log)
    assert (True, STANDING, Owner.FILE) == (opens(owner, "one"), limits(owner.rules), owner.owner)
    assert ["tenant_created", "key_created", "owner_set"] == [change.what for change in await logged(log)]
    assert str(tmp_path / "cluster.yaml") == owner.tenancy.file_owner
    assert Role.ADMIN is owner.admin_keys.caller([b"Bearer " + HOUSE_KEY.encode()]).role


async def test_the_file_read_again_is_in_effect_and_each_difference_a_row(tmp_path: Path) -> None:
    """Made durable by the next commit."""
    log, said = Ledger(), []
    owner = owner_of(config_of(tmp_path, "file"), log)
    owner.start(said.append)
    log.events.clear()
    owner.reload(config_of(tmp_path, "file", limit=7, secret="two"))
    await owner.stop()
    assert (False, True, 7) == (opens(owner, "one"), opens(owner, "two"), limits(said[-1])["tenant acme"])
    assert ["key_revoked", "budgets_set", "key_created", "commit"] == log.events


async def test_two_readings_in_a_row_are_both_made_durable(tmp_path: Path) -> None:
    """The second waits for the first."""
    log = Ledger()
    log.may_commit.clear()
    owner = owner_of(config_of(tmp_path, "file"), log)
    for limit in (6, 7):
        owner.reload(config_of(tmp_path, "file", limit=limit))
    log.may_commit.set()
    await owner.stop()
    assert 2 == log.events.count("commit")


async def test_a_reading_that_is_not_durable_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is in effect all the same: the file is there to be read again."""
    log = Ledger()
    owner = owner_of(config_of(tmp_path, "file"), log)
    log.error = OSError("disk full")
    owner.reload(config_of(tmp_path, "file", limit=6))
    await owner.stop()
    assert 6 == limits(owner.rules)["tenant acme"]
    assert "not durable yet" in caplog.text


async def test_the_api_starts_from_the_file_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a restart the log alone makes the directory; an edit of the file is ignored, loudly."""
    log = MemoryChangeLog()
    owner = owner_of(config_of(tmp_path, "api"), log)
    assert (True, STANDING, None) == (opens(owner, "one"), limits(owner.rules), owner.tenancy.file_owner)
    await owner.tenancy.change(KeyRevoked(key_id=key_id("one")), who=WHO, change_id="chg-a")
    assert "ignored" not in caplog.text

    again = owner_of(config_of(tmp_path, "api", limit=9, secret="two"), log, logged=await logged(log))
    assert (False, False, {"tenant acme": 5}) == (opens(again, "one"), opens(again, "two"), limits(again.rules))
    assert "owned by the API (directory: api)" in caplog.text
    assert f"what {tmp_path / 'cluster.yaml'} says of tenants was edited and is ignored" in caplog.text
    assert owner.tenancy.directory.state() == again.tenancy.directory.state()
    assert 4 == len(await logged(log))


async def test_a_changed_directory_is_callers_and_rules_at_once(tmp_path: Path) -> None:
    """And what the file says besides stays in effect."""
    said: list[Rules] = []
    owner = owner_of(config_of(tmp_path, "api"), MemoryChangeLog())
    owner.start(said.append)
    await owner.tenancy.change(
        BudgetsSet(level="tenant", name="acme", budgets=(tokens(77),)), who=WHO, change_id="chg-a"
    )
    assert (77, {"m": {"hall"}}) == (limits(said[-1])["tenant acme"], said[-1].model_zones)
    await owner.tenancy.change(tenant("new", weight_micro=3_000_000), who=WHO, change_id="chg-b")
    assert {"acme": 1.0, "new": 3.0} == said[-1].weights
    num_said = len(said)
    await owner.tenancy.change(admin_key("reader"), who=WHO, change_id="chg-c")
    assert num_said == len(said)  # no rule changed
    assert Role.READ is owner.admin_keys.caller([b"Bearer reader"]).role


async def test_a_reload_under_the_api_changes_all_but_tenants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file's tenants are ignored loudly, where they were edited."""
    log, said = MemoryChangeLog(), []
    owner = owner_of(config_of(tmp_path, "api"), log)
    owner.start(said.append)
    owner.reload(config_of(tmp_path, "api"))
    assert "ignored" not in caplog.text
    num_rows = len(await logged(log))
    caplog.set_level(logging.WARNING)
    config = config_of(tmp_path, "api", limit=9, secret="two")
    owner.reload(config.model_copy(update={"scheduling": config.scheduling.model_copy(update={"ageing_s": 7.0})}))
    assert (STANDING, 7.0, True) == (limits(said[-1]), said[-1].ageing_s, opens(owner, "one"))
    assert (num_rows, True) == (len(await logged(log)), "is ignored" in caplog.text)


async def test_zones_of_a_change_are_those_of_the_configuration(tmp_path: Path) -> None:
    """As it was read last."""
    owner = owner_of(config_of(tmp_path, "api"), MemoryChangeLog())
    problem = owner.tenancy.zone_problem
    assert [None, True] == [problem("general", ("hall",)), "there is no zone" in str(problem("general", ("mars",)))]
    assert "may hold core data" in str(problem("core", None))


async def test_the_file_may_take_over_again(tmp_path: Path) -> None:
    """What the API made and the file does not name is closed or revoked; further admin keys too."""
    log = MemoryChangeLog()
    owner = owner_of(config_of(tmp_path, "api"), log)
    for number, deed in enumerate((tenant("new"), admin_key("reader"))):
        await owner.tenancy.change(deed, who=WHO, change_id=f"chg-{number}")
    again = owner_of(config_of(tmp_path, "file"), log, logged=await logged(log))
    directory = again.tenancy.directory
    assert directory.tenants["new"].closed_us is not None
    assert directory.admin_keys[key_id("reader", "adm-")].revoked_us is not None
    assert ["tenant_closed", "admin_key_revoked", "owner_set"] == [change.what for change in (await logged(log))[-3:]]
    back = owner_of(config_of(tmp_path, "api", limit=8), log, logged=await logged(log))
    assert 8 == limits(back.rules)["tenant acme"]


async def test_generated_keys_live_through_a_reload(tmp_path: Path) -> None:
    """And are told to whoever made the service."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "{models: {m: {}}, workers: [{name: w, engine: simulated, model: m}], tenants: [{name: a}], "
        "generate_keys: true}"
    )
    owner = owner_of(load_config(path), MemoryChangeLog())
    secret = owner.generated["a"]
    owner.reload(load_config(path))
    await owner.stop()
    assert opens(owner, secret)
    assert secret not in repr(await logged(owner.tenancy._log))  # type: ignore[arg-type]


def test_a_file_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    """A key's file that is missing, on a reload."""
    owner = owner_of(config_of(tmp_path, "file"), MemoryChangeLog())
    config = config_of(tmp_path, "file", limit=9)
    text = (tmp_path / "cluster.yaml").read_text().replace(f"sha256: {sha256('one')}", "file: missing.key")
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"missing\.key cannot be read"):
        owner.reload(load_config(tmp_path / "cluster.yaml"))
    assert (True, STANDING) == (opens(owner, "one"), limits(owner.rules))
    assert config.directory == "file"


def test_a_log_that_makes_no_directory_is_said_with_the_remedy(tmp_path: Path) -> None:
    """Rows that never could have been written in that order."""
    broken = changed(KeyRevoked(key_id="key-0"))
    with pytest.raises(ConfigError, match="its changes make no directory: key_id: there is no such key; restore"):
        owner_of(config_of(tmp_path, "api"), MemoryChangeLog(), logged=broken)


def test_a_file_beyond_the_bounds_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file's name."""
    monkeypatch.setattr("scheduler.accounting.directory.MAX_TENANTS", 0)
    with pytest.raises(ConfigError, match=r"cluster\.yaml: tenants: name: there are 0 tenants"):
        owner_of(config_of(tmp_path, "file"), MemoryChangeLog())


async def test_what_the_start_changed_is_made_durable_by_the_service(tmp_path: Path) -> None:
    """One commit for all."""
    log = Ledger()
    owner = owner_of(config_of(tmp_path, "file"), log)
    await owner.commit()
    await owner.stop()
    assert ["tenant_created", "key_created", "owner_set", "commit"] == log.events


def test_levels_are_named_as_budgets_are(tmp_path: Path) -> None:
    """So that usage goes on whoever owns it."""
    owner = owner_of(config_of(tmp_path, "api"), MemoryChangeLog())
    assert {Level("tenant", "acme"), Level("key", key_id("one"))} == owner.rules.budgets.keys()
