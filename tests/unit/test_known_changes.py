"""Ids of changes: the newest are known, and where any was forgotten nobody is sure of the others."""

import pytest

from scheduler.accounting import known_changes
from scheduler.accounting.known_changes import KnownChanges


def test_what_is_not_known_is_sure_until_something_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first; what is put back is known again."""
    monkeypatch.setattr(known_changes, "MAX_KNOWN_CHANGES", 2)
    known = KnownChanges()
    for name in "ab":
        known.add(name)
    assert [True, True, False] == [name in known for name in "abc"]
    assert not any(known.may_have_forgotten(name) for name in "abc")
    known.add("c")
    assert [False, True, True] == [name in known for name in "abc"]
    assert [True, False, False] == [known.may_have_forgotten(name) for name in "abc"]
    known.add("a")
    assert [True, False, True] == [name in known for name in "abc"]
