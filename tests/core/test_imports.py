"""Imports load the framework and little else, no library of the suite; without a framework they say what is missing."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import magma_core

ADAPTERS = ("magma_numpy", "magma_native", "magma_torch", "magma_jax", "magma_tensorflow", "magma_keras")
SUITE = {"allpairspy", "jinja2", "jsonschema", "magma_conformance", "rich", "safetensors", "typer"}

ABSENT = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name in {absent} else found(name, path, target)


PathFinder.find_spec = find_spec
"""

OVER = """
import json, sys, time
import {framework}
before, start = set(sys.modules), time.process_time()
import {adapter}
print(json.dumps([start, time.process_time() - start, sorted(set(sys.modules) - before)]))
"""
"""Seconds of processor time: until the framework was there, and of the adapter; and the modules that it added."""


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def python(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("package", [magma_core.__name__, *ADAPTERS])
def test_no_module_imports_what_only_the_suite_needs(package):
    for file in folder(package).rglob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
        assert not imported & SUITE, file


def test_magma_torch_imports_little_beside_torch():
    """Neither rich nor DTensors, which bring sympy along: a third of the time of torch itself is too much."""
    pytest.importorskip("torch", reason="torch is not installed")
    shares = []
    for _ in range(3):  # the first may have to compile
        ran = python(OVER.format(framework="torch", adapter="magma_torch"))
        assert ran.returncode == 0, ran.stderr
        torch, own, modules = json.loads(ran.stdout)
        assert not {"rich", "sympy", "torch.distributed.tensor"} & set(modules)
        shares.append(own / torch)
        if shares[-1] < 1 / 3:
            return
    pytest.fail(f"magma_torch takes {[f'{share:.2f}' for share in shares]} of the processor time of torch")


@pytest.mark.parametrize(
    ("backend", "absent", "said"),
    [
        (
            "tensorflow",
            ("tensorflow", "jax", "torch"),
            "Keras runs on tensorflow, and tensorflow is not installed: pip install 'magma-optim[tensorflow]', or pip "
            "install tensorflow-cpu, or install one of jax, torch and set KERAS_BACKEND to it",
        ),
        (
            "torch",
            ("torch", "tensorflow"),
            "Keras runs on torch, and torch is not installed: pip install 'magma-optim[torch]', or set "
            "KERAS_BACKEND=jax",
        ),
        ("jax", ("optax",), "optax is not installed: pip install 'magma-optim[jax]'"),
    ],
)
def test_keras_without_its_backend_says_what_to_install(backend, absent, said):
    for package in ("keras", "jax", "optax"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    ran = python(f"{ABSENT.format(absent=absent)}\nimport magma_keras", KERAS_BACKEND=backend)
    assert ran.stderr.splitlines()[-1] == f"ImportError: {said}"


@pytest.mark.parametrize("package", ["magma_numpy", "magma_torch", "magma_jax", "magma_conformance"])
def test_version_is_that_of_the_core(package):
    if package != "magma_conformance":
        pytest.importorskip(package.removeprefix("magma_"), reason="the framework is not installed")
    assert importlib.import_module(package).__version__ == magma_core.__version__
