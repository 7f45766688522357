"""The vectors are strong enough: at least one finds each mistake planted in the C port."""

import subprocess

import pytest
from c_port import SOURCE
from magma_conformance.external.program import Program
from magma_conformance.runner.judge_vectors import judge_vectors
from magma_conformance.vectors import load
from port_mistakes import MISTAKES

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake, tmp_path):
    right, wrong = MISTAKES[mistake]
    text = SOURCE.read_text(encoding="utf-8")
    assert right in text, "the port has changed: say anew where this mistake is to be made"
    (tmp_path / "wrong.c").write_text(text.replace(right, wrong), encoding="utf-8")
    command = ["cc", "-std=c11", "-ffp-contract=off", "-w", "-o", "port", "wrong.c", "-lm"]
    subprocess.run(command, check=True, cwd=tmp_path)
    program = Program([str(tmp_path / "port")], "port with a mistake", timeout=60)
    assert any(result.status in ("different", "failed") for result in judge_vectors(program, load()))
