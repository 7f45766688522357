"""The command that repeats one case."""

import shlex

from magma_conformance.external.plugin import KINDS


def repeat(label: str, option: str, value: str, /, *, command: str = "run") -> str:
    """A shell command line.

    Args:
        label: of the mode, as in reports.
        option: ``--case`` or ``--repro``.
        value: of the option.
        command: of `magma-conformance`.

    Example:
        >>> repeat("torch eager", "--case", "recorded")
        'magma-conformance run --backend torch --mode eager --case recorded'
    """
    backend, _, mode = label.partition(" ")
    where = [f"--{backend}", mode] if backend in KINDS else ["--backend", backend, "--mode", mode]
    return shlex.join(["magma-conformance", command, *where, option, value])
