"""`magma_torch` steps with `magma_native` on the CPU: hints of the step before, and what it does where it cannot."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from magma_native.library import Library  # noqa: E402
from magma_torch import Magma, MaskedOptimizer, SkipUpdate  # noqa: E402
from magma_torch.engine import compiler  # noqa: E402
from snapshots import assert_same, snapshot  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from magma_core import RMSProp, magma  # noqa: E402

SHAPES = {"rows": (4, 3000), "whole": (40, 30), "turned": (30, 8), "scalar": (), "large": (2**20 + 777,)}
AXES = {"rows": (0,), "turned": (1,)}
NO_FLOAT16 = """#!/bin/sh
if grep -qs _Float16 step.c; then echo "step.c:23:9: error: _Float16 is not supported on this target" >&2; exit 1; fi
exec cc "$@"
"""


class Model(torch.nn.Module):
    """Parameters by name."""

    def __init__(self, dtype: torch.dtype = torch.float32, names: Any = SHAPES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in names:
            value = torch.randn(SHAPES[name], generator=generator).to(dtype)
            self.register_parameter(name, torch.nn.Parameter(value))

    def groups(self) -> list[dict[str, Any]]:
        """Each with its block axes; "scalar" is not masked."""
        return [
            {"params": [(name, x)], "block_axes": AXES.get(name, ()), "masked": name != "scalar"}
            for name, x in self.named_parameters()
        ]

    def differentiate(self, step: int, magnitude: float = 1.0) -> None:
        """Gradients that are the same wherever they are made."""
        generator = np.random.default_rng(step)
        for param in self.parameters():
            grad = np.asarray(generator.normal(size=param.shape) * magnitude, np.float32)
            param.grad = torch.from_numpy(grad).to(param.dtype)


@pytest.fixture
def asked_again(afresh: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """As ``afresh``; magma_torch asks again, too."""

    def forget() -> None:
        compiler.compiler_missing.cache_clear()
        compiler.cannot_compile.cache_clear()
        compiler._told.clear()

    def look(**variables: str | None) -> None:
        afresh(**variables)
        forget()

    yield look
    forget()


def launched(optimizer: Any) -> set[str]:
    """The parameters that libraries step."""
    engines = [optimizer._engine] if isinstance(optimizer, MaskedOptimizer) else optimizer._engines.values()
    batches = [batch for engine in engines for launcher in engine.launchers for batch in launcher.batches]
    return {entry.name for batch in batches for entry in batch.entries}


def follow(model: Model, optimizer: Any, magnitudes: Any = (1.0, 2.0, 0.5)) -> list[dict[str, Any]]:
    found = []
    for step, magnitude in enumerate(magnitudes, 1):
        model.differentiate(step, magnitude)
        optimizer.step()
        found.append(snapshot(model, optimizer))
    return found


def assert_eager_bits(make: Callable[[Model, bool], Any], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Compiled and eager, the same bits after each step; gives the compiled one."""
    models = [Model(dtype) for _ in range(2)]
    compiled, eager = (make(model, compile) for model, compile in zip(models, (True, False), strict=True))
    for mine, theirs in zip(follow(models[0], compiled, **options), follow(models[1], eager, **options), strict=True):
        assert_same(mine, theirs)
    assert not launched(eager)
    return compiled


def masked(model: Model, compile: bool) -> MaskedOptimizer:
    return Magma(model.groups(), lr=0.1, compile=compile)


def before(model: Model, compile: bool) -> MaskedOptimizer:
    rule = magma(momentum="before", decay="dense")
    return MaskedOptimizer(model.groups(), lr=0.1, rule=rule, base=RMSProp(weight_decay=0.1), compile=compile)


def wrapped(model: Model, compile: bool) -> Any:
    return Magma.wrap(torch.optim.AdamW(model.named_parameters(), lr=0.1), compile=compile)


def wrapped_before(model: Model, compile: bool) -> Any:
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    return Magma.wrap(optimizer, cosine_momentum="before", compile=compile)


MAKERS = [masked, before, wrapped, wrapped_before]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_hints_do_not_change_bits(make, threads):
    """Magnitudes of the step before are a guess: they may be far too large, too small, zero, infinite, or NaN."""
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        magnitudes = (1.0, 1.0, 2.0**20, 2.0**-20, 0.0, 1.0, 2.0**-60, 2.0**60, 1e-44, 1.0, float("inf"), 1.0)
        compiled = assert_eager_bits(make, magnitudes=magnitudes)
    finally:
        torch.set_num_threads(used)
    assert len(launched(compiled)) >= len(SHAPES)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make, dtype):
    assert_eager_bits(make, dtype)


@pytest.mark.parametrize("make", [masked, wrapped])
def test_without_a_compiler_there_is_one_warning_and_the_same_bits(make, asked_again):
    asked_again(CC="no-such-compiler")
    with pytest.warns(UserWarning, match=r"compile=True has no effect, .*CC=no-such-compiler is not") as caught:
        compiled = assert_eager_bits(make)
    assert len(caught) == 1
    assert not launched(compiled)


@pytest.mark.parametrize("make", MAKERS)
def test_a_format_that_the_compiler_has_not_steps_eagerly(make, asked_again, tmp_path):
    """As Clang 14 has no float16 on x86: one warning for all parameters of the format; others are compiled."""
    script = tmp_path / "compiler"
    script.write_text(NO_FLOAT16)
    script.chmod(0o755)
    asked_again(CC=str(script))
    with pytest.warns(UserWarning, match=r"float16 parameters step eagerly, with the same bits: .*_Float16") as caught:
        compiled = assert_eager_bits(make, torch.float16)
    assert len(caught) == 1
    assert not launched(compiled)
    assert launched(assert_eager_bits(make))


class Double(torch.optim.Optimizer):
    """SGD whose momentum is in float64."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                momentum = self.state[param].setdefault("momentum", torch.zeros_like(param, dtype=torch.float64))
                momentum.mul_(0.9).add_(param.grad)
                param.sub_(momentum.float(), alpha=group["lr"])


def test_moments_in_a_format_that_no_library_reads_are_rounded_first():
    compiled = assert_eager_bits(lambda model, compile: Magma.wrap(Double(model.named_parameters()), compile=compile))
    assert launched(compiled)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has one format for both")
def test_gradients_in_a_format_that_no_library_reads_step_eagerly():
    results = []
    for compile in (True, False):
        model = Model(names=["rows"])
        model.rows.grad_dtype = torch.float64
        optimizer = masked(model, compile)
        model.rows.grad = torch.linspace(-1, 1, 12000, dtype=torch.float64).view(4, 3000)
        optimizer.step()
        results.append(snapshot(model, optimizer))
        assert not launched(optimizer)
    assert_same(*results)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("compile", [True, False])
def test_fake_parameters_get_states_and_nothing_is_computed(make, compile, monkeypatch):
    """As those who estimate memory step; also where the set of parameters with gradients changes."""
    monkeypatch.setattr(Library, "step", None)
    expected = Model(names=["rows", "whole"])
    real = make(expected, False)
    follow(expected, real, (1.0, 1.0))
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model(names=["rows", "whole"])
        optimizer = make(model, compile)
        for step in range(3):
            (model.rows.sum() * model.whole.sum()).backward()
            if step == 2:
                model.whole.grad = None
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.alignment() == {}
    for name, param in model.named_parameters():
        described = {key: (x.shape, x.dtype) for key, x in optimizer.state[param].items()}
        assert described == {key: (x.shape, x.dtype) for key, x in real.state[expected.get_parameter(name)].items()}


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("names", [["rows"], ["rows", "turned"]])  # with and without a copy
def test_a_fake_step_does_not_write_real_parameters(compile, allowed, names):
    model = Model(names=names)
    optimizer = masked(model, compile)
    last = follow(model, optimizer)[-1]
    with FakeTensorMode(allow_non_fake_inputs=allowed), pytest.raises(Exception, match=r"(?i)fake|_local_scalar_dense"):
        optimizer.step()
    assert_same(snapshot(model, optimizer), last)


@pytest.mark.parametrize("make", [masked, before])
def test_autograd_sees_every_parameter_written(make):
    model = Model()
    optimizer = make(model, True)
    for step in range(1, 3):
        model.differentiate(step)
        versions = {name: param._version for name, param in model.named_parameters()}
        optimizer.step()
        assert launched(optimizer) == versions.keys()
        assert all(param._version > versions[name] for name, param in model.named_parameters())
    loss = model.turned.square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_memory_nothing_is_changed(monkeypatch):
    monkeypatch.setattr("magma_torch.native.library", lambda formula: Library(formula, lambda *arguments: 1, None))
    model = Model()
    optimizer = SkipUpdate(model.groups(), lr=0.1)
    before_it = {name: param.detach().clone() for name, param in model.named_parameters()}
    model.differentiate(1)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no memory to begin the step"):
            optimizer.step()
    for name, param in model.named_parameters():
        assert torch.equal(param, before_it[name])
        assert optimizer.state[param]["step"] == 0


class Shell(torch.Tensor):
    """A tensor around another, with no memory of its own, as those of functional collectives and low-bit states."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Shell":
        shell = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())
        shell.inner = inner
        return shell

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        opened = torch.utils._pytree.tree_map(lambda x: x.inner if isinstance(x, Shell) else x, (args, kwargs or {}))
        return function(*opened[0], **opened[1])


@pytest.mark.parametrize("change", [Shell, torch._neg_view], ids=["a shell", "a negative view"])
def test_gradients_that_are_not_what_lies_in_memory(change):
    models = [Model() for _ in range(2)]
    optimizers = [masked(model, compile) for model, compile in zip(models, (True, False), strict=True)]
    for model, optimizer in zip(models, optimizers, strict=True):
        model.differentiate(1)
        for param in model.parameters():
            param.grad = change(param.grad)
        optimizer.step()
    assert launched(optimizers[0])
    assert_same(snapshot(models[0], optimizers[0]), snapshot(models[1], optimizers[1]))


@pytest.mark.parametrize("change", [Shell, torch.Tensor.double], ids=["a shell", "float64"])
def test_moments_of_another_optimizer_may_become_anything(change):
    """After a step with plain ones."""
    models = [Model(names=["rows", "whole"]) for _ in range(2)]
    wrapped = []
    for model, compile in zip(models, (True, False), strict=True):
        optimizer = Magma.wrap(torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9), compile=compile)
        model.differentiate(1)
        optimizer.step()
        for param in model.parameters():
            optimizer.state[param]["momentum_buffer"] = change(optimizer.state[param]["momentum_buffer"])
        optimizer.optimizer.step = lambda: None  # it need not cope with them
        optimizer.step()
        wrapped.append(optimizer)
    for name, own in wrapped[0].alignment().items():
        other = wrapped[1].alignment()[name]
        assert torch.equal(own.sums, other.sums)
        assert torch.equal(own.score, other.score)


def test_a_caller_that_is_compiled():
    """Dynamo leaves the step alone."""
    models = [Model(names=["rows", "whole"]) for _ in range(2)]
    optimizers = [masked(model, True) for model in models]

    def train(model: Model, optimizer: Any) -> None:
        model.differentiate(1)
        optimizer.step()

    train(models[0], optimizers[0])
    torch.compile(train, backend="eager")(models[1], optimizers[1])
    torch._dynamo.reset()
    assert_same(snapshot(models[1], optimizers[1]), snapshot(models[0], optimizers[0]))
