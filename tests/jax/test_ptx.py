"""XLA's PTX of a step for an H100. It needs no device, but the CUDA plugin of JAX.

pip install --no-deps --target FOLDER jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION    # those of jaxlib
PYTHONPATH=FOLDER pytest tests/jax/test_ptx.py
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import traffic
from paths import HELPERS

from magma_core.config import BASES

WORKER = HELPERS / "ptx_worker.py"
FLAGS = "--xla_gpu_autotune_level=0 --xla_dump_to="  # autotuning runs on the device

STEPS = [*((base, "float32") for base in (*BASES, "factor-1")), ("adamw", "bfloat16"), ("adamw", "float16")]


def plugin() -> bool:
    try:
        return find_spec("jax_plugins.xla_cuda12") is not None
    except ModuleNotFoundError:
        return False


needs_plugin = pytest.mark.skipif(not plugin(), reason="jax-cuda12-plugin and jax-cuda12-pjrt are not installed")


def ptx(folder: Path, *step: str, corrected: bool = True) -> str:
    """The instructions of all kernels of a step."""
    command = [sys.executable, str(WORKER), *step]
    if not corrected:  # the namespace as it would be with JAX's own functions
        edit = "import magma_jax.namespace as n, jax.numpy as jnp; n.divide, n.sqrt = jnp.divide, jnp.sqrt"
        command[1:2] = ["-c", f"{edit}; from ptx_worker import compile_step as c; import sys; c(*sys.argv[1:])"]
    paths = os.pathsep.join([str(WORKER.parent), *filter(None, sys.path)])
    env = {**os.environ, "XLA_FLAGS": FLAGS + str(folder), "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.ptx")))
    assert ".entry" in text, done.stderr[-3000:]
    return text


def inexact(text: str) -> list[str]:
    """Instructions that do not round as the contract says, but for starts: the correction alone sees those.

    It takes them for integers, by a maximum.
    """
    wrong = []
    for kernel in text.split(".entry"):  # registers are named anew in each
        for line in map(str.strip, kernel.splitlines()):
            started = re.match(r"(?:div\.full|sqrt\.approx)\.f32\s+(%\w+),", line)
            if started:
                uses = len(re.findall(re.escape(started[1]) + r"\b", kernel))
                alone = uses == 2 and re.search(rf"\bmax\.s32\s+%\w+, {started[1]},", kernel)
            if not alone if started else re.search(r"\bfma\.|\.approx|\.full|\.ftz", line):
                wrong.append(line)
    return wrong


@needs_plugin
@pytest.mark.parametrize("kernels", ["", "kernels"], ids=["xla", "kernels"])
@pytest.mark.parametrize(("base", "dtype"), STEPS)
def test_approximations_are_starts_only(tmp_path: Path, base: str, dtype: str, kernels: str) -> None:
    text = ptx(tmp_path, base, dtype, kernels)
    assert inexact(text) == []
    assert all((f".entry {name}(" in text) == bool(kernels) for name in ("moments", "recount", "move"))
    assert "div.full" in text
    assert "sqrt.approx" in text


@needs_plugin
def test_without_the_correction_they_are_results(tmp_path: Path) -> None:
    wrong = inexact(ptx(tmp_path, "adamw", "float32", corrected=False))
    assert any(line.startswith("div.full") for line in wrong)
    assert any(line.startswith("sqrt.approx") for line in wrong)


@needs_plugin
def test_bytes_that_a_step_moves() -> None:
    """And that the host waits for nothing, and nothing that is donated is copied."""
    command = [sys.executable, "-c", f"import {__name__} as here; here.check_traffic()"]
    paths = os.pathsep.join([str(WORKER.parent), *filter(None, sys.path)])
    env = {**os.environ, "XLA_FLAGS": FLAGS.split()[0], "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def check_traffic() -> None:
    """In a process of its own, for the flags."""
    from ptx_worker import compiled

    shapes = traffic.MODELS["one"]
    found = {
        name: traffic.kernels(compiled(step, *arguments, donated=(0, 2)).as_text())
        for name, step, arguments in traffic.contenders(shapes)
    }
    count = 2048 * 8192
    for name, read, written in (("optax.adamw", 16, 12), ("magma", 32, 12), ("magma, kernels", 32, 12)):
        assert traffic.waits(found[name]) == []
        # the rest is of blocks and tiles: bytes of programs, not bits of results
        assert sum(k.read for k in found[name]) / count == pytest.approx(read, abs=0.05), name
        assert sum(k.written for k in found[name]) / count == pytest.approx(written, abs=0.05), name
    large = [(k.name, k.read // count, k.written // count) for k in found["magma, kernels"] if k.read > count]
    assert large == [("moments", 12, 8), ("recount", 8, 0), ("move", 12, 4)]


def test_kernels_are_read_from_a_program() -> None:
    text = """HloModule jit_f

%fused (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
}

ENTRY %main (a: f32[8,4], b: s64[2]) -> (f32[8,4], s64[]) {
  %a = f32[8,4]{1,0} parameter(0)
  %b = s64[2]{0} parameter(1)
  %loop_fusion.12 = (f32[8,4]{1,0}, bf16[8,4]{1,0}) fusion(%a, %b), kind=kLoop, calls=%fused
  %c = f32[8,4]{1,0} get-tuple-element(%loop_fusion.12), index=0
  %d = f32[8,4]{1,0} custom-call(%c, /*index=1*/%b), metadata={op_name="jit(f)/move/pallas_call"}
  %e = f32[8,4]{1,0} conditional(%b, %d, %d), true_computation=%x, false_computation=%y
  ROOT %t = (f32[8,4]{1,0}, s64[]) tuple(%d, %b)
}
"""
    found = traffic.kernels(text)
    assert found[:2] == [("loop_fusion", "fusion", 144, 192), ("move", "custom-call", 144, 128)]
    assert traffic.waits(found) == ["conditional"]


def test_contraction_would_be_seen() -> None:
    lines = ["mul.rn.f32 %r1, %r2, %r3;", "max.s32 %r4, %r1, 5;", "fma.rn.f32 %r5, %r4, %r1, %r2;"]
    assert inexact("\n".join(lines)) == lines[2:]
    lines = ["div.full.f32 %r1, %r2, %r3;", "max.s32 %r4, %r1, 5;", "add.rn.f32 %r5, %r4, %r1;"]
    assert inexact("\n".join(lines[:2])) == []
    assert inexact("\n".join(lines)) == lines[:1]
