"""Warnings that point at the user's line."""

import sys
import warnings


def warn(text: str, /) -> None:
    """Warn of the innermost line that is neither ours nor torch's."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "magma_torch",
        "magma_core",
        "torch",
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level + 1)
