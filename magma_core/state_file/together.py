"""One read or write by several processes that share arrays: all of them succeed, or all fail."""

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def together(act: Callable[[], _T], any_failed: Callable[[bool], bool], /) -> _T:
    """What ``act`` returns here, once all processes have done it.

    Args:
        act: reads or writes; changes nothing else.
        any_failed: asks all processes, with whether this one failed.

    Raises:
        Exception: what ``act`` raised here.
        RuntimeError: if it failed in another process.
    """
    try:
        result = act()
    except Exception:
        any_failed(True)
        raise
    if any_failed(False):
        raise RuntimeError(
            "another process could not read or write the state file, see its error; nothing has been changed"
        )
    return result
