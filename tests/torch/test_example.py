"""The example of docs/torch.md, on a smaller model."""

import importlib.util
import sys

import pytest
from magma_conformance.cases.language_model import LanguageModel
from paths import REPOSITORY

pytest.importorskip("matplotlib", reason="the example plots")
EXAMPLE = REPOSITORY / "examples" / "torch_bytes.py"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    spec = importlib.util.spec_from_file_location("torch_bytes", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_runs_learn_and_are_plotted(example, monkeypatch, capsys, tmp_path):
    model = LanguageModel(width=32, layers=1, heads=2, hidden=48, batch=4, length=32)
    monkeypatch.setattr(example, "LanguageModel", lambda: model)
    picture = tmp_path / "new" / "plot.png"
    curves = {}
    report = example.losses.report
    monkeypatch.setattr(example.losses, "report", lambda found, *rest: (curves.update(found), report(found, *rest)))
    monkeypatch.setattr(sys, "argv", ["torch_bytes.py", "--steps", "25", "--picture", str(picture)])
    example.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Magma(AdamW), lr_scale 3.3" in capsys.readouterr().out
    assert len({tuple(curve) for curve in curves.values()}) == len(curves) == len(example.RUNS)
    for curve in curves.values():
        assert len(curve) == 25
        assert curve[-1] < curve[0]
