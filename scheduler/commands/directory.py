"""`jouleway tenants`, `keys`, `admin-keys`, `budgets`, `audit`: the admin routes, asked and shown.

Called by ``scheduler.commands.directory_command``. It must never take a key as an argument; a key that was made goes to
standard output alone, everything else that is said to standard error.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from scheduler.accounting.budget_terms import COUNTED
from scheduler.commands import directory_view as view
from scheduler.commands.control_plane import CHANGE_TIMEOUT_S, admin_listener, send, unreachable
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.http_client import BadAnswer, Reply
from scheduler.commands.output import print_json, print_lines, print_table

ROOT = "/v1/jouleway/admin"
PAGE = 1_000
CODE_BY_STATUS = {
    400: ExitCode.USAGE,
    401: ExitCode.POLICY,
    403: ExitCode.POLICY,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.FAILURE,
    503: ExitCode.UNAVAILABLE,
}
ANYWHERE = "any"
IDEMPOTENCY_HEADER = "Idempotency-Key"
TRIES = 2
MAX_WAIT_S = 5.0
REMEDIES = {
    "already_made": "jouleway audit names it",
    "not_committed": "jouleway audit shows it once it is in effect; look there before asking again",
}
"""By the word of a refusal."""

Terms = Mapping[str, object]


class Admin:
    """One control plane, asked as an operator. Every method prints and returns an exit code, or raises CommandError."""

    def __init__(self, config_path: Path | None, url: str | None, *, as_json: bool) -> None:
        self._listener = admin_listener(config_path, url)
        self._as_json = as_json

    # -- tenants

    def list_tenants(self) -> ExitCode:
        """All of them."""
        return self._show_all("/tenants", "jouleway tenants", view.TENANT_COLUMNS, view.tenant_row)

    def create_tenant(self, name: str, terms: Terms) -> ExitCode:
        """With what is given, the rest by default."""
        told = self._ask("POST", "/tenants", {"name": name, **sent(terms)})
        return self._say(told, f"tenant {name} was created, without a key: jouleway keys create {name}")

    def set_tenant(self, name: str, terms: Terms, *, reopen: bool) -> ExitCode:
        """What is given."""
        body = {**sent(terms), **({"is_closed": False} if reopen else {})}
        _check_any(body)
        return self._say(self._ask("PATCH", f"/tenants/{_part(name)}", body), f"tenant {name} was changed")

    def close_tenant(self, name: str) -> ExitCode:
        """At once."""
        told = self._ask("DELETE", f"/tenants/{_part(name)}")
        return self._say(told, f"tenant {name} is closed: {told['num_keys']} keys open nothing any more")

    def add_project(self, tenant: str, name: str) -> ExitCode:
        """Without budgets."""
        told = self._ask("POST", f"/tenants/{_part(tenant)}/projects", {"name": name})
        return self._say(told, f"project {tenant}/{name} was created")

    def remove_project(self, tenant: str, name: str) -> ExitCode:
        """Where no key names it."""
        told = self._ask("DELETE", f"/tenants/{_part(tenant)}/projects/{_part(name)}")
        return self._say(told, f"project {tenant}/{name} was removed")

    # -- keys

    def list_keys(self, tenant: str | None) -> ExitCode:
        """Of one tenant or of all."""
        path = "/keys" if tenant is None else f"/tenants/{_part(tenant)}/keys"
        return self._show_all(path, "jouleway keys", view.KEY_COLUMNS, view.key_row)

    def create_key(self, tenant: str, terms: Terms) -> ExitCode:
        """Shown once."""
        told = self._ask("POST", f"/tenants/{_part(tenant)}/keys", sent(terms))
        return self._hand_over(told, f"{told['key_id']} of {told['tenant']}/{told['project']} was created")

    def set_key(self, key_id: str, terms: Terms) -> ExitCode:
        """What is given."""
        body = sent(terms)
        _check_any(body)
        return self._say(self._ask("PATCH", f"/keys/{_part(key_id)}", body), f"{key_id} was changed")

    def move_key(self, key_id: str, tenant: str | None, project: str | None) -> ExitCode:
        """To where it fits."""
        told = self._ask("POST", f"/keys/{_part(key_id)}/move", {"tenant": tenant, "project": project})
        return self._say(told, f"{key_id} is of {told['tenant']}/{told['project']} now")

    def rotate(self, kind: str, key_id: str, overlap_s: int) -> ExitCode:
        """Shown once. ``kind``: ``keys`` or ``admin-keys``."""
        told = self._ask("POST", f"/{kind}/{_part(key_id)}/rotate", {"overlap_s": overlap_s})
        words = f"for {overlap_s} s more" if overlap_s else "no longer"
        return self._hand_over(told, f"{key_id} was rotated; the secret before is valid {words}")

    def revoke(self, kind: str, key_id: str) -> ExitCode:
        """At once. ``kind``: ``keys`` or ``admin-keys``."""
        told = self._ask("POST", f"/{kind}/{_part(key_id)}/revoke", {})
        return self._say(told, f"{key_id} is revoked; requests that run go on")

    def list_admin_keys(self) -> ExitCode:
        """The house's own among them."""
        return self._show_all("/admin-keys", "jouleway admin-keys", view.ADMIN_KEY_COLUMNS, view.admin_key_row)

    def create_admin_key(self, terms: Terms) -> ExitCode:
        """Shown once."""
        told = self._ask("POST", "/admin-keys", sent(terms))
        return self._hand_over(told, f"{told['key_id']} was created, role {told['role']}")

    # -- budgets and the audit log

    def show_budgets(self, level: str | None, name: str | None) -> ExitCode:
        """Of one level or of all that have any."""
        if (level is None) != (name is None):
            raise CommandError("give LEVEL and NAME, or none of them", code=ExitCode.USAGE)
        query = "" if level is None else "?" + urlencode({"level": str(level), "name": name})
        told = self._ask("GET", f"/budgets{query}")
        if self._as_json:
            print_json(told)
            return ExitCode.OK
        rows = [row for each in told.get("data", [told]) for row in view.budget_rows(each)]
        print_table("jouleway budgets", view.BUDGET_COLUMNS, rows, numeric_from=3)
        if told.get("has_more"):
            print_lines([f"and more: these are the first {len(told['data'])} levels"])
        return ExitCode.OK

    def set_budgets(self, level: str, name: str, terms: list[str], *, none: bool) -> ExitCode:
        """These and no others; ``none``: that there are none is meant."""
        if none == bool(terms):
            raise CommandError("give the budgets, or --none for no limit", code=ExitCode.USAGE)
        body = {"level": str(level), "name": name, "budgets": [budget_of(text) for text in terms]}
        told = self._ask("PUT", "/budgets", body)
        words = f"{len(told['budgets'])} budgets" if told["budgets"] else "no budget"
        return self._say(told, f"{level} {name} has {words} now")

    def audit(self, limit: int) -> ExitCode:
        """The newest first."""
        rows = self._pages("/audit", limit=limit, cursor="before")
        if self._as_json:
            print_json({"object": "list", "data": rows})
        else:
            print_table("jouleway audit", view.AUDIT_COLUMNS, [view.audit_row(row) for row in rows], numeric_from=9)
        return ExitCode.OK

    # -- asking and saying

    def _show_all(self, path: str, title: str, columns: tuple[str, ...], row: view.Row) -> ExitCode:
        rows = self._pages(path)
        if self._as_json:
            print_json({"object": "list", "data": rows})
        else:
            print_table(title, columns, [row(each) for each in rows], numeric_from=len(columns))
        return ExitCode.OK

    def _pages(self, path: str, *, limit: int | None = None, cursor: str = "after") -> list[dict[str, Any]]:
        """All rows, or the first ``limit``."""
        rows: list[dict[str, Any]] = []
        query: dict[str, object] = {}
        while limit is None or len(rows) < limit:
            query["limit"] = PAGE if limit is None else min(PAGE, limit - len(rows))
            page = self._ask("GET", f"{path}?{urlencode(query)}")
            rows += page["data"]
            if not page["has_more"] or not page["data"]:
                break
            query[cursor] = page["last"]
        return rows

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Raises: CommandError, in the words of the control plane."""
        if method == "GET":
            reply = asyncio.run(send(self._listener, ROOT + path))
        else:
            reply = asyncio.run(self._change(method, ROOT + path, body))
        try:
            told = reply.json()
        except BadAnswer as error:
            raise unreachable(self._listener, error) from None
        if reply.status in (200, 201) and isinstance(told, dict):
            return told
        raise self._refused(reply, told)

    async def _change(self, method: str, path: str, body: object) -> Reply:
        """Under an Idempotency-Key of its own: what a ledger did not take in time is asked for again, and made once."""
        headers = {IDEMPOTENCY_HEADER: f"cli-{secrets.token_hex(16)}"}
        for number in range(1, TRIES + 1):
            reply = await send(
                self._listener, path, payload=body, headers=headers, method=method, timeout_s=CHANGE_TIMEOUT_S
            )
            if reply.status != 503 or number == TRIES:
                break
            await asyncio.sleep(_wait_s(reply))
        return reply

    def _refused(self, reply: Reply, told: object) -> CommandError:
        error = told.get("error") if isinstance(told, dict) else None
        words = error.get("message") if isinstance(error, dict) else None
        if reply.status == 401 or not isinstance(words, str):
            words = f"{self._listener.url} answers with status {reply.status}"
        remedy = self._listener.remedy if reply.status == 401 else REMEDIES.get(code_of(error), "")
        return CommandError(words, code=CODE_BY_STATUS.get(reply.status, ExitCode.FAILURE), remedy=remedy)

    def _say(self, told: dict[str, Any], words: str) -> ExitCode:
        if self._as_json:
            print_json(told)
        sys.stderr.write(words + "\n")
        return ExitCode.OK

    def _hand_over(self, told: dict[str, Any], words: str) -> ExitCode:
        """The key to standard output, alone or within the JSON."""
        if self._as_json:
            print_json(told)
        else:
            sys.stdout.write(told["key"] + "\n")
            sys.stdout.flush()
        sys.stderr.write(f"{words}. It is shown this once.\n")
        return ExitCode.OK


def code_of(error: object) -> str:
    """The word of a refusal."""
    return str(error.get("code")) if isinstance(error, dict) else ""


def _wait_s(reply: Reply) -> float:
    """As the control plane says, within reason."""
    told = reply.headers.get("retry-after", "1")
    return min(float(told), MAX_WAIT_S) if told.isdecimal() else MAX_WAIT_S


def sent(terms: Terms) -> dict[str, object]:
    """What was given on the command line, as the routes read it."""
    body = {name: value for name, value in terms.items() if value is not None}
    if isinstance(zones := body.get("zones"), str):
        body["zones"] = None if zones == ANYWHERE else [name.strip() for name in zones.split(",")]
    return body


def budget_of(text: str) -> dict[str, str]:
    """``tokens=1000000:1h`` as the routes read it. Raises: CommandError."""
    word, is_given, rest = text.partition("=")
    amount, _, per = rest.partition(":")
    if word not in COUNTED or not is_given or not amount:
        raise CommandError(
            f"{text[:80]!r} is no budget",
            code=ExitCode.USAGE,
            remedy=f"write WHAT=AMOUNT:WINDOW, for example tokens=1000000:1h; WHAT is one of {', '.join(COUNTED)}",
        )
    return {word: amount, **({"per": per} if per else {})}


def _check_any(body: Mapping[str, object]) -> None:
    if not body:
        raise CommandError("nothing is to be changed", code=ExitCode.USAGE, remedy="--help lists what can be")


def _part(name: str) -> str:
    """Of a path."""
    if not name or name in (".", ".."):
        raise CommandError("a name is missing", code=ExitCode.USAGE)
    return quote(name, safe="")
