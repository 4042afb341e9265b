"""The log in memory keeps order, pages backwards and is bounded."""

from scheduler.accounting.change_log import MemoryChangeLog
from tests.directory_words import changed, tenant


async def test_pages_are_the_newest_first_below_a_number() -> None:
    """A page's last number is where the next one begins."""
    log = MemoryChangeLog()
    for change in changed(*(tenant(name) for name in "abcde")):
        log.append(change)
    await log.commit()
    first = await log.page(before=None, limit=2)
    assert ["e", "d"] == [row.fields["target"] for row in first]
    second = await log.page(before=first[-1].number, limit=10)
    assert ["c", "b", "a"] == [row.fields["target"] for row in second]
    assert [] == await log.page(before=second[-1].number, limit=10)


async def test_the_oldest_are_forgotten() -> None:
    """Numbers go on."""
    log = MemoryChangeLog(max_changes=2)
    for change in changed(*(tenant(name) for name in "abc")):
        log.append(change)
    assert [3, 2] == [row.number for row in await log.page(before=None, limit=10)]


async def test_what_was_appended_is_held() -> None:
    """By its id."""
    log = MemoryChangeLog()
    for change in changed(tenant("a")):
        log.append(change)
    assert [True, False] == [await log.holds(each) for each in ("chg-0", "chg-1")]
