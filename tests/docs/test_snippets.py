"""Every Python snippet of README and the guides runs as it stands.

Each snippet of README is its own program; those of a guide form one program, in page order. Each recipe is a program,
too, but those of one framework share a process. A block that is not meant to run is not fenced as Python.
"""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import REPOSITORY

README = REPOSITORY / "README.md"
RECIPES = REPOSITORY / "docs" / "recipes.md"
PAGES = [README, *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INFO = re.compile(r"^```(\S.*)$", re.MULTILINE)
FRAMEWORK = re.compile(r"magma_(torch|jax|keras)\b")
RUN = "import runpy, sys\nfor file in sys.argv[1:]: runpy.run_path(file, run_name='__main__')"


def program(text: str, blocks: list[re.Match[str]]) -> str:
    """These blocks and nothing else, on the lines where they stand, so that tracebacks point into the document."""
    lines = [""] * text.count("\n")
    for block in blocks:
        first = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


def framework(block: re.Match[str]) -> list[str]:
    return FRAMEWORK.findall(block[1])[:1]


def processes(document: Path, blocks: list[re.Match[str]]) -> list[list[list[re.Match[str]]]]:
    """The blocks of each program of each process."""
    if document == README:
        return [[[block]] for block in blocks]
    if document == RECIPES:
        by_framework = itertools.groupby(sorted(blocks, key=framework), framework)
        return [[[block] for block in own] for _, own in by_framework]
    return [[blocks]] if blocks else []


def runs() -> list[Any]:
    params = []
    for document in PAGES:
        text = document.read_text(encoding="utf-8")
        blocks = list(BLOCK.finditer(text))
        for parts in processes(document, blocks):
            line = text.count("\n", 0, parts[0][0].start(1)) + 1
            programs = [program(text, part) for part in parts]
            params.append(pytest.param(programs, document.name, id=f"{document.name}:{line}"))
    return params


@pytest.mark.parametrize(("programs", "name"), runs())
def test_snippet_runs(programs, name, tmp_path):
    for needed in sorted(set(FRAMEWORK.findall("".join(programs)))):
        if not importlib.util.find_spec(needed):
            pytest.skip(f"{needed} is not installed")
    files = [tmp_path / f"{name}.{i}.py" for i in range(len(programs))]
    for file, code in zip(files, programs, strict=True):
        file.write_text(code, encoding="utf-8")
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"} | os.environ
    done = subprocess.run(
        [sys.executable, "-c", RUN, *files], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("document", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_fences_are_known(document):
    """A block whose fence is misspelt would not be run, and nobody would notice."""
    assert set(INFO.findall(document.read_text(encoding="utf-8"))) <= {"python", "json", "text"}
