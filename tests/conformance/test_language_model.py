"""The source of real gradients: magma_conformance.cases.language_model."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="the language model is written in torch")

from magma_conformance.bits import assert_bits_equal
from magma_conformance.cases.language_model import LanguageModel, corpus
from magma_numpy import namespace as xp

from magma_core import AdamW, init, magma, update_all


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel()


def small_model() -> LanguageModel:
    return LanguageModel(width=16, layers=2, heads=2, hidden=24, batch=4, length=16)


def test_corpus():
    text = corpus(100_000)
    assert text.dtype == np.uint8
    assert text.shape == (100_000,)
    assert_bits_equal(corpus(100_000), text)
    assert_bits_equal(corpus(500), text[:500])
    assert text.tobytes().count(b"import ") >= 10  # it is Python


def test_corpus_refuses_what_it_has_not(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least 1"):
        corpus(0)
    (tmp_path / "b.py").write_bytes(b"b" * 4)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.py").write_bytes(b"a" * 3)
    for excluded in ("site-packages", "test", "__pycache__"):
        (tmp_path / excluded).mkdir()
        (tmp_path / excluded / "a.py").write_bytes(b"no")
    (tmp_path / "a.txt").write_bytes(b"no")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert corpus(7).tobytes() == b"aaabbbb"
    with pytest.raises(RuntimeError, match=r"has 7 bytes .* 8 are wanted"):
        corpus(8)


def test_parameters(model):
    params = model.parameters()
    assert sum(p.size for p in params.values()) >= 1_000_000
    assert all(p.dtype == np.float32 for p in params.values())
    assert all(np.isfinite(p).all() for p in params.values())
    # of n = 16,384 uniform values: the deviation of a sample is itself uncertain by √(0.2 / n) = 0.35 %
    assert params["layers.0.attention.wq"].std() == pytest.approx(128**-0.5, rel=0.01)
    again = LanguageModel().parameters()
    for name, value in params.items():
        assert_bits_equal(again[name], value, name)
    other = LanguageModel(seed=1).parameters()
    assert not np.array_equal(other["head"], params["head"])


def test_parameters_are_the_same_on_every_machine(model):
    # NumPy guarantees the raw stream of PCG64 and of SeedSequence, and IEEE 754 the few operations after it: an
    # exact conversion, an addition and a multiplication in float64, a rounding to float32, √ correctly rounded.
    digest = hashlib.sha256()
    for name, value in model.parameters().items():
        digest.update(name.encode() + value.astype("<f4").tobytes())
    assert digest.hexdigest() == "cd44bbc6b5a4f4f51a67bdec24f378a66e5d8acbd3e178ddfd5de6f7b3c556ea"


def test_attention_and_mlp(model):
    masked = [name for name in model.parameters() if model.attention_and_mlp(name)]
    assert len(masked) == 4 * 7
    rest = set(model.parameters()) - set(masked)
    norms = {f"layers.{i}.{kind}_norm" for i in range(4) for kind in ("attention", "mlp")}
    assert rest == {"embedding", "head", "norm"} | norms


def test_batches(model):
    first = model.tokens(1)
    assert first.shape == (8, 65)
    assert_bits_equal(LanguageModel().tokens(1), first)
    assert not np.array_equal(model.tokens(2), first)
    text = model.text.tobytes()
    assert all(bytes(row.astype(np.uint8)) in text for row in first)


def test_loss_and_gradients(model):
    params = model.parameters()
    before = {name: value.copy() for name, value in params.items()}
    for value in params.values():
        value.flags.writeable = False  # as JAX hands arrays out
    loss, grads = model.loss_and_gradients(params, step=1)
    assert loss == pytest.approx(np.log(256), abs=0.05)  # the head starts small: nearly uniform
    assert list(grads) == list(params)
    for name, grad in grads.items():
        assert grad.dtype == np.float32
        assert grad.shape == params[name].shape
        assert np.isfinite(grad).all()
        assert grad.any(), f"{name} is not used"
        assert_bits_equal(params[name], before[name], name)
    unseen = np.setdiff1d(np.arange(256), model.tokens(1)[:, :-1])
    assert not grads["embedding"][unseen].any()


def test_gradients_repeat(model):
    import torch

    params = model.parameters()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        loss, grads = model.loss_and_gradients(params, step=3)
        torch.set_num_threads(3)
        again, others = model.loss_and_gradients(params, step=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert again == loss
    for name, grad in grads.items():
        assert_bits_equal(others[name], grad, name)


def test_gradients_are_derivatives():
    model = small_model()
    rng = np.random.default_rng(0)
    params = {name: value.astype(np.float64) for name, value in model.parameters().items()}
    direction = {name: rng.standard_normal(value.shape) for name, value in params.items()}

    def loss(h: float) -> float:
        moved = {name: value + h * direction[name] for name, value in params.items()}
        return model.loss_and_gradients(moved, step=1)[0]

    _, grads = model.loss_and_gradients(params, step=1)
    derivative = sum(float((grads[name] * direction[name]).sum()) for name in params)
    h = 1e-6
    estimate = (loss(h) - loss(-h)) / (2 * h)
    # Central differences are wrong by h² times a sixth of the third derivative, measured as 1.2e-7 of the
    # derivative for this h (and as 100 times that for 10 h), and by the rounding of the loss, 1e-16 / h = 1e-10.
    assert estimate == pytest.approx(derivative, rel=1e-6)

    single = {name: value.astype(np.float32) for name, value in params.items()}
    _, narrow = model.loss_and_gradients(single, step=1)
    for name, grad in narrow.items():  # measured: 8e-7
        np.testing.assert_allclose(grad, grads[name], rtol=0, atol=1e-5 * np.abs(grads[name]).max())


def test_causal():
    """A byte has no influence on the predictions before it."""
    import torch

    model = small_model()
    weights = {name: torch.tensor(value) for name, value in model.parameters().items()}
    tokens = torch.from_numpy(model.tokens(1)[:1, :-1])
    changed = tokens.clone()
    changed[0, 9] ^= 1
    difference = (model._logits(weights, tokens) - model._logits(weights, changed))[0].abs().amax(-1)
    assert not difference[:9].any()
    assert difference[9:].all()


def test_magma_learns(model):
    params = model.parameters()
    names = list(params)
    axes = {name: () if model.attention_and_mlp(name) else None for name in names}
    options = {"base": AdamW(), "rule": magma(), "xp": xp}
    states = [init(params[name], block_axes=axes[name], **options) for name in names]
    losses = []
    for step in range(1, 16):
        loss, grads = model.loss_and_gradients(params, step)
        losses.append(loss)
        new, states, _ = update_all(
            list(params.values()),
            list(grads.values()),
            states,
            names=names,
            step=step,
            lr=5e-3,
            seed=0,
            block_axes=axes,
            **options,
        )
        params = dict(zip(names, new, strict=True))
    assert losses[0] > 5.5
    assert np.mean(losses[-3:]) < 3.6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 100, "heads": 8}, "multiple of 2"), ({"text": np.zeros(64, np.uint8)}, "a sequence takes 65")],
)
def test_model_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(**options)


def test_loss_and_gradients_refuses_other_weights(model):
    params = model.parameters()
    params["head"] = params["head"].T
    with pytest.raises(ValueError, match=r"'head' has shape \(128, 256\), expected \(256, 128\)"):
        model.loss_and_gradients(params, 1)
    del params["head"]
    with pytest.raises(ValueError, match="'head' has shape None"):
        model.loss_and_gradients(params, 1)


def test_missing_torch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import magma_conformance.cases.language_model"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "magma-optim[torch]" in result.stderr
