"""One complete relay, the output of its command, and its processes."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from magma_conformance.commands.relay import relay
from magma_conformance.processes import pulse
from magma_conformance.relay import processes, run
from magma_conformance.relay.folder import Folder
from magma_conformance.relay.legs.leg import run_leg
from magma_conformance.relay.plan import FRAMEWORKS, Framework, RelayPlan
from magma_conformance.relay.processes import ProcessFailed, run_process
from magma_conformance.relay.report import LegReport, RelayReport
from magma_conformance.relay.verdict import FirstDifference
from relay_runs import ABSENT, TINY, needs_torch, nothing
from typer.testing import CliRunner


def command(*arguments: str):
    app = typer.Typer()
    app.command()(relay)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.mark.skipif(bool(ABSENT), reason="; ".join(ABSENT))
def test_whole_relay(tmp_path):
    pytest.importorskip("matplotlib", reason="the relay draws")
    file, picture, root = tmp_path / "relay.json", tmp_path / "relay.png", tmp_path / "relay"
    result = command(
        *("--steps", "2", "--width", "32", "--layers", "1"),
        *("--json", str(file), "--picture", str(picture), "--folder", str(root)),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert [leg["framework"] for leg in report["legs"]] == ["torch", "jax", "keras", "torch"]
    assert [leg["steps"] for leg in report["legs"]] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert [leg["exact"]["verdict"] for leg in report["legs"]] == ["equal"] * 4
    # seven matrices at each of two steps in each of two relays
    assert [leg["masks"] for leg in report["legs"]] == [
        {"compared": 28, "verdict": "equal", "first_difference": None}
    ] * 4
    assert len(report["losses"]["free"]) == len(report["losses"]["never_moved"]) == 8
    assert report["losses"]["one_ulp"][:2] == report["losses"]["never_moved"][:2]
    assert len(report["losses"]["one_ulp"]) == 8
    assert report["losses"]["free"][-1] < report["losses"]["free"][0]
    assert report["failures"] == []
    assert result.output.count("bit-identical") == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150_000
    # bytes of files, not what our own comparison says of them
    for step in (0, 2, 4, 6, 8):
        for name in ("weights.safetensors", "state.safetensors"):
            assert (root / "exact" / str(step) / name).read_bytes() == (
                root / "reference" / str(step) / name
            ).read_bytes()
    # JAX knows nothing but the files; Keras loads JAX by itself, with TensorFlow
    loaded = [Folder(root).report(f"leg-{number}")["loaded"] for number in (1, 2, 3, 4)]
    assert loaded[:2] == [["torch"], ["jax"]]
    assert "torch" not in loaded[2]
    assert "tensorflow" in loaded[2]


@pytest.fixture
def torch_alone(monkeypatch):
    """A relay of nothing but torch, in this process: for what a command does with what it is told."""
    pytest.importorskip("torch", reason="torch is not installed")
    from magma_conformance.relay.reference import run_reference

    def here(folder, who, name, say):
        if who == "reference":
            run_reference(folder, say)
        else:
            run_leg(folder, int(who), say)

    for framework in ("jax", "keras"):
        only_torch = Framework(FRAMEWORKS[framework].label, "torch_leg", {"torch": "torch"})
        monkeypatch.setitem(FRAMEWORKS, framework, only_torch)
    monkeypatch.setattr(processes, "run_process", here)
    return here


SMALL = ("--steps", "2", "--width", "16", "--layers", "1")


def test_a_difference_exits_1_and_is_named(torch_alone, monkeypatch, tmp_path):
    def spoiling(folder, who, name, say):
        torch_alone(folder, who, name, say)
        if who == "1":
            station = folder.station("exact", 4)
            weights = station.read_weights()
            weights["head"][7, 5] = np.nextafter(weights["head"][7, 5], np.float32(1))
            station.write_weights(weights)

    monkeypatch.setattr(processes, "run_process", spoiling)
    file = tmp_path / "new" / "relay.json"
    arguments = ("--json", str(file))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        pass
    else:
        arguments += ("--picture", str(tmp_path / "relay.png"))
    result = command(*SMALL, *arguments)
    assert result.exit_code == 1
    assert "leg 2, JAX, exact relay: after step 4, weights/head: [7, 5]" in result.output
    assert "(1 ulp)" in result.output
    assert result.output.count("bit-identical") == 1
    report = json.loads(file.read_text())
    assert [leg["exact"]["verdict"] for leg in report["legs"]] == ["equal", "different", "different", "different"]
    first = report["legs"][1]["exact"]["first_difference"]
    assert (first["array"], first["difference"]["index"]) == ("weights/head", [7, 5])
    assert all(leg["masks"]["verdict"] == "equal" for leg in report["legs"])


def test_a_mask_that_is_another_exits_1(torch_alone, monkeypatch):
    def spoiling(folder, who, name, say):
        torch_alone(folder, who, name, say)
        if who == "2":
            masks = folder.masks("free", 6)
            masks["layers.0.attention.wq"][9] ^= True
            folder.write_masks("free", 6, masks)

    monkeypatch.setattr(processes, "run_process", spoiling)
    result = command(*SMALL)
    assert result.exit_code == 1
    assert "leg 3, Keras/TensorFlow, masks: after step 6, mask/layers.0.attention.wq: [9]" in result.output
    assert result.output.count("bit-identical") == 4


def test_a_leg_that_fails_exits_1_and_says_why(torch_alone, monkeypatch):
    def failing(folder, who, name, say):
        if who == "1":
            raise ProcessFailed("leg-2: ended with status 1\nValueError: no such thing")
        torch_alone(folder, who, name, say)

    monkeypatch.setattr(processes, "run_process", failing)
    result = command(*SMALL)
    assert result.exit_code == 1
    assert "leg-2: ended with status 1\nValueError: no such thing" in result.output


def test_what_is_not_installed_exits_2(monkeypatch):
    found = run.importlib.util.find_spec
    absent = ("jax", "tensorflow")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    result = command(*SMALL)
    assert result.exit_code == 2
    assert "jax is not installed: pip install 'magma-optim[jax]'" in result.output
    assert "tensorflow is not installed: pip install 'magma-optim[tensorflow]'" in result.output


def test_a_picture_without_matplotlib_exits_2(torch_alone, monkeypatch, tmp_path):
    found = run.importlib.util.find_spec
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    result = command(*SMALL, "--picture", str(tmp_path / "relay.png"))
    assert result.exit_code == 2
    assert "--picture: matplotlib is not installed" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--width", "12"], "width must be a multiple of 8"), (["--folder", "."], "--folder: . is not empty")],
)
def test_what_cannot_be_exits_2(torch_alone, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("something").touch()
    result = command(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_loss_that_does_not_fall_is_a_failure():
    leg = LegReport(
        "torch", {"torch": "2"}, (1, 2), None, 7, None, [2.0, 3.0], [2.0, float("nan")], [2.0, 2.0], 0.0, 1.0
    )
    report = RelayReport(RelayPlan(), 10, [leg], 1.0)
    assert report.failures() == [
        "the loss of the run that never moved did not fall: 2.000, then nan",
        "the loss of the free relay did not fall: 2.000, then 3.000",
    ]
    assert report.to_json()["losses"] == {"never_moved": [2.0, None], "free": [2.0, 3.0], "one_ulp": [2.0, 2.0]}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_picture_of_what_differs(tmp_path):
    pytest.importorskip("matplotlib", reason="the relay draws")
    from magma_conformance.bits import Difference
    from magma_conformance.relay.picture import draw

    finding = FirstDifference(2, "weights/head", Difference("value", (0, 0), "1", "2", 1, 1))
    legs = [
        LegReport("jax", {"jax": "0"}, (1, 2), finding, 7, None, [2.0, 3.0], [2.0, float("nan")], [2.0, 2.0], 0.0, 1.0),
        LegReport("torch", {"torch": "2"}, (3, 4), None, 7, None, [2.0, 3.0], [2.5, 2.0], [2.5, 2.1], 0.0, 1.0),
    ]
    draw(RelayReport(RelayPlan(steps=2), 10, legs, 1.0), tmp_path / "new" / "relay.png")
    assert (tmp_path / "new" / "relay.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_that_fails_shows_the_end_of_what_it_said(tmp_path):
    with pytest.raises(ProcessFailed, match=r"(?s)^leg-2: ended with status 1\n.*FileNotFoundError.*plan\.json"):
        run_process(Folder(tmp_path), "1", "leg-2", nothing)


def test_a_process_that_is_stuck_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "LOOK", 0.001)
    monkeypatch.setattr(pulse, "_LEAST", 1e9)  # nothing that it does is work
    with pytest.raises(ProcessFailed, match="reference: stuck: its process used no processor time for 10 minutes"):
        run_process(Folder(tmp_path), "reference", "reference", nothing)


@needs_torch
def test_a_process_ends_with_who_started_it(tmp_path, monkeypatch):
    started = []
    popen = processes.subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda *given, **named: started.append(popen(*given, **named)) or started[0]
    )
    folder = Folder(tmp_path)
    folder.write_plan(replace(TINY, steps=500))

    def interrupted(*step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_process(folder, "reference", "reference", interrupted)  # at its first step of two thousand
    assert started[0].returncode == -signal.SIGKILL  # it did not go on to its own end
