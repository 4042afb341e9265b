"""Tasks are words of clients: their accounts come and go, and are never more than so many."""

from scheduler.core.budget_accounts import Budget, Measure
from scheduler.core.budget_tasks import TaskAccounts
from scheduler.core.budget_windows import SECOND_US, Window

MINUTE = {"acme": (Budget(Measure.TOKENS, 100, Window.parse("calendar minute")),)}
TOTAL = {"acme": (Budget(Measure.TOKENS, 100, Window.parse("total")),)}


def keep(tasks: TaskAccounts, name: str, used: int = 1, at_us: int = 0) -> None:
    accounts = tasks.of("acme", name, at_us)
    tasks.keep("acme", name, accounts)
    for account in accounts:
        account.advance(at_us)
        account.add(account.slot, used=used)


def test_only_a_task_of_a_tenant_with_such_budgets_has_accounts() -> None:
    """Nothing is kept for the others."""
    tasks = TaskAccounts(MINUTE, max_tasks_per_tenant=2)
    assert [(), (), 1] == [tasks.of("acme", "", 0), tasks.of("other", "a", 0), len(tasks.of("acme", "a", 0))]
    assert 0 == len(tasks)


def test_a_task_that_was_kept_is_found_again() -> None:
    """Many calls, one total."""
    tasks = TaskAccounts(TOTAL, max_tasks_per_tenant=2)
    keep(tasks, "a", 30)
    keep(tasks, "a", 30)
    assert [40] == [each.left for each in tasks.of("acme", "a", 0)]
    assert ["task acme/a"] == [str(each.level) for each in tasks.accounts()]


def test_a_full_tenant_forgets_a_task_of_which_nothing_counts() -> None:
    """The one used longest ago; one that counts is never forgotten."""
    tasks = TaskAccounts(MINUTE, max_tasks_per_tenant=2)
    keep(tasks, "a")
    keep(tasks, "b")
    assert tasks.has_room("acme", "a", 0)
    assert not tasks.has_room("acme", "c", 0)
    keep(tasks, "a", at_us=61 * SECOND_US)
    assert tasks.has_room("acme", "c", 61 * SECOND_US)
    keep(tasks, "c", at_us=61 * SECOND_US)
    assert ["task acme/a", "task acme/c"] == [str(each.level) for each in tasks.accounts()]
    assert not tasks.has_room("acme", "d", 61 * SECOND_US)


def test_a_search_in_vain_is_not_repeated_at_once() -> None:
    """Or whoever invents tasks could keep everybody busy; a clock that goes back delays nobody."""
    tasks = TaskAccounts(TOTAL, max_tasks_per_tenant=1)
    keep(tasks, "a")
    (account,) = tasks.of("acme", "a", 0)
    assert not tasks.has_room("acme", "b", 10 * SECOND_US)
    account.add(account.slot, used=-1)
    assert not tasks.has_room("acme", "b", 11 * SECOND_US - 1)
    assert tasks.has_room("acme", "b", 9 * SECOND_US)


def test_other_limits_hold_for_tasks_that_exist() -> None:
    """What they used stays; without budgets of tasks nothing is kept."""
    tasks = TaskAccounts(TOTAL, max_tasks_per_tenant=1)
    keep(tasks, "a", 30)
    tasks.reload({"acme": (Budget(Measure.TOKENS, 50, Window.parse("total")),)})
    assert [20] == [each.left for each in tasks.of("acme", "a", 0)]
    tasks.reload({})
    assert 0 == len(tasks)
