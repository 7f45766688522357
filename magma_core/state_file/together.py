"""One read or write by several processes that share arrays: all succeed, or all fail."""

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def together(act: Callable[[], _T], any_failed: Callable[[bool], bool], /) -> _T:
    """The result of ``act`` in this process, once all processes have finished it.

    Args:
        act: reads or writes; changes nothing else.
        any_failed: reports to all processes whether this one failed, and returns whether any did.

    Raises:
        Exception: the error that ``act`` raised here.
        RuntimeError: if ``act`` failed in another process.
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
