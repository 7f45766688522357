"""The example of docs/keras.md, on a smaller model."""

import importlib.util
import sys

import pytest
from magma_keras import attention_and_mlp
from magma_keras.names import axes
from paths import REPOSITORY

pytest.importorskip("matplotlib", reason="the example plots")
EXAMPLE = REPOSITORY / "examples" / "keras_bytes.py"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    spec = importlib.util.spec_from_file_location("keras_bytes", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"LAYERS": 1, "WIDTH": 32, "CONTEXT": 16, "HEADS": 2, "BATCH": 8, "TEXT": 4096}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_all_runs_learn_and_are_plotted(example, monkeypatch, capsys, tmp_path):
    picture = tmp_path / "new" / "plot.png"
    curves = {}
    report = example.losses.report
    monkeypatch.setattr(example.losses, "report", lambda found, *rest: (curves.update(found), report(found, *rest)))
    monkeypatch.setattr(sys, "argv", ["keras_bytes.py", "--steps", "40", "--picture", str(picture)])
    example.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "magma(adamw), lr_scale 3.3" in capsys.readouterr().out
    assert len({tuple(curve) for curve in curves.values()}) == len(curves) == 3
    for curve in curves.values():
        assert len(curve) == 40
        assert curve[-1] < curve[0]


def test_every_table_is_trained(example):
    paths = [variable.path for variable in example.language_model().trainable_variables]
    assert any("positions" in path for path in paths)
    assert any("bytes" in path for path in paths)


def test_attention_and_mlp_masks_the_same(example):
    model, by_hand = example.language_model(), {r"(attention|mlp).*kernel": (), "": None}
    found = attention_and_mlp(model, quiet=True)
    assert all(axes(each.path, found) == axes(each.path, by_hand) for each in model.trainable_variables)
