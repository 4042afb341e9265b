"""Arguments of `jouleway tenants`, `keys`, `admin-keys`, `budgets` and `audit`.

Called by ``scheduler.cli``. It must import nothing heavy, and no key may be an argument: a created one goes to standard
output.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scheduler.commands.exits import EXIT_CODES_HELP

KEY_HELP = "The admin key is read from JOULEWAY_ADMIN_KEY, or from the file that --config names."
MAX_S = 10 * 366 * 86_400

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", metavar="PATH", help="Configuration file (YAML).")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="Admin listener of a running control plane, http://127.0.0.1:PORT.")
]
TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Its name.")]
IdArgument = Annotated[str, typer.Argument(metavar="KEY_ID", help="Its public id, as `list` shows it.")]
ZonesOption = Annotated[str | None, typer.Option(help="Where its data may run, by comma; 'any' for wherever.")]
WeightOption = Annotated[float | None, typer.Option(min=0.001, max=1000.0, help="Share beside other tenants.")]
LabelOption = Annotated[str | None, typer.Option(help="Words for people: what it is for.")]
ExpiresOption = Annotated[
    float | None, typer.Option("--expires-in-s", min=1.0, max=MAX_S, help="Ends by itself so many seconds from now.")
]
OverlapOption = Annotated[
    int, typer.Option("--overlap-s", min=0, max=30 * 86_400, help="How long the secret before stays valid too.")
]
ProjectOption = Annotated[str | None, typer.Option(help="One of its tenant's; default: its tenant's own.")]


class Tier(StrEnum):
    """The highest priority that is given."""

    FLEX = "flex"
    DEFAULT = "default"
    PRIORITY = "priority"


class DataClass(StrEnum):
    """Of everything that is asked."""

    GENERAL = "general"
    IMPORTANT = "important"
    CORE = "core"


class Role(StrEnum):
    """What an admin key may."""

    ADMIN = "admin"
    BILLING = "billing"
    READ = "read"


class Level(StrEnum):
    """Whose budgets."""

    TENANT = "tenant"
    PROJECT = "project"
    KEY = "key"
    TASK = "task"


def _group(name: str, words: str) -> typer.Typer:
    return typer.Typer(name=name, help=f"{words} {KEY_HELP}", epilog=EXIT_CODES_HELP, no_args_is_help=True)


tenants = _group("tenants", "Who may ask: list, create, set, close; and their projects.")
keys = _group("keys", "Keys of tenants: list, create, set, rotate, revoke, move.")
admin_keys = _group("admin-keys", "Keys of operators, with a role each: list, create, rotate, revoke.")
budgets = _group("budgets", "Budgets of tenants, projects, keys and tasks: show, set.")


@tenants.command("list", epilog=EXIT_CODES_HELP)
def list_tenants(config: ConfigOption = None, url: UrlOption = None, as_json: JsonFlag = False) -> None:
    """List the tenants: tier, weight, data class, zones, how many keys."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).list_tenants())


@tenants.command("create", epilog=EXIT_CODES_HELP)
def create_tenant(
    tenant: TenantArgument,
    max_tier: Annotated[Tier | None, typer.Option(help="The highest service tier it gets.")] = None,
    weight: WeightOption = None,
    data_class: Annotated[DataClass | None, typer.Option(help="Of everything that it asks.")] = None,
    zones: ZonesOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a tenant, without a key and without a budget."""
    from scheduler.commands import directory as command

    terms = {"max_tier": max_tier, "weight": weight, "data_class": data_class, "zones": zones}
    raise typer.Exit(command.Admin(config, url, as_json=as_json).create_tenant(tenant, terms))


@tenants.command("set", epilog=EXIT_CODES_HELP)
def set_tenant(
    tenant: TenantArgument,
    max_tier: Annotated[Tier | None, typer.Option(help="The highest service tier it gets.")] = None,
    weight: WeightOption = None,
    data_class: Annotated[DataClass | None, typer.Option(help="Of everything that it asks.")] = None,
    zones: ZonesOption = None,
    project: Annotated[str | None, typer.Option(help="Of keys that name none.")] = None,
    reopen: Annotated[bool, typer.Option("--reopen", help="Open a closed one again, with its keys.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Change what a tenant gets; what is not named stays. A tenant that is narrowed narrows its keys at once."""
    from scheduler.commands import directory as command

    terms = {"max_tier": max_tier, "weight": weight, "data_class": data_class, "zones": zones, "project": project}
    raise typer.Exit(command.Admin(config, url, as_json=as_json).set_tenant(tenant, terms, reopen=reopen))


@tenants.command("close", epilog=EXIT_CODES_HELP)
def close_tenant(
    tenant: TenantArgument, config: ConfigOption = None, url: UrlOption = None, as_json: JsonFlag = False
) -> None:
    """Close a tenant: none of its keys opens anything from now on; what runs goes on."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).close_tenant(tenant))


@tenants.command("add-project", epilog=EXIT_CODES_HELP)
def add_project(
    tenant: TenantArgument,
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Its name.")],
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a project of a tenant, for keys to name and budgets to count."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).add_project(tenant, project))


@tenants.command("remove-project", epilog=EXIT_CODES_HELP)
def remove_project(
    tenant: TenantArgument,
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Its name.")],
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove a project that no valid key names."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).remove_project(tenant, project))


@keys.command("list", epilog=EXIT_CODES_HELP)
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Of this one only.")] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List keys by their public ids: tenant, project, state, end."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).list_keys(tenant))


@keys.command("create", epilog=EXIT_CODES_HELP)
def create_key(
    tenant: TenantArgument,
    project: ProjectOption = None,
    label: LabelOption = None,
    max_tier: Annotated[Tier | None, typer.Option(help="Narrower than its tenant's.")] = None,
    data_class: Annotated[DataClass | None, typer.Option(help="Stricter than its tenant's.")] = None,
    zones: ZonesOption = None,
    expires_in_s: ExpiresOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a key. The key, and nothing else, goes to standard output, this once."""
    from scheduler.commands import directory as command

    terms = {
        "project": project,
        "label": label,
        "max_tier": max_tier,
        "data_class": data_class,
        "zones": zones,
        "expires_in_s": expires_in_s,
    }
    raise typer.Exit(command.Admin(config, url, as_json=as_json).create_key(tenant, terms))


@keys.command("set", epilog=EXIT_CODES_HELP)
def set_key(
    key_id: IdArgument,
    label: LabelOption = None,
    max_tier: Annotated[Tier | None, typer.Option(help="Narrower than its tenant's.")] = None,
    data_class: Annotated[DataClass | None, typer.Option(help="Stricter than its tenant's.")] = None,
    zones: ZonesOption = None,
    expires_in_s: ExpiresOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Change what a key gets, or give it an end; what is not named stays."""
    from scheduler.commands import directory as command

    terms = {
        "label": label,
        "max_tier": max_tier,
        "data_class": data_class,
        "zones": zones,
        "expires_in_s": expires_in_s,
    }
    raise typer.Exit(command.Admin(config, url, as_json=as_json).set_key(key_id, terms))


@keys.command("rotate", epilog=EXIT_CODES_HELP)
def rotate_key(
    key_id: IdArgument,
    overlap_s: OverlapOption = 0,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a key another secret under the same id; it goes to standard output. Budgets and usage go on."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).rotate("keys", key_id, overlap_s))


@keys.command("revoke", epilog=EXIT_CODES_HELP)
def revoke_key(
    key_id: IdArgument, config: ConfigOption = None, url: UrlOption = None, as_json: JsonFlag = False
) -> None:
    """End a key at once and for good; requests that run go on."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).revoke("keys", key_id))


@keys.command("move", epilog=EXIT_CODES_HELP)
def move_key(
    key_id: IdArgument,
    project: ProjectOption = None,
    tenant: Annotated[str | None, typer.Option(help="Another tenant; default: its own.")] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Move a key to another project, or to another tenant that gives as much."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).move_key(key_id, tenant, project))


@admin_keys.command("list", epilog=EXIT_CODES_HELP)
def list_admin_keys(config: ConfigOption = None, url: UrlOption = None, as_json: JsonFlag = False) -> None:
    """List admin keys by their public ids; the one of admin.key_file among them."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).list_admin_keys())


@admin_keys.command("create", epilog=EXIT_CODES_HELP)
def create_admin_key(
    role: Annotated[Role, typer.Argument(help="admin: all; billing: who used what; read: sees all, changes nothing.")],
    label: LabelOption = None,
    expires_in_s: ExpiresOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Create an admin key. The key, and nothing else, goes to standard output, this once."""
    from scheduler.commands import directory as command

    terms = {"role": role, "label": label, "expires_in_s": expires_in_s}
    raise typer.Exit(command.Admin(config, url, as_json=as_json).create_admin_key(terms))


@admin_keys.command("rotate", epilog=EXIT_CODES_HELP)
def rotate_admin_key(
    key_id: IdArgument,
    overlap_s: OverlapOption = 0,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give an admin key another secret under the same id; it goes to standard output."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).rotate("admin-keys", key_id, overlap_s))


@admin_keys.command("revoke", epilog=EXIT_CODES_HELP)
def revoke_admin_key(
    key_id: IdArgument, config: ConfigOption = None, url: UrlOption = None, as_json: JsonFlag = False
) -> None:
    """End an admin key at once and for good."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).revoke("admin-keys", key_id))


@budgets.command("show", epilog=EXIT_CODES_HELP)
def show_budgets(
    level: Annotated[Level | None, typer.Argument(help="Of one level; default: of all that have any.")] = None,
    name: Annotated[str | None, typer.Argument(help="TENANT, TENANT/PROJECT or KEY_ID; of task a TENANT.")] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show budgets as they are set. What is used of them: `jouleway top`."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).show_budgets(level, name))


@budgets.command("set", epilog=EXIT_CODES_HELP)
def set_budgets(
    level: Annotated[Level, typer.Argument(help="Whose budgets.")],
    name: Annotated[str, typer.Argument(help="TENANT, TENANT/PROJECT or KEY_ID; of task a TENANT.")],
    terms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BUDGET...", help="tokens=1000000:1h 'money=20:calendar day' concurrency=8; none: no limit."
        ),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="No budget: without a limit of its own.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Set the budgets of one level: these and no others. What was used of equal ones stays used."""
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).set_budgets(level, name, terms or [], none=none))


def audit(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The newest so many.")] = 50,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show who changed what, and every denied access, the newest first.

    The admin key is read from JOULEWAY_ADMIN_KEY, or from the file that --config names.
    """
    from scheduler.commands import directory as command

    raise typer.Exit(command.Admin(config, url, as_json=as_json).audit(limit))
