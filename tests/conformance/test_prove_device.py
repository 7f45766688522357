"""The device proof: steps run as processes, survive each other's failures, and get a strict verdict."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from paths import REPOSITORY

SCRIPT = REPOSITORY / "conformance" / "prove_device.py"
_SPEC = importlib.util.spec_from_file_location("prove_device", SCRIPT)
assert _SPEC is not None
proof = importlib.util.module_from_spec(_SPEC)
sys.modules["prove_device"] = proof
_SPEC.loader.exec_module(proof)


def step(name: str, code: str, **options: Any) -> Any:
    return proof.Step(name, lambda limit: ["-c", code], **options)


def run(tmp_path: Path, *waves: Any, seconds: float = 60) -> dict[str, Any]:
    waves = [wave if isinstance(wave, proof.Wave) else proof.Wave(1.0, (wave,)) for wave in waves]
    said: list[str] = []
    outcomes = proof.prove(waves, tmp_path, seconds, said.append)
    assert len(said) == len(outcomes)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["exit_status"] == proof.verdict(outcomes)
    return {outcome.name: outcome for outcome in outcomes} | {"status": proof.verdict(outcomes)}


def test_all_well(tmp_path):
    found = run(tmp_path, step("one", "print('the first')"), step("two", "print('the second')"))
    assert (found["one"].status, found["two"].status, found["status"]) == ("passed", "passed", 0)
    text = (tmp_path / "summary.txt").read_text()
    assert text.index("== one\nthe first") < text.index("== two\nthe second")


@pytest.mark.parametrize(
    ("code", "status", "verdict"),
    [
        ("import sys; open('{out}/bad.json', 'w').write('{{}}'); sys.exit(1)", "differs", 1),
        ("raise RuntimeError('no')", "failed", 1),
        ("import os; os.abort()", "failed", 1),
        ("import sys; sys.exit(2)", "could not run", 2),
        ("import time; time.sleep(600)", "timed out", 2),
    ],
)
def test_later_steps_run_whatever_became_of_earlier_ones(tmp_path, monkeypatch, code, status, verdict):
    monkeypatch.setattr(proof, "LEAST", 0.1)
    code = code.format(out=tmp_path)
    found = run(tmp_path, step("bad", code), step("good", "print('still here')"), seconds=4)
    assert (found["bad"].status, found["good"].status, found["status"]) == (status, "passed", verdict)
    assert "still here" in (tmp_path / "summary.txt").read_text()


def test_what_differs_is_worse_than_what_is_missing(tmp_path):
    bad = [step(f"exit-{code}", f"import sys; sys.exit({code})") for code in (2, 1, 0)]
    assert run(tmp_path, proof.Wave(1.0, tuple(bad)))["status"] == 1


def test_steps_of_a_wave_run_at_the_same_time(tmp_path):
    started = time.monotonic()
    code = "import time; time.sleep(1.5)"
    found = run(tmp_path, proof.Wave(1.0, tuple(step(f"sleep-{i}", code) for i in range(4))))
    assert time.monotonic() - started < 5
    assert found["status"] == 0


def test_a_step_that_is_late_ends_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "LEAST", 0.1)
    code = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid);"
    )
    found = run(tmp_path, step("late", f"{code} sys.stdout.flush(); import time; time.sleep(600)"), seconds=2)
    assert found["late"].status == "timed out"
    child = int((tmp_path / "late.log").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("the child lives on")


def test_the_last_are_left_out_where_time_is_short(tmp_path):
    waves = [step("first", "print(1)"), step("second", "print(2)"), step("third", "print(3)")]
    found = run(tmp_path, *waves, seconds=25)  # 8, then 12, then 25
    assert [found[name].status for name in ("first", "second", "third")] == ["left out", "passed", "passed"]
    found = run(tmp_path, *waves, seconds=5)
    assert [found[name].status for name in ("first", "second", "third")] == ["left out"] * 3
    assert found["status"] == 2
    assert "third" in (tmp_path / "summary.txt").read_text()


def test_what_steps_had_no_time_for_is_said(tmp_path):
    reasons = ["", "20 seconds were over", "20 seconds were over", "no float16"]
    run_report = {"results": [{"mode": "jax jit", "reason": reason} for reason in reasons]}
    bench = {"timings": [{"optimizer": "AdamW foreach", "reason": "left out, the time was over"}]}
    late = [
        step(name, f"open({str(tmp_path / name)!r} + '.json', 'w').write({json.dumps(json.dumps(report))})")
        for name, report in (("run-jax", run_report), ("other", bench))
    ]
    found = run(tmp_path, *late)
    assert (found["run-jax"].status, found["run-jax"].reason) == ("not whole", "no time for 2 of jax jit")
    assert (found["other"].status, found["other"].reason) == ("not whole", "no time for 1 of AdamW foreach")
    assert found["status"] == 2


def test_what_is_not_here_is_said_and_does_not_count(tmp_path):
    found = run(tmp_path, step("keras", "", missing="Keras is not installed"), step("other", ""))
    assert (found["keras"].status, found["keras"].reason, found["status"]) == ("not here", "Keras is not installed", 0)


def test_limits_are_told_to_steps(tmp_path):
    told: list[float] = []

    def command(limit: float) -> list[str]:
        told.append(limit)
        return ["-c", ""]

    run(
        tmp_path, proof.Wave(1.0, (proof.Step("a", command),)), proof.Wave(3.0, (proof.Step("b", command),)), seconds=80
    )
    assert told[0] == pytest.approx(20, abs=1)  # seconds of a clock that runs on
    assert told[1] == pytest.approx(80, abs=2)  # what the first left is its own


def test_environment_of_a_step(tmp_path):
    code = "import os, sys; sys.exit(os.environ['MINE'] != 'yes')"
    assert run(tmp_path, step("own", code, environment={"MINE": "yes"}))["status"] == 0


def timing(mode: str, optimizer: str, ratio: float, share: float) -> dict[str, Any]:
    return {"mode": mode, "optimizer": optimizer, "ratio": ratio, "share_of_copy": share, "median_ms": 12.5}


def test_goals_of_speed_are_said_and_change_no_verdict(tmp_path):
    report = {"timings": [timing("compile", "magma_torch", 1.04, 0.9), timing("eager", "magma_torch", 9.0, 0.1)]}
    (tmp_path / "bench-torch-llama.json").write_text(json.dumps(report))
    report = {"timings": [timing("jit", "magma_jax step", 1.2, 0.86), timing("jit", "optax adamw", 1.0, 0.95)]}
    (tmp_path / "bench-jax-llama.json").write_text(json.dumps(report))
    assert run(tmp_path, step("one", ""))["status"] == 0
    goals = {goal["bench"]: goal for goal in json.loads((tmp_path / "summary.json").read_text())["goals"]}
    assert {name: goal["met"] for name, goal in goals.items()} == {"bench-torch-llama": True, "bench-jax-llama": False}
    text = (tmp_path / "summary.txt").read_text()
    assert "1.040 × AdamW (goal 1.05: met), 90.0% of a copy (goal 85 %: met)" in text
    assert "1.200 × AdamW (goal 1.05: missed)" in text


def test_plan_has_every_part_of_the_proof(tmp_path):
    steps = {s.name: s for wave in proof.plan(tmp_path, "cuda") for s in wave.steps}
    wanted = {"environment", "probe-torch", "probe-jax", "division", "fences", "kernels", "steps", "compare"}
    wanted |= {"run-torch", "run-jax", "run-magma-torch", "run-magma-jax", "run-keras-jax", "run-keras-torch"}
    wanted |= {"bench-torch-llama", "bench-jax-llama", "bench-torch-small", "bench-jax-stacked"}
    assert steps.keys() == wanted
    command = steps["run-magma-torch"].command(240)
    assert {"--device=cuda", "--mode=triton", "--mode=graph", "--seconds=140"} <= set(command)
    assert "--mode=kernels" in steps["run-magma-jax"].command(240)
    assert "--mode=graph" not in proof.plan(tmp_path, "cpu")[1].steps[0].command(240)
    shares = [wave.share for wave in proof.plan(tmp_path, "cuda")]
    assert all(540 * share / sum(shares[i:]) >= 2 * proof.LEAST for i, share in enumerate(shares) if i != 2)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Of a package that nobody has."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "magma_nonesuch-1.0-py3-none-any.whl", "w") as file:
        info = "magma_nonesuch-1.0.dist-info"
        file.writestr("magma_nonesuch.py", "ANSWER = 42\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: magma-nonesuch\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return folder


def test_wheels_are_unpacked_where_nothing_else_is(tmp_path, wheel):
    proof.install(wheel, tmp_path / "site")
    code = "import magma_nonesuch; print(magma_nonesuch.ANSWER)"
    own = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    assert subprocess.check_output([sys.executable, "-c", code], env=own).strip() == b"42"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0


def test_script_from_the_checkout_alone(tmp_path, wheel):
    """One step of the real plan, in a Python that has been told nothing of where the packages are."""
    out = tmp_path / "out"
    (tmp_path / "jax.py").write_text("raise RuntimeError('what lies in the working directory is nobody's business')")
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--device", "cpu", "--wheels", str(wheel)]
    done = subprocess.run([*command, "--step", "environment"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "environment        passed" in done.stdout
    facts = json.loads((out / "environment.json").read_text())["facts"]
    assert facts["device"] == "cpu"
    assert {"torch", "jax"} & facts["devices"].keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "nonsense"], "no step 'nonsense'; there are environment"),
        (["--wheels", "/nowhere"], "no wheel in /nowhere; download some"),
    ],
)
def test_script_says_what_is_wrong(tmp_path, arguments, said):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_report_of_an_earlier_run_is_not_taken_for_this_one(tmp_path):
    (tmp_path / "one.json").write_text("{}")
    assert run(tmp_path, step("one", "import sys; sys.exit(1)"))["one"].status == "failed"
    assert not (tmp_path / "one.json").exists()


def test_a_report_that_was_cut_off_is_none(tmp_path):
    (tmp_path / "bench-torch-llama.json").write_text('{"timings": [')
    assert run(tmp_path, step("one", ""))["status"] == 0


def test_a_mode_that_had_no_time_at_all_is_not_whole(tmp_path):
    report = {"results": [{"mode": "magma_jax apply", "reason": "125 seconds were over"}]}
    code = f"import sys; open('{tmp_path}/one.json', 'w').write({json.dumps(report)!r}); sys.exit(2)"
    found = run(tmp_path, step("one", code))
    assert (found["one"].status, found["status"]) == ("not whole", 2)
    assert "1 of magma_jax apply" in found["one"].reason


def script(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_what_is_missing_is_said_at_once(tmp_path):
    code = f"""
import sys
sys.argv = ["prove_device.py", "--out", {str(tmp_path / "out")!r}]
sys.modules["allpairspy"] = None
import runpy
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2
    assert "allpairspy not installed: bring wheels along" in finished.stderr


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    finished = script("--out", tmp_path / "file")
    assert finished.returncode == 2
    assert "--out: " in finished.stderr


def test_nothing_outlives_the_script(tmp_path):
    """Ended from outside, it ends what it started."""
    waves = [proof.Wave(1.0, (step("long", "import time; time.sleep(600)"),))]
    running = proof._run(waves[0].steps, tmp_path, 600)
    started: list[Any] = []
    start = proof._start
    proof._start = lambda *a: started.append(start(*a)) or started[-1]
    try:
        thread = iter(running)
        proof.time.sleep, sleep = lambda seconds: (_ for _ in ()).throw(SystemExit(2)), proof.time.sleep
        with pytest.raises(SystemExit):
            next(thread)
    finally:
        proof._start, proof.time.sleep = start, sleep
    assert started[0].poll() is not None
