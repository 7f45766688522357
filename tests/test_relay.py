"""The relay: all of it once, and whether what goes wrong in one is found and named."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import typer
from magma_conformance.commands.relay import relay
from magma_conformance.relay import processes, run
from magma_conformance.relay.folder import Folder
from magma_conformance.relay.leg import run_leg
from magma_conformance.relay.plan import FRAMEWORKS, Framework, Plan
from magma_conformance.relay.processes import ProcessFailed, run_process
from magma_conformance.relay.report import LegReport, RelayReport
from magma_conformance.relay.verdict import Finding, at_station, distance, of_masks
from typer.testing import CliRunner

from magma_core import read_state, write_state

ABSENT = run.missing()
needs_torch = pytest.mark.skipif(any("torch" in line for line in ABSENT), reason="torch is not installed")
needs_jax = pytest.mark.skipif(any("jax" in line for line in ABSENT), reason="jax or optax is not installed")
TINY = Plan(steps=2, width=16, layers=1, heads=2, batch=2, length=12)


def nothing(*step: object) -> None:
    """Who does not care what is going on."""


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
    assert report["losses"]["free"][-1] < report["losses"]["free"][0]
    assert report["failures"] == []
    assert result.output.count("bit-identical") == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150_000
    # bytes of files, not what our own comparison says of them
    for step in (0, 2, 4, 6, 8):
        for name in ("weights.safetensors", "state.safetensors"):
            assert (root / "exact" / str(step) / name).read_bytes() == (root / "home" / str(step) / name).read_bytes()
    # JAX knows nothing but the files; Keras loads JAX by itself, with TensorFlow
    loaded = [Folder(root).report(f"leg-{number}")["loaded"] for number in (1, 2, 3, 4)]
    assert loaded[:2] == [["torch"], ["jax"]]
    assert "torch" not in loaded[2]
    assert "tensorflow" in loaded[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Folder:
    """The run that never moves, in this process."""
    pytest.importorskip("torch", reason="torch is not installed")
    from magma_conformance.relay.home import run_home

    folder = Folder(tmp_path_factory.mktemp("relay") / "home")
    folder.write_plan(TINY)
    run_home(folder, nothing)
    return folder


@pytest.fixture
def before(home, tmp_path) -> Callable[[int], Folder]:
    """A folder of its own, where both relays stand at the beginning of a leg, counted from 1."""

    def make(leg: int) -> Folder:
        folder = Folder(tmp_path / f"before-{leg}")
        shutil.copytree(home.root, folder.root)
        for kind in ("exact", "free"):
            folder.start(kind, (leg - 1) * TINY.steps)
        return folder

    return make


@needs_torch
def test_a_leg_ends_where_the_run_that_never_moved_stands(before):
    folder = before(4)
    run_leg(folder, 3, nothing)
    assert at_station(folder, "exact", 8) is None
    assert of_masks(folder, "exact", range(7, 9)) == of_masks(folder, "free", range(7, 9)) == (14, None)


@needs_torch
def test_an_ulp_in_a_weight_is_found(before):
    folder = before(4)
    station = folder.station("exact", 6)
    weights = station.read_weights()
    weights["norm"][3] = np.nextafter(weights["norm"][3], np.float32(2))
    station.write_weights(weights)
    run_leg(folder, 3, nothing)
    found = at_station(folder, "exact", 8)
    assert (found.step, found.array) == (8, "weights/norm")
    assert (found.difference.index, found.difference.count) == ((3,), 1)
    assert 1 <= found.difference.ulp <= 2


@needs_torch
def test_a_score_that_is_lost_is_found(before):
    folder = before(4)
    tamper(folder, "layers.0.mlp.up", lambda state: state._replace(score=np.float32(0.5)))
    run_leg(folder, 3, nothing)
    found = at_station(folder, "exact", 8)
    assert found.array in ("weights/layers.0.mlp.up", "state/layers.0.mlp.up/score")
    assert of_masks(folder, "exact", range(7, 9))[1] is None  # they do not depend on it


@needs_torch
def test_an_ulp_in_a_moment_is_found(before):
    """In a moment which no later step forgets, but where the weights do not show it."""
    folder = before(4)

    def one_ulp(state):
        nu = state.nu.copy()
        nu[1, 2] = np.nextafter(nu[1, 2], np.float32(1))
        return state._replace(nu=nu)

    tamper(folder, "layers.0.mlp.up", one_ulp)
    run_leg(folder, 3, nothing)
    found = at_station(folder, "exact", 8)
    assert found.array == "state/layers.0.mlp.up/nu"
    assert found.difference.index == (1, 2)


@needs_torch
def test_a_step_that_is_not_counted_is_found(before):
    folder = before(4)
    station = folder.station("exact", 6)
    saved = {name: replace(one, step=one.step - 1) for name, one in read_state(station.state).items()}
    write_state(station.state, saved)
    run_leg(folder, 3, nothing)
    assert of_masks(folder, "exact", range(7, 9))[1] is not None
    assert at_station(folder, "exact", 8) is not None


@needs_torch
def test_a_state_that_is_equal_in_a_file_that_is_not_is_found(home, before):
    """Other settings, for example."""
    folder = before(4)
    station = folder.station("exact", 6)
    saved = {name: replace(one, seed=one.seed + 1) for name, one in read_state(station.state).items()}
    write_state(station.state, saved)
    assert at_station(folder, "exact", 6).array == "state.safetensors"
    del saved["norm"]
    write_state(station.state, saved)
    found = at_station(folder, "exact", 6)
    assert found.array.startswith("state/norm/")
    assert str(found).endswith("array missing, expected there")


def tamper(folder: Folder, name: str, change: Callable) -> None:
    """Change the state of one parameter before the last leg."""
    station = folder.station("exact", 6)
    saved = read_state(station.state)
    write_state(station.state, saved | {name: replace(saved[name], state=change(saved[name].state))})


@needs_torch
@needs_jax
def test_axes_that_are_not_told_are_found(before, monkeypatch):
    """A square matrix: its shape says nothing, and the file is taken as it is."""
    from magma_conformance.relay import jax_leg

    def forgetful(*arguments, axes):
        return load(*arguments, axes=lambda name, shape: None if name.endswith("wo") else axes(name, shape))

    load = jax_leg.load_state
    monkeypatch.setattr(jax_leg, "load_state", forgetful)
    folder = before(2)
    run_leg(folder, 1, nothing)
    found = at_station(folder, "exact", 4)
    assert (found.step, found.array) == (4, "weights/layers.0.attention.wo")


@needs_torch
@needs_jax
def test_block_axes_of_another_layout_are_refused(before, monkeypatch):
    from magma_conformance.relay import jax_leg

    monkeypatch.setattr(jax_leg.layout, "own_block_axes", lambda name, shape: jax_leg.layout.block_axes(name))
    with pytest.raises(ValueError, match=r"'layers.0.attention.wq' was saved with block_axes \(1,\)"):
        run_leg(before(2), 1, nothing)


@needs_torch
def test_a_name_that_is_another_is_found(before, monkeypatch):
    """The file has the right one, and masks are keyed by a wrong one. The rows of wq are enough coins to tell."""
    from magma_conformance.relay import torch_leg

    wrong, right = "layers.1.attention.wq", "layers.0.attention.wq"
    make, load, save = torch_leg.Magma, torch_leg.load_state, torch_leg.save_state

    def renamed(groups, **options):
        return make(
            [
                {**group, "params": [(wrong if name == right else name, p) for name, p in group["params"]]}
                for group in groups
            ],
            **options,
        )

    monkeypatch.setattr(torch_leg, "Magma", renamed)
    monkeypatch.setattr(torch_leg, "load_state", lambda *given: load(*given, names={wrong: right}))
    monkeypatch.setattr(torch_leg, "save_state", lambda *given: save(*given, names={wrong: right}))
    folder = before(4)
    run_leg(folder, 3, nothing)
    assert at_station(folder, "exact", 8).array == f"weights/{right}"
    count, found = of_masks(folder, "exact", range(7, 9))
    assert count == 0
    assert (found.step, found.array) == (7, f"mask/{right}")


@needs_torch
def test_distance(home, before):
    folder = before(1)
    assert distance(folder, 0) == 0
    station = folder.station("free", 0)
    station.write_weights({name: array * np.float32(1.5) for name, array in station.read_weights().items()})
    assert distance(folder, 0) == pytest.approx(0.5, rel=1e-6)


@pytest.fixture
def torch_alone(monkeypatch):
    """A relay of nothing but torch, in this process: for what a command does with what it is told."""
    pytest.importorskip("torch", reason="torch is not installed")
    from magma_conformance.relay.home import run_home

    def here(folder, who, name, say):
        if who == "home":
            run_home(folder, say)
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
    assert "jax is not installed: pip install 'magma-core[jax]'" in result.output
    assert "tensorflow is not installed: pip install 'magma-core[tensorflow]'" in result.output


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
    leg = LegReport("torch", {"torch": "2"}, (1, 2), None, 7, None, [2.0, 3.0], [2.0, float("nan")], 0.0, 1.0)
    report = RelayReport(Plan(), 10, [leg], 1.0)
    assert report.failures() == [
        "the loss of the run that never moved did not fall: 2.000, then nan",
        "the loss of the free relay did not fall: 2.000, then 3.000",
    ]
    assert report.to_json()["losses"] == {"never_moved": [2.0, None], "free": [2.0, 3.0]}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_picture_of_what_differs(tmp_path):
    pytest.importorskip("matplotlib", reason="the relay draws")
    from magma_conformance.bits import Difference
    from magma_conformance.relay.picture import draw

    finding = Finding(2, "weights/head", Difference("value", (0, 0), "1", "2", 1, 1))
    legs = [
        LegReport("jax", {"jax": "0"}, (1, 2), finding, 7, None, [2.0, 3.0], [2.0, float("nan")], 0.0, 1.0),
        LegReport("torch", {"torch": "2"}, (3, 4), None, 7, None, [2.0, 3.0], [2.5, 2.0], 0.0, 1.0),
    ]
    draw(RelayReport(Plan(steps=2), 10, legs, 1.0), tmp_path / "new" / "relay.png")
    assert (tmp_path / "new" / "relay.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_that_fails_shows_the_end_of_what_it_said(tmp_path):
    with pytest.raises(ProcessFailed, match=r"(?s)^leg-2: ended with status 1\n.*FileNotFoundError.*plan\.json"):
        run_process(Folder(tmp_path), "1", "leg-2", nothing)


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    with pytest.raises(ProcessFailed, match="home: not done in 0 s"):
        run_process(Folder(tmp_path), "home", "home", nothing, timeout=0.01)


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
        run_process(folder, "home", "home", interrupted)  # at its first step of two thousand
    assert started[0].returncode == -signal.SIGKILL  # it did not go on to its own end


@needs_torch
def test_folder_keeps_what_is_written(home):
    assert home.plan() == TINY
    assert asdict(home.plan())["heads"] == 2
    assert sorted(home.batches()) == list(range(1, 9))
    assert home.batches()[1].shape == (2, 13)
    assert home.gradients(3).keys() == home.station("home", 4).read_weights().keys()
    assert {name: mask.shape for name, mask in home.masks("home", 1).items()}["layers.0.attention.wq"] == (16,)
