"""A compiler and a cache of a test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from magma_native import compiler
from magma_native.library import library

_FOUND = compiler.find_compiler, compiler.cache_folder, compiler._flags, compiler._version, compiler._processor, library


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """``afresh(CC="clang")`` sets variables, None to unset one, and has compiler, cache and libraries looked for again.

    The cache is ``cache`` in the test's folder unless something else is said.
    """

    def look(**variables: str | None) -> None:
        for name, value in ({"MAGMA_CACHE": str(tmp_path / "cache")} | variables).items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        for cached in _FOUND:
            cached.cache_clear()

    yield look
    monkeypatch.undo()
    for cached in _FOUND:
        cached.cache_clear()
