"""The output in docs/porting.md is real."""

import re
import subprocess
from collections import Counter

from c_port import command
from magma_conformance.vectors import load
from magma_conformance.vectors.generator.hazards import HAZARDS
from magma_conformance.wire.request_text import read_answers
from paths import REPOSITORY
from port_mistakes import MISTAKES

DOCUMENT = (REPOSITORY / "docs" / "porting.md").read_text(encoding="utf-8")


def shown(first_line: str) -> str:
    """The indented block that begins with this line."""
    block = re.search(rf"^    {first_line}\n(?:    .*\n)*", DOCUMENT, re.MULTILINE)
    assert block
    return re.sub(r"^    ", "", block.group(), flags=re.MULTILINE)


def test_the_port_gives_the_answer_that_is_shown(port, tmp_path):
    request, answer = tmp_path / "request", tmp_path / "answer"
    request.write_text(shown("magma-request 1"))
    subprocess.run([port, str(request), str(answer)], check=True)
    expected = read_answers(shown("magma-answer 1").split("\n"))
    assert read_answers(answer.read_text().split("\n")) == expected


def test_the_table_of_flags_is_complete():
    counts = Counter(flag for vector in load() for flag in vector.flags)
    for flag, hazard in HAZARDS.items():
        assert f"| {flag} | {counts[flag]} | {hazard.section} | {hazard.note} |\n" in DOCUMENT


def test_the_implementation_in_python(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "my_package.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    result = command("run", "--impl", "my_package:Mine", "--case", "vectors/*", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "16/16" in result.output
    assert "cases not run: no sums yet" in result.output
    assert "cases not run: no steps yet" in result.output


def test_the_count_of_mistakes():
    assert f"{len(MISTAKES)} that are planted" in DOCUMENT


def test_the_count_of_vectors():
    assert f" {len(load())} vectors" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
