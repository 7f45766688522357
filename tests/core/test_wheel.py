"""The published packages: the source distribution, its wheel, and the wheel in an empty environment."""

import email
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from magma_conformance.__main__ import LIBRARIES
from paths import REPOSITORY

import magma_core

REQUIRED = ("array-api-compat", "ml-dtypes", "numpy")
FOLDERS = (".ci", "backends", "conformance", "docs", "examples", "magma_core", "ports", "tests")
BACKENDS = ("numpy", "native", "torch", "jax", "tensorflow", "keras")
PACKAGES = [magma_core.__name__, *(f"magma_{name}" for name in BACKENDS), "magma_conformance"]

STEP = """
import magma_core, numpy as np
from magma_numpy import namespace as xp
options = {"base": magma_core.AdamW(), "rule": magma_core.magma(), "block_axes": (0,), "xp": xp}
param = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
state = magma_core.init(param, **options)
new, state, report = magma_core.update(param, param, state, name="w", step=1, lr=0.5, seed=0, **options)
print(magma_core.__version__, report.keep.tolist(), new.tobytes().hex(), state.score.tobytes().hex())
"""


def run(*command: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """In a process that knows nothing of the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def files(folder: Path) -> set[str]:
    """All files below, relative to ``folder``."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith("__pycache__") or "_cache" in part for part in path.parts)
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    _build("sdist", REPOSITORY, folder)
    (archive,) = folder.glob("magma_optim-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    """Built from the source distribution, as by whoever has nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    _build("wheel", sources, folder)
    return next(folder.glob("magma_optim-*.whl"))


def _build(target: str, where: Path, to: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", to], cwd=where, check=True)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel and what it requires, which is taken from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in map(importlib.metadata.distribution, REQUIRED):
        for name in {path.parts[0] for path in distribution.files or () if path.parts[0] != ".."}:
            (packages / name).symlink_to(distribution.locate_file(name))
    # without an index, pip fails where anything else is required
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "--disable-pip-version-check"]
    installed = run(*pip, "install", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    return interpreter


def test_sdist_has_all_that_is_needed_to_build_and_test(sources):
    assert {f"{name}/{file}" for name in FOLDERS for file in files(REPOSITORY / name)} <= files(sources)
    for name in ("LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml"):
        assert (sources / name).read_bytes() == (REPOSITORY / name).read_bytes()


def test_wheel_has_the_packages_whole_and_nothing_else(wheel):
    folders = {name: Path(importlib.util.find_spec(name).origin).parent for name in PACKAGES}
    expected = {f"{name}/{file}" for name, folder in folders.items() for file in files(folder)}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    for file in (
        *(f"{name}/py.typed" for name in PACKAGES),
        "magma_native/skeleton.c",
        "magma_conformance/vectors/adamw.json",
        "magma_conformance/vectors/threefry.txt",
        "magma_conformance/vectors/generator/vectors.schema.json",
        "magma_conformance/report/report.schema.json",
        "magma_conformance/report/templates/page.html.jinja",
        "magma_conformance/cases/recorded.safetensors",
    ):
        assert file in found


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("magma-optim", magma_core.__version__)
    needs: dict[str, set[str]] = {}
    for line in metadata.get_all("Requires-Dist"):
        needs.setdefault(line.partition("extra == ")[2], set()).add(line.partition(">=")[0])
    assert needs[""] == set(REQUIRED)
    assert needs["'conformance'"] == set(LIBRARIES)
    extras = {"torch", "jax", "tensorflow", "keras", "conformance", "tensorboard", "all", "dev"}
    assert extras <= set(metadata.get_all("Provides-Extra"))


def test_a_step_on_numpy(python, tmp_path):
    """It gives the bits that it gives in the checkout."""
    there = run(python, "-c", STEP, cwd=tmp_path)
    here = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert there.stderr == ""
    assert there.stdout == here.stdout
    assert there.stdout.startswith(f"{magma_core.__version__} [")


@pytest.mark.parametrize("package", ["torch", "jax", "tensorflow", "keras"])
def test_an_adapter_without_its_framework_says_what_to_install(python, tmp_path, package):
    ran = run(python, "-c", f"import magma_{package}", cwd=tmp_path)
    assert f"ImportError: {package} is not installed: pip install 'magma-optim[{package}]'" in ran.stderr


@pytest.mark.parametrize("module", [True, False])
@pytest.mark.parametrize("arguments", [(), ("--version",), ("run", "--backend", "numpy")], ids=str)
def test_magma_conformance_without_its_extra_says_what_to_install(python, tmp_path, module, arguments):
    command = [python, "-m", "magma_conformance"] if module else [python.with_name("magma-conformance")]
    ran = run(*command, *arguments, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "magma-conformance: allpairspy is not installed: pip install 'magma-optim[conformance]'\n"
