"""A process of a relay: ``python -m magma_conformance.relay FOLDER reference``, or a leg's number from 0."""

import json
import os
import sys
from pathlib import Path

from magma_conformance.relay.folder import Folder, Run
from magma_conformance.relay.legs.leg import run_leg


def main() -> None:
    """Run the process; it prints a line of JSON for each step."""
    folder, who = Folder(Path(sys.argv[1])), sys.argv[2]
    # frameworks that print would corrupt the JSON: send their output to stderr
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(run: Run, step: int, loss: float | None) -> None:
        lines.write(json.dumps([run, step, loss]) + "\n")

    if who == "reference":
        from magma_conformance.relay.reference import run_reference  # needs torch, which no other process should load

        run_reference(folder, say)
    else:
        run_leg(folder, int(who), say)


if __name__ == "__main__":
    main()
