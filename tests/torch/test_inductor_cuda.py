"""What torch.compile makes of a step for an H100: no device is needed, but Triton is.

Read from PTX and SASS is that every operation is rounded by itself; that nothing else was changed is seen by running
Inductor's kernels in Triton's interpreter. It truncates to bfloat16, so that float16 stands for both.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from paths import HELPERS

from magma_core.config import BASES

WORKER = "inductor_cuda_worker.py"
INTERPRETER = "inductor_cuda_interpreter.py"
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")

STEPS = [*((base, "float32") for base in (*BASES, "factor-1")), ("adamw", "bfloat16"), ("adamw", "float16")]

# Contracted, approximate, or with subnormals flushed. In float64 only integers are added up, below 2⁵³.
INEXACT = re.compile(r"\bfma\.\S*(?:f32|f16|bf16)|\.approx|\.full|\.ftz")
# ptxas may contract what PTX leaves open: `mul.f32` and `add.f32` without .rn. Its division in float64 has one FFMA,
# which multiplies by RZ, a zero; and it moves constants with HFMA2.
INEXACT_SASS = re.compile(r"\b(?:FFMA|HFMA2|HFMA2\.\S+) (?!\S+, -?RZ, )|\bMUFU\.(?!RCP64H|RSQ64H)|\.FTZ\b")


def kernels(folder: Path, *arguments: str) -> list[dict[str, str]]:
    """The kernels of a step; see the worker."""
    file = folder / "kernels.json"
    run(WORKER, str(file), *arguments)
    return json.loads(file.read_text())


def run(worker: str, *arguments: str) -> str:
    """What a worker prints, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(HELPERS / worker), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def inexact(found: list[dict[str, str]]) -> set[str]:
    """Instructions that do not round as the contract says."""
    texts = [(INEXACT, kernel["ptx"]) for kernel in found] + [(INEXACT_SASS, kernel["sass"]) for kernel in found]
    return {line.split()[0] for pattern, text in texts for line in instructions(text) if pattern.search(line)}


def instructions(text: str) -> list[str]:
    """Without labels, directives, predicates, and what the disassembler says of the schedule."""
    lines = (line.strip() for line in text.splitlines())
    return [re.sub(r"^(?:\S*:\S*:\S*\s+)?(?:@\S+\s+)?", "", line) for line in lines if line.endswith(";")]


@needs_triton
@pytest.mark.parametrize(("base", "dtype"), STEPS)
def test_operations_are_rounded_one_by_one(tmp_path: Path, base: str, dtype: str) -> None:
    found = kernels(tmp_path, base, dtype)
    assert inexact(found) == set()
    text = "\n".join(kernel["ptx"] for kernel in found)
    assert "div.rn.f64" in text
    assert "sqrt.rn.f64" in text


@needs_triton
def test_fences_are_needed(tmp_path: Path) -> None:
    assert {"fma.rn.f32", "div.full.f32", "FFMA"} <= inexact(kernels(tmp_path, "adamw", "float32", "fused"))


@needs_triton
def test_stacked_fences_hold(tmp_path: Path) -> None:
    assert inexact(kernels(tmp_path, "stacks", "float32")) == set()


@needs_triton
def test_stacks_of_xors_cancel(tmp_path: Path) -> None:
    assert inexact(kernels(tmp_path, "stacks", "float32", "fence")) == {"fma.rn.f32", "FFMA"}


@needs_triton
def test_division_by_way_of_float64_is_needed(tmp_path: Path) -> None:
    wrong = inexact(kernels(tmp_path, "adamw", "float32", "divide"))
    assert {"div.full.f32", "MUFU.RCP"} <= wrong
    assert "fma.rn.f32" not in wrong


@needs_triton
def test_interpreted_program_gives_the_bits_of_numpy() -> None:
    assert run(INTERPRETER, "adamw", "float16").split() == []


@needs_triton
def test_f4_narrowing_is_needed() -> None:
    """Two steps in one program, as on the CPU (tests/core/test_fences.py)."""
    assert run(INTERPRETER, "sgd", "float16", "astype").split() != []


def test_contraction_would_be_seen() -> None:
    assert inexact([{"ptx": "fma.rn.f64 %rd1, %rd2, %rd3, %rd4;\nmul.f32 %r1, %r2, %r3;", "sass": ""}]) == set()
    wrong = "@%p1 fma.rn.f32 %r1, %r2, %r3, %r4;\ndiv.full.f32 %r1, %r2, %r3;\nadd.ftz.f32 %r1, %r2, %r3;"
    assert inexact([{"ptx": wrong, "sass": ""}]) == {"fma.rn.f32", "div.full.f32", "add.ftz.f32"}
    moves = "--:-:-:-:1\tHFMA2.MMA R5, -RZ, RZ, 0, 0;"
    inside_division = "--:-:1:-:2\t@P0 FFMA R4, RZ, R13, R11;\n02:-:1:-:2\tMUFU.RCP64H R7, R9;"
    assert inexact([{"ptx": "", "sass": f"{moves}\n{inside_division}"}]) == set()
    wrong = "--:-:1:-:2\t@!P0 FFMA R4, R2, R13, R11;\n--:-:-:-:1\tMUFU.RSQ R5, R6;\n02:-:1:-:2\tFMUL.FTZ R7, R9, R3;"
    assert inexact([{"ptx": "", "sass": wrong}]) == {"FFMA", "MUFU.RSQ", "FMUL.FTZ"}
