"""Values that change at known moments and stay as they are in between: a price, a carbon intensity, a word.

Called by ``scheduler.accounting`` (in unix time) and by the core (on its own clock). Pure. It must never know what a
value means.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Steps(Generic[Value]):
    """``values[k]`` from ``at_s[k - 1]`` on, until ``at_s[k]``; the first ever before, the last for ever after.

    Moments are seconds in strictly ascending order; there is one more value than moments, and neighbours differ.
    """

    at_s: tuple[float, ...]
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.at_s) + 1, (len(self.values), len(self.at_s))
        assert all(before < after for before, after in pairwise(self.at_s)), "moments are not in order"

    @staticmethod
    def always(value: Value) -> Steps[Value]:
        """One that never changes."""
        return Steps((), (value,))

    @staticmethod
    def of(first: Value, changes: Iterable[tuple[float, Value]]) -> Steps[Value]:
        """From (moment, value from then on), moments ascending; changes to what is already so are left out."""
        at_s: list[float] = []
        values: list[Value] = [first]
        for moment_s, value in changes:
            if value != values[-1]:
                at_s.append(moment_s)
                values.append(value)
        return Steps(tuple(at_s), tuple(values))

    @property
    def is_flat(self) -> bool:
        """Whether it never changes."""
        return not self.at_s

    def at(self, moment_s: float) -> Value:
        """The value at that moment; a change counts from its own moment on."""
        return self.values[bisect_right(self.at_s, moment_s)]

    def next_s(self, moment_s: float) -> float:
        """When it changes next, after that moment; infinite where it never does."""
        place = bisect_right(self.at_s, moment_s)
        return self.at_s[place] if place < len(self.at_s) else inf

    def between(self, from_s: float, to_s: float) -> tuple[float, ...]:
        """The moments of its changes after ``from_s`` and before ``to_s``."""
        return self.at_s[bisect_right(self.at_s, from_s) : bisect_left(self.at_s, to_s)]

    def map(self, function: Callable[[Value], Other]) -> Steps[Other]:
        """The same with another value for each."""
        return Steps.of(
            function(self.values[0]),
            ((at_s, function(value)) for at_s, value in zip(self.at_s, self.values[1:], strict=True)),
        )

    def shifted(self, by_s: float) -> Steps[Value]:
        """The same on a clock that shows so much more. Changes that fall together become one."""
        changes = dict(zip([at_s + by_s for at_s in self.at_s], self.values[1:], strict=True))
        return Steps.of(self.values[0], changes.items())


def combined(function: Callable[..., Value], *steps: Steps[Any]) -> Steps[Value]:
    """``function`` of what each of them is, at every moment."""
    moments = sorted({at_s for each in steps for at_s in each.at_s})
    first = function(*(each.values[0] for each in steps))
    return Steps.of(first, ((at_s, function(*(each.at(at_s) for each in steps))) for at_s in moments))
