"""``python -m magma_conformance`` is ``magma-conformance``; without the suite's extra, both say what to install."""

import sys
from importlib.util import find_spec

from magma_core.optional import not_installed

LIBRARIES = ("allpairspy", "jinja2", "jsonschema", "rich", "safetensors", "typer")
"""What the extra holds; without all of it no command runs."""


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
