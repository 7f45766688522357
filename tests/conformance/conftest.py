"""Compiles the C port."""

import subprocess

import pytest
from c_port import SOURCE, STRICT
from required import find


@pytest.fixture(scope="session")
def compiler():
    """The system's C compiler; where MAGMA_CC=required, as in CI, there must be one."""
    return find("cc", variable="MAGMA_CC", remedy="apt-get install gcc")


@pytest.fixture(scope="session")
def build(compiler, tmp_path_factory):
    """Compiles the port with the given options."""

    def make(*options: str) -> str:
        program = tmp_path_factory.mktemp("port") / "my-port"
        subprocess.run([compiler, *options, "-o", str(program), str(SOURCE), "-lm"], check=True)
        return str(program)

    return make


@pytest.fixture(scope="session")
def port(build):
    """As ports/c/README.md says to compile it."""
    return build("-O2", "-ffp-contract=off", *STRICT)
