"""System programs that tests need. A missing one skips the test, or fails it if a CI variable requires the program."""

import os
import shutil

import pytest


def find(*names: str, variable: str, remedy: str) -> str:
    """The path of the first of these programs that is there.

    Args:
        names: of programs that do the same.
        variable: of the environment; where it is "required", a program that is missing fails the test.
        remedy: how to install it.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    missing = f"{names[0]} is not installed ({remedy})"
    if os.environ.get(variable) == "required":
        pytest.fail(f"{missing}, and {variable}=required")
    pytest.skip(missing)
