"""Prove that a device computes the CPU's bits, and measure its speed.

    python conformance/prove_device.py --out FOLDER [--device cuda] [--wheels FOLDER] [--seconds 540]

Needs a checkout of the repository and a Python with the frameworks to prove, but no network. Other missing packages,
such as array-api-compat and allpairspy, can be brought along as wheels. Each step is a process with its own time limit.
Later steps run whatever happens to earlier ones; when time is short, the last steps are left out.

FOLDER receives each step's report, NAME.json, and its output, NAME.log; and summary.json and summary.txt.

Exit status: 0 if all is equal, 1 if anything differs or failed, 2 if neither but the proof is incomplete. Incomplete
steps can be repeated with --step, in the same folder.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "docs" / "results" / "cpu-digests.json"
SOURCES = (REPOSITORY, REPOSITORY / "backends", REPOSITORY / "conformance")

NEEDED = (
    "array_api_compat",
    "allpairspy",
    "jinja2",
    "jsonschema",
    "ml_dtypes",
    "numpy",
    "rich",
    "safetensors",
    "typer",
)
"""Required modules; the first two are rarely installed."""

SHARED = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the device's memory
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # and the cores
}
ALONE = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}

LEAST = 10
"""Seconds below which no step starts."""


@dataclass(frozen=True)
class Step:
    """One step, run as a process.

    Args:
        name: of its files.
        command: Python's arguments, given the time limit in seconds.
        missing: why it cannot run here; it is then left out, and the proof is complete without it.
        environment: variables that it needs.
    """

    name: str
    command: Callable[[float], Sequence[str]]
    missing: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wave:
    """Steps that run at the same time, with their share of the time."""

    share: float
    steps: tuple[Step, ...]


@dataclass
class Outcome:
    """The outcome of a step."""

    name: str
    status: str  # "passed", "differs", "failed", "could not run", "timed out", "not whole", "left out" or "not here"
    seconds: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name:18} {self.status:13} {self.seconds:5.0f} s  {self.reason}".rstrip()


def plan(out: Path, device: str) -> list[Wave]:
    """All steps, the most important first. Benchmarks have the device to themselves."""
    cores = len(os.sched_getaffinity(0))

    def suite(name: str, *arguments: str) -> Callable[[float], Sequence[str]]:
        return lambda limit: ["-m", "magma_conformance", *arguments, "--json", str(out / f"{name}.json")]

    def run(name: str, backends: Sequence[str], modes: Sequence[str], jobs: int, missing: str = "") -> Step:
        options = [*(f"--backend={backend}" for backend in backends), *(f"--mode={mode}" for mode in modes)]

        def command(limit: float) -> Sequence[str]:
            own = [f"--device={device}", f"--jobs={max(2, jobs)}", f"--seconds={max(20, limit - 100):.0f}"]
            return suite(name, "run", *options, *own)(limit)

        return Step(name, command, missing, SHARED)

    def check(name: str) -> Step:
        arguments = ["-m", "magma_conformance.device", name, "--device", device, "--json", str(out / f"{name}.json")]
        return Step(name, lambda limit: arguments, environment=SHARED)

    def probe(backend: str) -> Step:
        name = f"probe-{backend}"
        return Step(name, suite(name, "probe", f"--backend={backend}", f"--device={device}"), environment=SHARED)

    def bench(share: float, backend: str, model: str) -> Wave:
        name = f"bench-{backend}-{model}"

        def command(limit: float) -> Sequence[str]:
            options = ["--adapters", f"--backend={backend}", f"--model={model}", f"--device={device}", "--repeats=15"]
            return suite(name, "bench", *options, f"--seconds={0.6 * limit:.0f}")(limit)

        return Wave(share, (Step(name, command, environment=ALONE),))

    def compare(limit: float) -> Sequence[str]:
        reports = [str(file) for file in sorted(out.glob("run-*.json"))]
        return suite("compare", "compare", str(REFERENCE), *reports)(limit)

    graph, kernels = ([], []) if device == "cpu" else (["graph"], ["kernels"])
    absent = [module for module in ("keras", "namex", "optree") if not find_spec(module)]
    keras = f"{', '.join(absent)} not installed" if absent else ""
    return [
        Wave(1.0, (check("environment"),)),  # no cache holds anything yet
        Wave(
            4.5,
            (
                run("run-magma-torch", ["magma_torch"], ["eager", "triton", *graph], 3),
                Step(
                    "kernels",
                    lambda limit: ["tests/helpers/kernels_worker.py", "all", "--device", device],
                    "" if find_spec("torch") and find_spec("triton") else "torch or Triton is not installed",
                    SHARED,
                ),
                run("run-magma-jax", ["magma_jax"], [*kernels, "jit", "scan", "apply"], max(cores // 4, 6)),
                run("run-torch", ["torch"], ["eager", "compile"], cores // 4),
                run("run-jax", ["jax"], ["jit", "scan"], cores // 4),
                check("division"),
                check("fences"),
                *(probe(backend) for backend in ("torch", "jax")),
                *(
                    run(f"run-keras-{mode.partition('-')[0]}", ["magma_keras"], [mode], 2, keras)
                    for mode in ("jax-jit", "torch-eager")
                ),
            ),
        ),
        Wave(0.3, (Step("compare", compare),)),
        Wave(1.2, (check("steps"),)),
        bench(1.0, "torch", "llama"),
        bench(1.6, "jax", "llama"),
        bench(0.7, "torch", "small"),
        bench(0.7, "jax", "stacked"),
    ]


def prove(waves: Sequence[Wave], out: Path, seconds: float, say: Callable[[str], Any] = print) -> list[Outcome]:
    """Run the steps and write the summary.

    Args:
        waves: run one after the other; unused time goes to the later ones.
        out: an existing folder.
        seconds: for all waves.
        say: called with the outcome of each step.
    """
    end, outcomes = time.monotonic() + seconds, []
    for i, wave in enumerate(waves):
        limit = (end - time.monotonic()) * wave.share / sum(later.share for later in waves[i:])
        for outcome in _run(wave.steps, out, limit):
            outcomes.append(outcome)
            say(str(outcome))
    _summarise(outcomes, out, seconds)
    return outcomes


def verdict(outcomes: Sequence[Outcome]) -> int:
    """The exit status."""
    found = {outcome.status for outcome in outcomes}
    return 1 if found & {"differs", "failed"} else 2 if found - {"passed", "not here"} else 0


def _run(steps: Sequence[Step], out: Path, limit: float) -> Iterator[Outcome]:
    started, running = time.monotonic(), {}
    for step in steps:
        if step.missing:
            yield Outcome(step.name, "not here", reason=step.missing)
        elif limit < LEAST:
            yield Outcome(step.name, "left out", reason=f"{max(limit, 0):.0f} s, its share of --seconds, are too few")
        else:
            running[step.name] = _start(step, out, limit)
    try:
        while running:
            seconds = time.monotonic() - started
            for name, process in list(running.items()):
                late = process.poll() is None and seconds > limit
                if late:
                    _kill(process)
                if late or process.poll() is not None:
                    del running[name]
                    yield _outcome(out, name, process.returncode, late, seconds, limit)
            time.sleep(0.05)
    finally:
        for process in running.values():  # if this script itself is ended
            _kill(process)


def _start(step: Step, out: Path, limit: float) -> "subprocess.Popen[bytes]":
    (out / f"{step.name}.json").unlink(missing_ok=True)  # from an earlier run
    with (out / f"{step.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *step.command(limit)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,  # Python searches the working directory first, whatever it holds
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "140", **step.environment},
            start_new_session=True,
        )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and everything it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(out: Path, name: str, code: int, late: bool, seconds: float, limit: float) -> Outcome:
    if late:
        return Outcome(name, "timed out", seconds, f"{limit:.0f} s were not enough")
    report = out / f"{name}.json"
    left = _left_out(report)
    if code and not (code == 2 and left):
        status = {1: "differs" if report.exists() else "failed", 2: "could not run"}.get(code, "failed")
        return Outcome(name, status, seconds, f"exit status {code}, see {name}.log")
    return Outcome(name, "not whole" if left else "passed", seconds, f"no time for {', '.join(left)}" if left else "")


def _left_out(file: Path) -> list[str]:
    """What a step that ended in time left out for lack of time: cases of a mode, contenders."""
    report = _report(file)
    late = [result["mode"] for result in report.get("results", ()) if result["reason"].endswith("seconds were over")]
    late += [timing["optimizer"] for timing in report.get("timings", ()) if timing["reason"].endswith("time was over")]
    return [f"{count} of {what}" for what, count in Counter(late).items()]


def _report(file: Path) -> dict[str, Any]:
    """The report, or nothing: a process killed while writing leaves an unreadable one."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _summarise(outcomes: Sequence[Outcome], out: Path, seconds: float) -> None:
    goals = list(_goals(out))
    summary = {
        "seconds": seconds,
        "exit_status": verdict(outcomes),
        "steps": list(map(asdict, outcomes)),
        "goals": goals,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = [*map(str, outcomes), "", *(goal["text"] for goal in goals)]
    for outcome in outcomes:
        log = out / f"{outcome.name}.log"
        if log.exists():
            text += ["", f"== {outcome.name}", log.read_text(encoding="utf-8", errors="replace").rstrip()]
    (out / "summary.txt").write_text("\n".join(text) + "\n", encoding="utf-8")


def _goals(out: Path) -> Iterator[dict[str, Any]]:
    """Speed goals: they are measured, and missing one is not a difference in bits."""
    for file in sorted(out.glob("bench-*.json")):
        for timing in _report(file).get("timings", ()):
            ours = (timing["mode"], timing["optimizer"]) in (("compile", "magma_torch"), ("jit", "magma_jax step"))
            if not ours or timing["ratio"] is None:
                continue
            share = timing["share_of_copy"] or 0.0
            met = timing["ratio"] <= 1.05, share >= 0.85
            text = f"{file.stem}: {timing['median_ms']:.3f} ms, {timing['ratio']:.3f} × AdamW "
            text += f"(goal 1.05: {_met(met[0])}), {share:.1%} of a copy (goal 85 %: {_met(met[1])})"
            yield {"bench": file.stem, "ratio": timing["ratio"], "share_of_copy": share, "met": all(met), "text": text}


def _met(goal: bool) -> str:
    return "met" if goal else "missed"


def install(wheels: Path, target: Path) -> None:
    """Unpack wheels into an empty folder, without any index."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-compile", "--target", str(target), *map(str, sorted(wheels.glob("*.whl")))]
    subprocess.run(command, check=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for reports; made if it is not there")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script itself")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what is missing here")
    parser.add_argument("--seconds", type=float, default=540, help="for everything (default: %(default)s)")
    parser.add_argument("--step", action="append", help="only this one, such as bench-torch-llama; may be repeated")
    options = parser.parse_args()
    out = options.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.txt").touch()
    except OSError as error:
        parser.error(f"--out: {error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # exits in order, so that nothing outlives this script
    with tempfile.TemporaryDirectory(prefix="magma-wheels-") as site:
        if options.wheels is not None:
            if not list(options.wheels.glob("*.whl")):
                parser.error(f"--wheels: no wheel in {options.wheels}; download some with: pip download --no-deps")
            try:
                install(options.wheels, Path(site))
            except subprocess.CalledProcessError as error:
                parser.error(f"--wheels: pip could not install them (exit status {error.returncode})")
        sys.path.insert(0, site)
        own = [site, *map(str, SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(own)
        if missing := [module for module in NEEDED if not find_spec(module)]:
            parser.error(f"{', '.join(missing)} not installed: bring wheels along, --wheels FOLDER")
        waves = plan(out, options.device)
        names = [step.name for wave in waves for step in wave.steps]
        if unknown := set(options.step or ()) - set(names):
            parser.error(f"--step: no step {min(unknown)!r}; there are {', '.join(names)}")
        if options.step:
            waves = [Wave(w.share, tuple(s for s in w.steps if s.name in options.step)) for w in waves]
            waves = [wave for wave in waves if wave.steps]
        outcomes = prove(waves, out, options.seconds, lambda line: print(line, flush=True))
    print(f"written to {out}: summary.txt has everything")
    return verdict(outcomes)


if __name__ == "__main__":
    sys.exit(main())
