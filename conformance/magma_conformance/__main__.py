"""``python -m magma_conformance`` is ``magma-conformance``."""

from magma_conformance.cli import main

main()
