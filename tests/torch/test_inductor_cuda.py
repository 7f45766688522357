"""torch.compile's kernels of a step for an H100. The tests need no device, but Triton.

PTX and SASS show that each operation is rounded on its own. Triton's interpreter runs Inductor's kernels and shows that
nothing else changed. It truncates to bfloat16, so float16 stands for both.
"""

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
from by_name import call
from magma_conformance.processes.worker import Worker

from magma_core.config import BASES

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")

Kernels = list[dict[str, str]]

# AdamW as one block and as many, in every format; of the others, which differ in what is done to elements, the latter
BOTH, ROWS = ("whole", "rows"), ("rows",)
STEPS = [("adamw", dtype, BOTH) for dtype in ("float32", "bfloat16", "float16")]
STEPS += [(base, "float32", ROWS) for base in (*BASES, "factor-1") if base != "adamw"]

# Contracted, approximate, or with subnormals flushed. In float64 only integers are added up, below 2⁵³.
INEXACT = re.compile(r"\bfma\.\S*(?:f32|f16|bf16)|\.approx|\.full|\.ftz")
# ptxas may contract what PTX leaves open: `mul.f32` and `add.f32` without .rn. Its division in float64 has one FFMA,
# which multiplies by RZ, a zero; and it moves constants with HFMA2.
INEXACT_SASS = re.compile(r"\b(?:FFMA|HFMA2|HFMA2\.\S+) (?!\S+, -?RZ, )|\bMUFU\.(?!RCP64H|RSQ64H)|\.FTZ\b")


@pytest.fixture(scope="module")
def compiled() -> Iterator[Callable[..., Kernels]]:
    """The kernels of a step, made in a process that has to be told that there is a device."""
    process = Worker()
    yield lambda base, dtype, leaves=ROWS, without=None: process.call(
        call, "inductor_cuda_steps:compiled", base, dtype, leaves, without
    )
    process.end()


@pytest.fixture(scope="module")
def differences() -> Iterator[Callable[..., list[str]]]:
    """What differs from NumPy when a step is interpreted, in a process where Triton does so."""
    process = Worker({"TRITON_INTERPRET": "1"})
    yield lambda *arguments: process.call(call, "inductor_cuda_interpreter:differences", *arguments)
    process.end()


def inexact(found: Kernels) -> set[str]:
    """Instructions that do not round as the contract says."""
    texts = [(INEXACT, kernel["ptx"]) for kernel in found] + [(INEXACT_SASS, kernel["sass"]) for kernel in found]
    return {line.split()[0] for pattern, text in texts for line in instructions(text) if pattern.search(line)}


def instructions(text: str) -> list[str]:
    """Without labels, directives, predicates, and what the disassembler says of the schedule."""
    lines = (line.strip() for line in text.splitlines())
    return [re.sub(r"^(?:\S*:\S*:\S*\s+)?(?:@\S+\s+)?", "", line) for line in lines if line.endswith(";")]


@needs_triton
@pytest.mark.parametrize(("base", "dtype", "leaves"), STEPS)
def test_operations_are_rounded_one_by_one(
    compiled: Callable[..., Kernels], base: str, dtype: str, leaves: tuple[str, ...]
) -> None:
    found = compiled(base, dtype, leaves)
    assert inexact(found) == set()
    text = "\n".join(kernel["ptx"] for kernel in found)
    assert "div.rn.f64" in text
    assert "sqrt.rn.f64" in text


@needs_triton
def test_fences_are_needed(compiled: Callable[..., Kernels]) -> None:
    assert {"fma.rn.f32", "div.full.f32", "FFMA"} <= inexact(compiled("adamw", "float32", without="fused"))


@needs_triton
def test_stacked_fences_hold(compiled: Callable[..., Kernels]) -> None:
    assert inexact(compiled("stacks", "float32")) == set()


@needs_triton
def test_stacks_of_xors_cancel(compiled: Callable[..., Kernels]) -> None:
    assert inexact(compiled("stacks", "float32", without="fence")) == {"fma.rn.f32", "FFMA"}


@needs_triton
def test_division_by_way_of_float64_is_needed(compiled: Callable[..., Kernels]) -> None:
    wrong = inexact(compiled("adamw", "float32", without="divide"))
    assert {"div.full.f32", "MUFU.RCP"} <= wrong
    assert "fma.rn.f32" not in wrong


@needs_triton
def test_interpreted_program_gives_the_bits_of_numpy(differences: Callable[..., list[str]]) -> None:
    assert differences("adamw", "float16") == []


@needs_triton
def test_f4_narrowing_is_needed(differences: Callable[..., list[str]]) -> None:
    """Two steps in one program, as on the CPU (tests/core/test_fences.py)."""
    assert differences("sgd", "float16", "astype") != []


def test_contraction_would_be_seen() -> None:
    assert inexact([{"ptx": "fma.rn.f64 %rd1, %rd2, %rd3, %rd4;\nmul.f32 %r1, %r2, %r3;", "sass": ""}]) == set()
    wrong = "@%p1 fma.rn.f32 %r1, %r2, %r3, %r4;\ndiv.full.f32 %r1, %r2, %r3;\nadd.ftz.f32 %r1, %r2, %r3;"
    assert inexact([{"ptx": wrong, "sass": ""}]) == {"fma.rn.f32", "div.full.f32", "add.ftz.f32"}
    moves = "--:-:-:-:1\tHFMA2.MMA R5, -RZ, RZ, 0, 0;"
    inside_division = "--:-:1:-:2\t@P0 FFMA R4, RZ, R13, R11;\n02:-:1:-:2\tMUFU.RCP64H R7, R9;"
    assert inexact([{"ptx": "", "sass": f"{moves}\n{inside_division}"}]) == set()
    wrong = "--:-:1:-:2\t@!P0 FFMA R4, R2, R13, R11;\n--:-:-:-:1\tMUFU.RSQ R5, R6;\n02:-:1:-:2\tFMUL.FTZ R7, R9, R3;"
    assert inexact([{"ptx": "", "sass": wrong}]) == {"FFMA", "MUFU.RSQ", "FMUL.FTZ"}
