"""Budgets of tasks: accounts that exist as long as something of them counts, at most so many a tenant.

Called by ``scheduler.core.budgets``. It must never know a request or an amount. A task is a word that a client made up:
its accounts are made when it first holds something, and forgotten when nothing of it counts any more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from scheduler.core.budget_accounts import Account, Budget, Level, renewed
from scheduler.core.budget_windows import SECOND_US

SEARCH_AGAIN_US = SECOND_US
"""After a search in vain for a task to forget, the next one of the same tenant waits so long."""


class TaskAccounts:
    """Of all tenants; the task used longest ago is forgotten first."""

    def __init__(self, budgets: Mapping[str, tuple[Budget, ...]], *, max_tasks_per_tenant: int) -> None:
        self._budgets = dict(budgets)
        self.most = max_tasks_per_tenant
        self._tasks: dict[str, OrderedDict[str, tuple[Account, ...]]] = {}
        self._searched_us: dict[str, int] = {}
        """By tenant: when no task could be forgotten."""

    def reload(self, budgets: Mapping[str, tuple[Budget, ...]]) -> None:
        """Other limits, for the tasks that exist as well."""
        self._budgets = dict(budgets)
        self._searched_us.clear()
        for tenant, tasks in list(self._tasks.items()):
            if not self._budgets.get(tenant):
                del self._tasks[tenant]
                continue
            for task, accounts in tasks.items():
                tasks[task] = renewed(_level(tenant, task), accounts, self._budgets[tenant])

    def of(self, tenant: str, task: str, at_us: int) -> tuple[Account, ...]:
        """The task's accounts; of one that is not kept, new ones that are not kept either."""
        budgets = self._budgets.get(tenant, ())
        if not task or not budgets:
            return ()
        tasks = self._tasks.get(tenant)
        if tasks is not None and task in tasks:
            return tasks[task]
        return tuple(Account(_level(tenant, task), budget, at_us) for budget in budgets)

    def has_room(self, tenant: str, task: str, at_us: int) -> bool:
        """Whether the task may be kept; forgets one of which nothing counts where that makes room."""
        tasks = self._tasks.get(tenant)
        if tasks is None or task in tasks or len(tasks) < self.most:
            return True
        searched_us = self._searched_us.get(tenant)
        if searched_us is not None and searched_us <= at_us < searched_us + SEARCH_AGAIN_US:
            return False
        for name, accounts in tasks.items():
            for account in accounts:
                account.advance(at_us)
            if all(account.is_idle for account in accounts):
                del tasks[name]
                return True
        self._searched_us[tenant] = at_us
        return False

    def keep(self, tenant: str, task: str, accounts: tuple[Account, ...]) -> None:
        """The task holds something; it is the one used last."""
        tasks = self._tasks.setdefault(tenant, OrderedDict())
        tasks[task] = accounts
        tasks.move_to_end(task)

    def accounts(self) -> Iterator[Account]:
        """All that are kept."""
        for tasks in self._tasks.values():
            for accounts in tasks.values():
                yield from accounts

    def __len__(self) -> int:
        """Tasks that are kept."""
        return sum(len(tasks) for tasks in self._tasks.values())


def _level(tenant: str, task: str) -> Level:
    return Level("task", f"{tenant}/{task}")
