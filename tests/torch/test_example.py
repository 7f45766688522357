"""The example of docs/torch.md, on a smaller model."""

import importlib.util
import sys

import pytest
from magma_conformance.cases.language_model import LanguageModel
from paths import REPOSITORY
from rich.progress import Progress

pytest.importorskip("matplotlib", reason="the example plots")
EXAMPLE = REPOSITORY / "examples" / "torch_bytes.py"


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLE.parent))
    spec = importlib.util.spec_from_file_location("torch_bytes", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_optimizers_learn_and_are_plotted(example, tmp_path):
    model = LanguageModel(width=32, layers=1, heads=2, hidden=48, batch=4, length=32)
    losses = {label: example.train(label, model, 25, Progress(disable=True)) for label in example.RUNS}
    for curve in losses.values():
        assert len(curve) == 25
        assert curve[-1] < curve[0]
    assert len({tuple(curve) for curve in losses.values()}) == len(losses)
    example.losses.report(losses, "title", tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(example, monkeypatch, capsys, tmp_path):
    tiny = LanguageModel(width=16, layers=1, heads=2, hidden=16, batch=2)
    monkeypatch.setattr(example, "LanguageModel", lambda: tiny)
    monkeypatch.setattr(sys, "argv", ["torch_bytes.py", "--steps", "20", "--picture", str(tmp_path / "plot.png")])
    example.main()
    assert "Magma(AdamW), lr_scale 3.3" in capsys.readouterr().out
