"""The C port on emulated processors and with other compilers: the same bits everywhere."""

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from c_port import SOURCE, STRICT
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.cases.recorded import Recorded
from magma_conformance.external.program import Program
from magma_conformance.fuzz.case import FuzzCase
from magma_conformance.fuzz.hunt import check
from magma_conformance.runner.jobs import open_implementation, run_case
from magma_conformance.runner.judge_vectors import judge_vectors
from magma_conformance.runner.result import Result
from magma_conformance.vectors import load
from required import find

RANDOM = 60
"""Cases for each build."""


class Target(NamedTuple):
    """How to build for a processor, and how to run what was built."""

    compiler: str
    packages: str
    options: tuple[str, ...]
    emulator: str = ""


def cross(architecture: str, debian: str, *options: str) -> Target:
    """GCC's cross compiler for an architecture, by Debian's names."""
    triple = f"{architecture}-linux-gnu"
    packages = f"gcc-{triple} libc6-dev-{debian}-cross"
    return Target(f"{triple}-gcc", packages, ("-O2", "-static", *options), f"qemu-{architecture}")


TARGETS = {
    "native": Target("gcc", "gcc", ("-O3", "-march=native")),
    "clang": Target("clang", "clang", ("-O2",)),
    "aarch64": cross("aarch64", "arm64"),
    "riscv64": cross("riscv64", "riscv64"),
    "s390x": cross("s390x", "s390x", "-fexcess-precision=fast"),  # big-endian; see the last test
}


def compiled(target: Target, folder: Path, *options: str) -> Program:
    """The port as a program under test."""
    compiler = find(target.compiler, variable="MAGMA_CROSS", remedy=f"apt-get install {target.packages}")
    emulator = []
    if target.emulator:
        names = target.emulator, f"{target.emulator}-static"
        emulator = [find(*names, variable="MAGMA_CROSS", remedy="apt-get install qemu-user")]
    port = str(folder / "my-port")
    subprocess.run([compiler, *STRICT, *target.options, *options, "-o", port, str(SOURCE), "-lm"], check=True)
    return Program([*emulator, port], target.compiler)


def vectors(port: Program) -> Iterable[Result]:
    """All of them."""
    return judge_vectors(port, load())


def cases(port: Program) -> Iterable[Result]:
    """Every pair of options, and real gradients."""
    return (run_case(port, case) for case in (*pairwise(), Recorded()))


def random_cases(port: Program) -> Iterable[Result]:
    """Some of those that ``magma-conformance fuzz --exec`` runs, from the whole ranges of the specification."""
    reference = open_implementation("numpy", "eager", "cpu")
    drawn = (FuzzCase(seed=15, number=number, values=0, vary=False) for number in range(RANDOM))
    return (check(port, reference, case) for case in drawn)


PROOFS: tuple[Callable[[Program], Iterable[Result]], ...] = (vectors, cases, random_cases)
"""What every build must pass."""


@pytest.mark.parametrize("target", TARGETS)
def test_every_build_gives_every_bit(target, tmp_path):
    port = compiled(TARGETS[target], tmp_path, "-ffp-contract=off")
    results = [result for proof in PROOFS for result in proof(port)]
    assert len(results) == len(load()) + len(pairwise()) + 1 + RANDOM
    assert [f"{result.case}: {result.reason}" for result in results if result.status != "equal"] == []


@pytest.mark.parametrize("target", [name for name in TARGETS if TARGETS[name].emulator])
def test_a_contracted_build_fails_in_the_emulator(target, tmp_path):
    """All three processors have fused multiply-add, and the emulator rounds it once."""
    port = compiled(TARGETS[target], tmp_path, "-ffp-contract=fast")
    failed = [result for result in vectors(port) if result.status != "equal"]
    assert len(failed) > 20
    assert all(result.status == "different" and "Contraction" in result.flags for result in failed)


def test_the_port_refuses_to_be_compiled_with_excess_precision(tmp_path, capfd):
    """As -std=c11 asks of GCC for s390x: float expressions in double."""
    with pytest.raises(subprocess.CalledProcessError):
        compiled(TARGETS["s390x"], tmp_path, "-fexcess-precision=standard")
    assert "float expressions must be evaluated in float" in capfd.readouterr().err
