"""Every Python snippet of README and the guides runs as it stands.

Each snippet of README is its own program; those of a guide form one program, in page order. A block that is not meant
to run is not fenced as Python.
"""

import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from paths import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INFO = re.compile(r"^```(\S.*)$", re.MULTILINE)


def program(text: str, blocks: list[re.Match[str]]) -> str:
    """These blocks and nothing else, on the lines where they stand, so that tracebacks point into the document."""
    lines = [""] * text.count("\n")
    for block in blocks:
        first = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


def programs() -> list[Any]:
    params = []
    for document in PAGES:
        text = document.read_text(encoding="utf-8")
        blocks = list(BLOCK.finditer(text))
        parts = [[block] for block in blocks] if document == README else [blocks]
        for part in filter(None, parts):
            line = text.count("\n", 0, part[0].start(1)) + 1
            params.append(pytest.param(program(text, part), document.name, id=f"{document.name}:{line}"))
    return params


@pytest.mark.parametrize(("code", "name"), programs())
def test_snippet_runs(code, name, tmp_path):
    for framework in sorted(set(re.findall(r"magma_(torch|jax|keras)\b", code))):
        if not importlib.util.find_spec(framework):
            pytest.skip(f"{framework} is not installed")
    file = tmp_path / f"{name}.py"
    file.write_text(code, encoding="utf-8")
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"} | os.environ
    done = subprocess.run([sys.executable, file], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("document", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_fences_are_known(document):
    """A block whose fence is misspelt would not be run, and nobody would notice."""
    assert set(INFO.findall(document.read_text(encoding="utf-8"))) <= {"python", "json", "text"}
