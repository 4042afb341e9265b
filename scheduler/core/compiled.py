"""Loops over all workers, and over all that runs on one, as machine code: the one file that knows numba.

Called by the core's files that have such loops. A loop is written plainly, one worker after the other, in the file
where its formula is at home; interpreted it would cost milliseconds a decision, and as vector operations of numpy ten
times what it costs here.

Compiled once per installation, at the first import, and kept beside the bytecode (``NUMBA_CACHE_DIR`` says where else);
where no folder may be written it is compiled at each start, which takes seconds. numba looks only at the file of a loop
when it asks whether what it kept is still true: a compiled function calls only compiled functions of its own file, and
``tests/unit/test_compiled.py`` finds a loop that was kept longer than the constants it was made with.
``NUMBA_DISABLE_JIT=1`` interprets everything, for a debugger.

A call costs about a microsecond with numbers, plain tuples and arrays; a named tuple or a member of an enumeration is
looked up in Python at every call, which costs a hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
from numba.core import types

P = ParamSpec("P")
R = TypeVar("R")

FLOAT, INT = types.float64, types.int64
FLOATS, INTS, CODES = types.float64[::1], types.int64[::1], types.uint8[::1]
"""Vectors: one number a worker, or one a request on it."""
TABLE, TERMS = types.float64[:, ::1], types.float32[:, ::1]
"""One row a quantity, one column a worker."""


def tuple_of(num: int) -> Any:
    """The type of a plain tuple of so many floats."""
    return types.UniTuple(FLOAT, num)


def compiled(returns: Any, *arguments: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function as machine code for exactly these types; dividing by zero gives infinity, as in numpy."""
    signature = (types.void if returns is None else returns)(*arguments)

    def compile_(function: Callable[P, R]) -> Callable[P, R]:
        try:
            loop: Callable[P, R] = numba.njit(signature, cache=True, error_model="numpy")(function)
        except RuntimeError:  # there is no folder that it may write to
            loop = numba.njit(signature, error_model="numpy")(function)
        return loop

    return compile_
