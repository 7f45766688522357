"""``python -m magma_conformance``, the same as ``magma-conformance``; says what to install if the extra is missing."""

import sys
from importlib.util import find_spec

from magma_core.optional import not_installed

LIBRARIES = ("allpairspy", "jinja2", "jsonschema", "rich", "safetensors", "typer")
"""The libraries of the extra; every command needs them all."""


def main() -> None:
    """Run the command line."""
    for library in LIBRARIES:
        if find_spec(library) is None:
            print(f"magma-conformance: {not_installed(library, extra='conformance')}", file=sys.stderr)
            sys.exit(2)
    from magma_conformance.cli import main as run

    run()


if __name__ == "__main__":
    main()
