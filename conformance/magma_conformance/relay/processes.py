"""Starts the processes of a relay, one after the other, and tells what they do."""

import json
import os
import subprocess
import sys
import threading
from typing import Final

from magma_conformance.relay.folder import Folder
from magma_conformance.relay.leg import Say

TIMEOUT: Final = 900.0
"""Seconds for one process."""
_SHOWN = 15  # lines of what a process said before it failed
_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # the processor only: what is known of graphics cards stands in docs/numerics.md
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "OMP_WAIT_POLICY": "passive",  # torch's threads would spin on cores that others need
}


class ProcessFailed(Exception):
    """A process that did not end well, with the end of what it said."""


def run_process(folder: Folder, who: str, name: str, say: Say, *, timeout: float = TIMEOUT) -> None:
    """Run a process to its end.

    Args:
        folder: of the relay.
        who: what `magma_conformance.relay.__main__` takes.
        name: for files and messages.
        say: told of each step.
        timeout: seconds after which it is ended.

    Raises:
        ProcessFailed: if it fails, or takes too long.
    """
    command = [sys.executable, "-m", "magma_conformance.relay", str(folder.root), who]
    log = folder.stderr(name)
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, env=os.environ | _ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                say(*json.loads(line))
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()  # where this process was interrupted; nothing happens to one that has ended
    if late.is_set():
        raise ProcessFailed(f"{name}: not done in {timeout:.0f} s\n{_end(log.read_text(errors='replace'))}")
    if status:
        raise ProcessFailed(f"{name}: ended with status {status}\n{_end(log.read_text(errors='replace'))}")


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-_SHOWN:])
