"""Compiled steps on another processor, in an emulator: the same bits."""

from pathlib import Path

import numpy as np
import pytest
from magma_native import compiler
from native_program import build, emulated
from native_steps import LAYOUTS, SPECIAL, UNMASKED, Parameters, gradients, special
from required import find

from magma_core import SGD, AdamW, Base, LaProp, RMSProp, Rule, magma, score_survival, skip_update

FORMULAS: list[tuple[Base, Rule, str]] = [
    (AdamW(weight_decay=0.1), magma(), "float32"),
    (RMSProp(), magma(momentum="before", decay="dense"), "bfloat16"),
    (LaProp(weight_decay=0.1), score_survival(damped=True), "float16"),
    (SGD(momentum=0.9, nesterov=True), skip_update(p=0.3), "float32"),
]
PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
LARGE = {"large": ((2**20 + 777,), ()), "rows": LAYOUTS["rows"]}


@pytest.fixture
def aarch64(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Steps are taken by programs for aarch64; flags may be added."""
    required = {"variable": "MAGMA_CROSS", "remedy": f"apt-get install {PACKAGES}"}
    cross = find("aarch64-linux-gnu-gcc", **required)
    emulator = find("qemu-aarch64", "qemu-aarch64-static", **required)
    alone = {"-fPIC", "-shared"}  # of libraries

    def use(*flags: str) -> None:
        made: dict[object, object] = {}

        def library(formula):
            if formula not in made:
                folder = tmp_path / str(len(made))
                folder.mkdir()
                kept = [flag for flag in compiler.FLAGS if flag not in alone]
                program = build(formula, [cross, *kept, *flags, "-fopenmp", "-static"], folder)
                made[formula] = emulated(formula, [emulator, program], folder)
            return made[formula]

        monkeypatch.setattr("magma_native.step.library", library)

    return use


@pytest.mark.parametrize(("base", "rule", "kind"), FORMULAS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where formats overflow
def test_aarch64_gives_the_bits_of_numpy(base, rule, kind, aarch64):
    aarch64()
    generator = np.random.default_rng(9)
    held = Parameters.of(base, rule, kind, LAYOUTS | UNMASKED, generator)
    for step in range(1, 4):
        held.step(gradients(held.params, generator), step)
    for name in SPECIAL:
        held.compare(held.states, special(name, held.params, generator), 4)


def test_its_threads_share_a_large_block(aarch64):
    aarch64()
    generator = np.random.default_rng(9)
    held = Parameters.of(AdamW(), magma(), "float32", LARGE, generator)
    held.step(gradients(held.params, generator), 1)


def test_a_contracted_program_is_seen(aarch64):
    """aarch64 has fused operations without being asked."""
    aarch64("-ffp-contract=fast")
    generator = np.random.default_rng(9)
    held = Parameters.of(AdamW(weight_decay=0.1), magma(), "float32", LAYOUTS, generator)
    with pytest.raises(AssertionError, match=r"\(\d+ ulp\); \d+ differ"):
        held.step(gradients(held.params, generator), 1)
