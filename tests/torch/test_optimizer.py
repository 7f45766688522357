"""`magma_torch.MaskedOptimizer` against the core on NumPy, for any memory layout and batching of parameters."""

import warnings
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from magma_conformance.bench.memory import peak_memory
from magma_conformance.bits import assert_bits_equal
from magma_numpy import namespace as xp
from magma_torch import Magma, MaskedOptimizer, SkipUpdate, native, options
from magma_torch.engine import batch
from torch.nn import Parameter

import magma_core
from magma_core import SGD, AdamW, LaProp, RMSProp, State, dense, magma, score_survival, skip_update

FORMATS = {"float32": (torch.float32, np.float32), "bfloat16": (torch.bfloat16, ml_dtypes.bfloat16)}
FORMATS["float16"] = (torch.float16, np.float16)
LR = 0.05


def to_numpy(x: torch.Tensor) -> np.ndarray:
    x = x.detach()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def gradient(param: torch.Tensor, step: int) -> torch.Tensor:
    """In the parameter's memory order, of many magnitudes, with values that are flushed."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(param.shape, generator=generator) * 10.0 ** torch.randint(-4, 2, param.shape, generator=generator)
    x = torch.where(torch.rand(param.shape, generator=generator) < 0.05, 1e-40, x)
    return torch.empty_like(param).copy_(x)


class Reference:
    """The same parameters on NumPy, group by group."""

    def __init__(self, optimizer: Any, axes: dict[str, Any]) -> None:
        self.groups = [
            (options.read(group), group["lr"], optimizer._names(i, group))
            for i, group in enumerate(optimizer.param_groups)
        ]
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        names = [name for _, _, names in self.groups for name in names]
        self.params = {n: np.array(to_numpy(p), order="C") for n, p in zip(names, tensors, strict=True)}
        self.axes, self.states, self.steps = axes, dict[str, State](), dict[str, int]()

    def step(self, grads: dict[str, np.ndarray], lr: float | None = None) -> dict[str, Any]:
        reports = {}
        for settings, rate, names in self.groups:
            for name in (name for name in names if name in grads):
                rule = settings.rule if settings.masked else dense(decay=settings.rule.decay)
                given = {"base": settings.base, "rule": rule, "block_axes": self.axes.get(name, settings.block_axes)}
                if not settings.masked:
                    given["block_axes"] = None
                if name not in self.states:
                    self.states[name] = magma_core.init(self.params[name], **given, xp=xp)
                self.steps[name] = step = self.steps.get(name, 0) + 1
                self.params[name], self.states[name], reports[name] = magma_core.update(
                    self.params[name],
                    grads[name],
                    self.states[name],
                    name=name,
                    step=step,
                    lr=rate if lr is None else lr,
                    seed=settings.seed,
                    xp=xp,
                    **given,
                )
        return reports


def assert_equal(optimizer: Any, reference: Reference, reports: dict[str, Any]) -> None:
    alignment = optimizer.alignment()
    for i, group in enumerate(optimizer.param_groups):
        for name, param in zip(optimizer._names(i, group), group["params"], strict=True):
            assert_bits_equal(to_numpy(param), reference.params[name], name)
            if name not in reference.states:
                continue
            for field, expected in reference.states[name]._asdict().items():
                if expected is not None:
                    assert_bits_equal(to_numpy(optimizer.state[param][field]), expected, f"{name}/{field}")
            assert int(optimizer.state[param]["step"]) == reference.steps[name]
            for field in ("sums", "cosine", "keep"):
                expected = getattr(reports.get(name), field, None)
                if expected is not None:
                    assert_bits_equal(to_numpy(getattr(alignment[name], field)), expected, f"{name}/{field}")


def follow(optimizer: Any, steps: int = 4, absent: Any = lambda name, step: False) -> Reference:
    """Steps of both, compared after each."""
    reference = Reference(optimizer, {})
    for step in range(1, steps + 1):
        grads = {}
        for i, group in enumerate(optimizer.param_groups):
            for j, (name, param) in enumerate(zip(optimizer._names(i, group), group["params"], strict=True)):
                param.grad = None if absent(name, step) else gradient(param, 100 * step + 10 * i + j)
                if param.grad is not None:
                    grads[name] = np.array(to_numpy(param.grad), order="C")
        optimizer.step()
        assert_equal(optimizer, reference, reference.step(grads))
    return reference


def tensors(kind: str) -> list[tuple[str, Parameter]]:
    """Parameters that lie in memory in every way."""
    dtype = FORMATS[kind][0]
    torch.manual_seed(0)
    made = {
        "matrix": torch.randn(6, 10),
        "twin": torch.randn(6, 10),
        "transposed": torch.randn(10, 6).T,
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "slice": torch.randn(6, 20)[:, ::2],
        "stack": torch.randn(3, 4, 5),
        "vector": torch.randn(9),
        "tiny": torch.randn(2, 2) * 1e-38,
    }
    return [(name, Parameter(x.to(dtype))) for name, x in made.items()]


AXES = [(), (0,), (-1,), (1, 0), (0, 1)]


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_memory_layout(kind, axes):
    named = [(name, p) for name, p in tensors(kind) if p.ndim >= len(axes)]
    if not axes:
        named += [("scalar", Parameter(torch.tensor(1.5))), ("empty", Parameter(torch.zeros(0, 3)))]
    follow(Magma(named, lr=LR, block_axes=axes, seed=3, compile=False))


@pytest.mark.parametrize(
    ("base", "rule"),
    [
        (SGD(nesterov=True, weight_decay=0.1), skip_update(p=0.3)),
        (RMSProp(weight_decay=0.1), score_survival(damped=True)),
        (RMSProp(), skip_update()),
        (AdamW(weight_decay=0.1), magma(momentum="before", decay="dense")),
        (LaProp(weight_decay=0.1), magma(momentum="before")),
        (AdamW(), dense()),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, magma_core.Rule) else value.weight,
)
def test_bases_and_rules(base, rule):
    named = tensors("float32")
    groups = [
        {"params": named[:3]},
        {"params": named[3:5], "masked": False, "lr": 0.01},
        {"params": named[5:6], "block_axes": (0, 2)},
        {"params": named[6:], "block_axes": (0,), "seed": 9},
    ]
    follow(MaskedOptimizer(groups, lr=LR, base=base, rule=rule, compile=False))


def test_compiled_is_eager():
    """One of each kind by `magma_native`; the conformance run has them all."""
    groups = [{"params": tensors("float32")[:5]}, {"params": tensors("bfloat16")[5:], "block_axes": (0,)}]
    follow(Magma(groups, lr=LR))


@pytest.mark.parametrize("at_once", [7, 16, 33])
def test_pieces_do_not_show(monkeypatch, at_once):
    """Blocks that are worked on in several pieces, and pieces of several blocks."""
    monkeypatch.setattr(batch, "_AT_ONCE", at_once)
    monkeypatch.setattr("magma_torch.engine.engine.STACKED", 0)
    for axes in AXES[:3]:
        named = [(name, p) for name, p in tensors("float32") if p.ndim >= 2]
        follow(Magma(named, lr=LR, block_axes=axes, compile=False), steps=2)


def test_stacks_do_not_show(monkeypatch):
    """More parameters of one kind than fit into a stack, and gradients that come and go."""
    monkeypatch.setattr("magma_torch.engine.engine.STACKED", 10)
    named = [(f"w{i}", Parameter(torch.randn(2, 3) + i)) for i in range(17)]
    optimizer = Magma(named, lr=LR, compile=False)
    follow(optimizer, steps=6, absent=lambda name, step: step in (2, 4) and name in ("w3", "w11"))
    assert int(optimizer.state[named[3][1]]["step"]) == 4


def test_a_parameter_without_gradient_is_left_alone():
    named = tensors("float32")[:2]
    optimizer = Magma(named, lr=LR, compile=False)
    named[0][1].grad = torch.ones(6, 10)
    before = named[1][1].detach().clone()
    optimizer.step()
    assert_bits_equal(to_numpy(named[1][1]), to_numpy(before))
    assert not optimizer.state[named[1][1]]
    assert set(optimizer.alignment()) == {"matrix"}


@pytest.mark.filterwarnings("ignore:parameters without names:UserWarning")
def test_names_key_the_masks():
    """Neither position nor company matters."""

    def keeps(names: list[str]) -> dict[str, np.ndarray]:
        named = [(name, Parameter(torch.ones(40, 2))) for name in names]
        optimizer = SkipUpdate(named, block_axes=(0,), compile=False)
        for _, p in named:
            p.grad = torch.ones(40, 2)
        optimizer.step()
        return {name: to_numpy(seen.keep) for name, seen in optimizer.alignment().items()}

    few, many = keeps(["a", "b"]), keeps(["c", "b", "d", "a"])
    for name, keep in few.items():
        assert_bits_equal(many[name], keep)
    assert not np.array_equal(few["a"], few["b"])
    unnamed = SkipUpdate([Parameter(torch.ones(2)), Parameter(torch.ones(2))], compile=False)
    unnamed.add_param_group({"params": Parameter(torch.ones(2))})
    for group in unnamed.param_groups:
        for p in group["params"]:
            p.grad = torch.ones(2)
    unnamed.step()
    assert set(unnamed.alignment()) == {"0.0", "0.1", "1.0"}


def test_a_tensor_takes_over_the_state_of_the_one_it_replaces():
    named = tensors("float32")[:2]
    optimizer = Magma(named, lr=LR, compile=False)
    reference = follow(optimizer, steps=3)
    group = optimizer.param_groups[0]
    group["params"] = [Parameter(p.detach().clone()) for p in group["params"]]
    grads = {}
    for (name, _), p in zip(named, group["params"], strict=True):
        p.grad = gradient(p, 7)
        grads[name] = to_numpy(p.grad)
    optimizer.step()
    assert_equal(optimizer, reference, reference.step(grads))
    assert len(optimizer.state) == 2
    group["params"][0] = Parameter(torch.zeros(3))
    group["params"][0].grad = torch.zeros(3)
    with pytest.raises(ValueError, match="'matrix' was replaced by a tensor of shape"):
        optimizer.step()


def test_state_that_is_put_there_is_used():
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=LR, compile=False)
    reference = follow(optimizer, steps=2)
    optimizer.state[p]["mu"] = torch.full((6, 10), 0.25)
    reference.states[name] = reference.states[name]._replace(mu=np.full((6, 10), 0.25, np.float32))
    p.grad = gradient(p, 9)
    optimizer.step()
    assert_equal(optimizer, reference, reference.step({name: to_numpy(p.grad)}))


@pytest.mark.parametrize(
    "lr", [0.01, torch.tensor(0.01), torch.tensor([0.01]), torch.tensor(0.01, dtype=torch.float64)]
)
def test_learning_rates(lr):
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=lr, compile=False)
    reference = Reference(optimizer, {})
    for step, rate in enumerate((0.01, 0.02, 0.0), 1):
        value = torch.full_like(lr, rate) if isinstance(lr, torch.Tensor) else rate
        optimizer.param_groups[0]["lr"] = value
        p.grad = gradient(p, step)
        optimizer.step()
        exact = float(value) if isinstance(value, torch.Tensor) else rate
        assert_equal(optimizer, reference, reference.step({name: to_numpy(p.grad)}, lr=exact))


def test_betas_may_change_without_compiling_anew(monkeypatch):
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=LR)
    follow(optimizer, steps=2)
    monkeypatch.setattr("magma_torch.native.library", lambda *a: pytest.fail("compiled anew"))
    for beta in (0.8, 0.85):
        optimizer.param_groups[0]["betas"] = (beta, 0.99)
        p.grad = gradient(p, 3)
        optimizer.step()


@pytest.mark.parametrize("compile", [False, True])
def test_no_step_holds_anything_of_a_parameters_size(compile):
    """No copy of gradient, parameter or moment: what a step allocates is bounded, whatever the model."""
    p = Parameter(torch.ones(4, 2**19))
    optimizer = Magma([("w", p)], lr=LR, p=1.0, compile=compile)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert peak_memory(optimizer.step) < p.nbytes / 2


def test_gradients_are_not_written():
    named = tensors("float32")[:1]
    optimizer = Magma(named, lr=LR, compile=False)
    p = named[0][1]
    p.grad = gradient(p, 1)
    given, bits = p.grad, p.grad.clone()
    optimizer.step()
    assert p.grad is given
    assert_bits_equal(to_numpy(given), to_numpy(bits))


@pytest.mark.parametrize("compile", [False, True])
def test_autograd_sees_that_parameters_were_written(compile):
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=LR, p=1.0, compile=compile)
    loss = p.square().sum()
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_a_compiler_there_is_one_warning(monkeypatch):
    monkeypatch.setattr("magma_torch.engine.compiler.compiler_missing", lambda: "no C++ compiler was found")
    monkeypatch.setattr("magma_torch.engine.batch.compiler_missing", lambda: "no C++ compiler was found")
    named = tensors("float32")[:1]
    with pytest.warns(UserWarning, match=r"compile=True has no effect, no C\+\+ compiler was found") as caught:
        optimizer = Magma(named, lr=LR)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        follow(optimizer, steps=1)


def test_without_a_compiler_a_gpu_has_its_kernels(monkeypatch):
    monkeypatch.setattr("magma_torch.engine.compiler.compiler_missing", lambda: "no C++ compiler was found")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = Magma(tensors("float32")[:1], lr=LR)
    assert optimizer.param_groups[0]["compile"]


def test_nothing_changes_where_a_gradient_is_refused():
    dense_, sparse = Parameter(torch.ones(4, 2)), Parameter(torch.ones(4, 2))
    optimizer = Magma([("dense", dense_), ("sparse", sparse)], lr=LR, compile=False)
    dense_.grad = torch.ones(4, 2)
    sparse.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="the gradient of 'sparse' is sparse"):
        optimizer.step()
    assert_bits_equal(to_numpy(dense_), np.ones((4, 2), np.float32))
    assert not optimizer.state[dense_]


@pytest.mark.parametrize("entry", [{"masked": 1}, {"compile": 0}])
def test_flags_are_flags(entry):
    """Also after True and False, which are equal to 1 and 0, have been read."""
    Magma([("w", Parameter(torch.ones(2)))], compile=False)
    with pytest.raises(TypeError, match="must be True or False"):
        Magma([{"params": [Parameter(torch.ones(2))], **entry}], compile=False)


def follow_fresh(optimizer: Any, steps: int = 1) -> None:
    """What an optimizer goes on to do is what one does that was given copies of all it has."""
    twin = [(name, Parameter(p.detach().clone())) for name, p in optimizer._named()]
    fresh = type(optimizer)(twin, base=optimizer.param_groups[0]["base"], compile=False)
    fresh.load_state_dict(optimizer.state_dict())
    for step in range(steps):
        for (_, mine), (_, other) in zip(optimizer._named(), twin, strict=True):
            mine.grad = gradient(mine, 40 + step)
            other.grad = mine.grad.clone()
        optimizer.step()
        fresh.step()
        for (name, mine), (_, other) in zip(optimizer._named(), twin, strict=True):
            assert_bits_equal(to_numpy(mine), to_numpy(other), name)


def test_data_that_is_put_in_another_order_in_place():
    """The same memory, read with other strides."""
    p = Parameter(torch.randn(4, 4))
    optimizer = Magma([("w", p)], lr=LR, base="rmsprop", p=1.0, compile=False)
    follow(optimizer, steps=2)
    p.data = p.data.t()
    follow_fresh(optimizer)


def test_a_step_that_cannot_begin_has_not_happened(monkeypatch):
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=LR, compile=False)
    reference = follow(optimizer, steps=2)

    def fails(*arguments: Any) -> None:
        raise RuntimeError("does not compile")

    with monkeypatch.context() as patched:
        patched.setattr(batch, "_FUNCTIONS", (fails, *batch._FUNCTIONS[1:]))
        with pytest.raises(RuntimeError, match="does not compile"):
            optimizer.step()
    p.grad = gradient(p, 5)
    optimizer.step()
    assert_equal(optimizer, reference, reference.step({name: to_numpy(p.grad)}))


def test_a_step_without_memory_has_not_happened(monkeypatch):
    """The library asks for some bytes for each block before it changes anything."""
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=LR)
    reference = follow(optimizer, steps=2)
    launchers = [x for x in optimizer._engine.launchers if isinstance(x, native.Launcher)]
    if not launchers:
        pytest.skip("there is no C compiler, or Triton's interpreter steps")
    (launcher,) = launchers
    parts = [(replace(compiled, function=lambda *arguments: 1), rows) for compiled, rows in launcher._parts]
    with monkeypatch.context() as patched:
        patched.setattr(launcher, "_parts", parts)
        with pytest.raises(MemoryError, match="no memory to begin the step"):
            optimizer.step()
    p.grad = gradient(p, 5)
    optimizer.step()
    assert_equal(optimizer, reference, reference.step({name: to_numpy(p.grad)}))


def test_a_replacement_that_does_not_fit_is_refused_every_time():
    named = tensors("float32")[:1]
    optimizer = Magma(named, lr=LR, compile=False)
    follow(optimizer, steps=1)
    optimizer.param_groups[0]["params"] = [Parameter(torch.zeros(5, 3))]
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(5, 3)
    for _ in range(2):
        with pytest.raises(ValueError, match="'matrix' was replaced by a tensor of shape"):
            optimizer.step()


def test_state_in_another_order_is_refused():
    named = tensors("float32")[:2]
    optimizer = Magma(named, lr=LR, compile=False)
    follow(optimizer, steps=1)
    other = Magma(list(reversed(tensors("float32")[:2])), lr=LR, compile=False)
    with pytest.raises(ValueError, match="the loaded state has the parameters in another order"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
    assert other.param_groups[0]["param_names"] == ["twin", "matrix"]


def test_names_may_change_between_steps():
    """Masks follow the names, gradients the tensors."""
    named = tensors("float32")[:2]
    optimizer = Magma(named, lr=LR, compile=False)
    follow(optimizer, steps=1)
    optimizer.param_groups[0]["param_names"] = ["twin", "matrix"]
    follow_fresh(optimizer)


def test_a_parameter_of_another_format_is_refused_also_later():
    named = tensors("float32")[:1]
    optimizer = Magma(named, lr=LR, compile=False)
    named[0][1].data = named[0][1].data.double()
    named[0][1].grad = torch.ones(6, 10, dtype=torch.float64)
    with pytest.raises(TypeError, match="'matrix' must be float32, bfloat16 or float16"):
        optimizer.step()


@pytest.mark.parametrize(("field", "value", "error"), [("mu", torch.ones(2), "shape"), ("mu", None, None)])
def test_state_of_another_shape_or_format(field, value, error):
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=LR, compile=False)
    follow(optimizer, steps=1)
    if error:
        optimizer.state[p][field] = value
        with pytest.raises(ValueError, match=r"state\['mu'\] of 'matrix' has shape \(2,\)"):
            optimizer.step()
    else:
        optimizer.state[p][field] = optimizer.state[p][field].to(torch.bfloat16)
        optimizer.step()
        assert optimizer.state[p][field].dtype == torch.float32


def test_groups_of_the_same_base_have_the_numbers_of_the_optimizer():
    optimizer = Magma([{"params": [("w", Parameter(torch.ones(2)))], "base": "adamw"}], weight_decay=0.5, compile=False)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_what_others_put_into_groups_is_left_alone():
    named = tensors("float32")[:1]
    optimizer = Magma(named, lr=LR, compile=False)
    optimizer.param_groups[0]["note"] = {"by": "a trainer"}
    follow(optimizer, steps=1)


def test_compile_is_not_loaded():
    optimizer = Magma(tensors("float32")[:1], compile=True)
    optimizer.load_state_dict(Magma(tensors("float32")[:1], compile=False).state_dict())
    assert optimizer.param_groups[0]["compile"] is True


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block_axes": 0}, TypeError, "block_axes must be a sequence of integers"),
        ({"rule": "magma"}, TypeError, "rule must be a magma_core.Rule"),
        ({"base": "muon"}, ValueError, "base must be one of 'sgd'"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MaskedOptimizer([Parameter(torch.ones(2))], **{"rule": magma(), "compile": False, **arguments})


def test_wrong_entries_of_groups():
    named = tensors("float32")[:1]
    optimizer = Magma(named, compile=False)
    named[0][1].grad = torch.ones(6, 10)
    for key, value, message in (("base", "zzz", "base of a group"), ("block_axes", (5,), "block_axes of 'matrix'")):
        before, optimizer.param_groups[0][key] = optimizer.param_groups[0][key], value
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        optimizer.param_groups[0][key] = before
    with pytest.raises(TypeError, match="names of parameters must be strings, got 1"):
        Magma([(1, Parameter(torch.ones(2)))], compile=False)


def test_a_compiled_training_step_does_not_trace_the_optimizer():
    """Its programs are its own; tracing through the engine would take a minute."""
    (name, p), *_ = tensors("float32")
    optimizer = Magma([(name, p)], lr=LR, compile=False)
    reference = follow(optimizer, steps=1)
    p.grad = gradient(p, 3)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(optimizer.step, backend="eager")
    compiled()
    assert_equal(optimizer, reference, reference.step({name: to_numpy(p.grad)}))
    assert torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) == 0
