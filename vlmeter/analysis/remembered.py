"""What is asked of one table again and again, such as by every figure of a subject, is worked out once.

Only inside `remembering`, for whoever opens it changes no table meanwhile: a table is known by being the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pandas as pd

_Rest = ParamSpec("_Rest")
_Made = TypeVar("_Made")

#: By function, table and further arguments: the table, which keeps its identity as long as it is held, and the result.
_SEEN: ContextVar[dict[Any, tuple[pd.DataFrame, Any]] | None] = ContextVar("seen", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Keep the results of remembered functions until the block ends; inside another such block it is that one's."""
    if _SEEN.get() is not None:
        yield
        return
    token = _SEEN.set({})
    try:
        yield
    finally:
        _SEEN.reset(token)


def remembered(
    make: Callable[Concatenate[pd.DataFrame, _Rest], _Made],
) -> Callable[Concatenate[pd.DataFrame, _Rest], _Made]:
    """Let a function of a table be worked out once inside `remembering`; a frame is given as a copy each time."""

    @wraps(make)
    def found(table: pd.DataFrame, /, *args: _Rest.args, **kwargs: _Rest.kwargs) -> _Made:
        seen = _SEEN.get()
        if seen is None:
            return make(table, *args, **kwargs)
        key = (make, id(table), args, tuple(sorted(kwargs.items())))
        if key not in seen:
            seen[key] = (table, make(table, *args, **kwargs))
        value = seen[key][1]
        return cast("_Made", value.copy() if isinstance(value, pd.DataFrame) else value)

    return found
