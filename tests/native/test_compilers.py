"""Whatever compiles a step gives the same bits, and one that contracts is refused."""

import re

import numpy as np
import pytest
from magma_native import CompilerMissing, compiler
from magma_native.library import library
from magma_native.source import source
from native_steps import LAYOUTS, Parameters, gradients
from required import find

from magma_core import AdamW, Base, RMSProp, Rule, magma

FORMULAS: list[tuple[Base, Rule, str]] = [
    (AdamW(weight_decay=0.1), magma(), "float32"),
    (RMSProp(), magma(momentum="before", decay="dense"), "bfloat16"),
]
INSTRUCTIONS = "-mfma"  # of x86; other processors have contraction in their first instructions
CONTRACTED = re.compile("contracts a·b")


def follow(base: Base, rule: Rule, kind: str) -> None:
    """Some steps, the same bits as NumPy's."""
    generator = np.random.default_rng(6)
    held = Parameters.of(base, rule, kind, LAYOUTS, generator)
    for number in range(1, 4):
        held.step(gradients(held.params, generator), number)


def program(name: str) -> str:
    return find(name, variable="MAGMA_CROSS", remedy=f"apt-get install {name}")


def with_flags(monkeypatch, old: str, *new: str) -> None:
    assert old in compiler.FLAGS
    flags = [flag for given in compiler.FLAGS for flag in (new if given == old else [given])]
    monkeypatch.setattr(compiler, "FLAGS", tuple(flags))


@pytest.mark.parametrize("name", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
def test_every_compiler_gives_the_same_bits(name, level, afresh, monkeypatch):
    with_flags(monkeypatch, "-O3", level)
    afresh(CC=program(name))
    for formula in FORMULAS:
        follow(*formula)


def test_instructions_of_every_processor_give_the_same_bits(afresh, monkeypatch):
    """Without -march=native: on x86 without AVX2, for which the dot product is written by hand."""
    monkeypatch.setattr(compiler, "OPTIONAL", ("-fopenmp",))
    afresh(CC=program("gcc"))
    follow(*FORMULAS[0])


def test_a_compiler_that_contracts_is_refused_and_wrong(afresh, monkeypatch):
    monkeypatch.setattr(compiler, "OPTIONAL", (*compiler.OPTIONAL, INSTRUCTIONS))
    with_flags(monkeypatch, "-ffp-contract=off", "-ffp-contract=fast")
    afresh(CC=program("gcc"))
    base, rule, kind = FORMULAS[0]
    with pytest.raises(CompilerMissing, match=CONTRACTED):
        follow(base, rule, kind)
    monkeypatch.setattr("magma_native.library._contracts", lambda made: False)
    with pytest.raises(AssertionError, match=r"\(\d+ ulp\); \d+ differ"):
        follow(base, rule, kind)


def test_flags_of_the_user_do_not_make_it_fast_and_loose(afresh):
    afresh(CC=f"{program('gcc')} -ffast-math")
    follow(*FORMULAS[0])


def test_a_compiler_that_fails_is_told_of(afresh, tmp_path):
    """What it says is in the message, and nothing is left in the cache."""
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no header of that name >&2\nexit 1\n")
    broken.chmod(0o755)
    afresh(CC=str(broken))
    with pytest.raises(CompilerMissing, match="broken cannot compile a step: no header of that name"):
        follow(*FORMULAS[0])
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CC": "no-such-compiler"}, "CC=no-such-compiler is not a program"),
        ({"CC": None, "PATH": "/nowhere"}, "no cc, gcc or clang is on the path.*: install gcc or clang, or set CC"),
    ],
)
def test_without_a_compiler_the_remedy_is_said(variables, said, afresh):
    afresh(**variables)
    with pytest.raises(CompilerMissing, match=said):
        follow(*FORMULAS[0])


def test_a_formula_is_compiled_once(afresh, monkeypatch):
    afresh()
    built = []
    monkeypatch.setattr("magma_native.library.source", lambda formula: built.append(formula) or source(formula))
    follow(*FORMULAS[0])
    follow(AdamW(beta1=0.5, weight_decay=0.3), magma(p=0.3, tau=1.0), "float32")  # other numbers
    assert len(built) == 1
    assert library.cache_info().currsize == 1
