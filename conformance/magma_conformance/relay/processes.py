"""Starts the processes of a relay, one after the other, and tells what they do."""

import json
import os
import subprocess
import sys
import threading

from magma_conformance.processes import pulse
from magma_conformance.processes.worker import STUCK
from magma_conformance.relay.folder import Folder
from magma_conformance.relay.legs.leg import Say

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


def run_process(folder: Folder, who: str, name: str, say: Say) -> None:
    """Run a process to its end, however long it works.

    Args:
        folder: of the relay.
        who: what `magma_conformance.relay.__main__` takes.
        name: for files and messages.
        say: told of each step.

    Raises:
        ProcessFailed: if it fails, or is stuck.
    """
    command = [sys.executable, "-m", "magma_conformance.relay", str(folder.root), who]
    log = folder.stderr(name)
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, env=os.environ | _ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        own, over = pulse.Pulse(process.pid), threading.Event()

        def end_if_stuck() -> None:
            while not over.wait(pulse.LOOK):
                own.look()
                if own.stuck:
                    process.kill()
                    return

        threading.Thread(target=end_if_stuck, daemon=True).start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                say(*json.loads(line))
            status = process.wait()
        finally:
            over.set()
            process.kill()  # where this process was interrupted; nothing happens to one that has ended
    if status:
        what = STUCK if own.stuck else f"ended with status {status}"
        raise ProcessFailed(f"{name}: {what}\n{_end(log.read_text(errors='replace'))}")


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-_SHOWN:])
