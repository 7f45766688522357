"""Starts a relay's processes one after the other, and reports their progress."""

import json
import os
import subprocess
import sys
import threading

from magma_conformance.processes import pulse
from magma_conformance.processes.worker import STUCK
from magma_conformance.relay.folder import Folder
from magma_conformance.relay.legs.leg import Say

_SHOWN = 15  # lines of output shown when a process fails
_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # CPU only: docs/numerics.md has what is known about GPUs
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "OMP_WAIT_POLICY": "passive",  # torch's threads would spin on cores that others need
}


class ProcessFailed(Exception):
    """A process failed; the message has the end of its output."""


def run_process(folder: Folder, who: str, name: str, say: Say) -> None:
    """Run a process to its end, however long it works.

    Args:
        folder: of the relay.
        who: the argument of `magma_conformance.relay.__main__`.
        name: for files and messages.
        say: called after each step.

    Raises:
        ProcessFailed: if the process fails or is stuck.
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
            process.kill()  # if this process was interrupted; no effect on one that has ended
    if status:
        what = STUCK if own.stuck else f"ended with status {status}"
        raise ProcessFailed(f"{name}: {what}\n{_end(log.read_text(errors='replace'))}")


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-_SHOWN:])
