"""What changes between two steps is seen, also by a step that takes a short look at its tensors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from magma_torch import Magma
from magma_torch.engine import engine
from magma_torch.engine.seen import Seen, TensorGuards
from snapshots import assert_same, snapshot
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(TensorGuards is None, reason="this torch has no guards: every step takes a long look")


class Model(nn.Module):
    """Two matrices of one kind, which are stepped together, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in (("one", (8, 4)), ("two", (8, 4)), ("vector", (6,))):
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))

    def differentiate(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for param in self.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


class Shell(Tensor):
    """A tensor around another, with no memory of its own."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Shell":
        shell = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())
        shell.inner = inner
        return shell

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        opened = torch.utils._pytree.tree_map(lambda x: x.inner if isinstance(x, Shell) else x, (args, kwargs or {}))
        return function(*opened[0], **opened[1])


def grown(model: Model) -> Tensor:
    assert model.one.grad is not None
    return torch.cat([model.one.grad, model.one.grad])


def gradient_in_place(model: Model, make: Callable[[Tensor], Tensor]) -> None:
    assert model.one.grad is not None
    model.one.grad.data = make(model.one.grad)


def in_other_memory(param: Tensor, like: Tensor | None = None) -> None:
    param.data = torch.empty_like(param if like is None else like).copy_(param.detach() * 2)


def freed_and_filled(param: Tensor) -> None:
    storage, values = param.untyped_storage(), param.detach() * 2
    size = storage.nbytes()
    storage.resize_(0)
    held = [torch.zeros(size) for _ in range(8)]  # so that it comes to lie elsewhere
    storage.resize_(size)
    del held
    param.data.copy_(values)


def half(model: Model) -> None:
    grad, model.one.grad = model.one.grad, None
    assert grad is not None
    model.one.data = model.one.data.bfloat16()
    model.one.grad = grad.bfloat16()


def set_state(model: Model, optimizer: Magma, field: str, value: Callable[[Tensor], Tensor]) -> None:
    optimizer.state[model.one][field] = value(optimizer.state[model.one][field])


def rename(optimizer: Magma) -> None:
    optimizer.param_groups[0]["param_names"][0] = "another"


def regroup(model: Model, optimizer: Magma) -> None:
    group = optimizer.param_groups[0]
    del group["params"][1], group["param_names"][1]
    optimizer.add_param_group({"params": [("two", model.two)], "masked": False})


CHANGES: dict[str, Callable[[Model, Magma], Any]] = {
    "a gradient in another order": lambda m, o: setattr(m.one, "grad", m.one.grad.t().contiguous().t()),
    "a gradient in another order, in place": lambda m, o: gradient_in_place(m, lambda g: g.t().contiguous().t()),
    "a gradient in other memory, in place": lambda m, o: gradient_in_place(m, lambda g: g * 2),
    "a gradient that is part of another": lambda m, o: gradient_in_place(m, lambda g: torch.cat([g, g], 1)[:, :4]),
    "a gradient of one value": lambda m, o: setattr(m.one, "grad", torch.ones(()).expand(8, 4)),
    "a negative gradient": lambda m, o: setattr(m.one, "grad", torch._neg_view(m.one.grad)),
    "a shell": lambda m, o: setattr(m.one, "grad", Shell(m.one.grad)),
    "a gradient of the type of parameters": lambda m, o: setattr(m.one, "grad", nn.Parameter(m.one.grad)),
    "one gradient for two parameters": lambda m, o: setattr(m.one, "grad", m.two.grad),
    "no gradient": lambda m, o: setattr(m.one, "grad", None),
    "a parameter in other memory": lambda m, o: in_other_memory(m.one),
    "a parameter in another order": lambda m, o: in_other_memory(m.one, m.one.t().contiguous().t()),
    "a parameter that was freed": lambda m, o: freed_and_filled(m.one),
    "a parameter of another format": lambda m, o: half(m),
    "parameters that change places": lambda m, o: torch.utils.swap_tensors(m.one, m.two),
    "another moment": lambda m, o: set_state(m, o, "mu", lambda x: x * 2),
    "another score": lambda m, o: set_state(m, o, "score", lambda x: x / 2),
    "another step": lambda m, o: set_state(m, o, "step", lambda x: x + 5),
    "a score less": lambda m, o: o.state[m.vector].pop("score"),  # the last of all values
    "another state": lambda m, o: o.state.update({m.one: copy.deepcopy(o.state[m.two])}),
    "no state": lambda m, o: o.state.clear(),
    "a seed": lambda m, o: o.param_groups[0].update(seed=5),
    "a beta": lambda m, o: o.param_groups[0].update(betas=(0.5, 0.9)),
    "no masks": lambda m, o: o.param_groups[0].update(masked=False),
    "a name": lambda m, o: rename(o),
    "a group": regroup,
}


def run(change: Callable[[Model, Magma], Any]) -> list[dict[str, Any]]:
    """Some steps, a change before the fifth."""
    model = Model()
    optimizer = Magma([{"params": [*model.named_parameters()]}], lr=0.1)
    found = []
    for step in range(1, 8):
        model.differentiate(step)
        if step == 5:
            change(model, optimizer)
        optimizer.step()
        found.append(snapshot(model, optimizer))
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change, monkeypatch):
    short = run(CHANGES[change])
    monkeypatch.setattr(Seen, "possible", lambda *arguments: False)
    for mine, theirs in zip(short, run(CHANGES[change]), strict=True):
        assert_same(mine, theirs)


def test_a_step_like_the_one_before_takes_a_short_look(monkeypatch):
    """From the third on; it sees the gradients that it is given."""
    long = engine._sign
    signed: list[int] = []
    monkeypatch.setattr(engine, "_sign", lambda *arguments: signed.append(1) or long(*arguments))
    model = Model()
    optimizer = Magma(model.named_parameters(), lr=0.1)
    counts = []
    for step in range(1, 6):
        model.differentiate(step)
        optimizer.step()
        counts.append(len(signed))
    assert counts == [2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m, o: setattr(m.one, "grad", m.one.grad.to_sparse()), "the gradient of 'one' is sparse"),
        (lambda m, o: setattr(m.one, "data", m.one.data.double()), "parameter 'one' must be float32"),
        (lambda m, o: setattr(m.one, "data", m.one.data.view(4, 8)), "has shape"),
        (lambda m, o: setattr(m.one, "data", m.one.data[:4]), "has shape"),
        (lambda m, o: o.param_groups[0].update(block_axes=(0,)), "has shape"),
    ],
)
def test_what_is_refused_is_refused_later_too(change, error):
    with pytest.raises((RuntimeError, TypeError, ValueError), match=error):
        run(change)


def test_what_failed_is_not_taken_for_seen(monkeypatch):
    """Gradients of another kind were looked at, but no step was made with them."""
    results = []
    for possible in (Seen.possible, lambda *arguments: False):
        monkeypatch.setattr(Seen, "possible", staticmethod(possible))
        model = Model()
        optimizer = Magma(model.named_parameters(), lr=0.1)
        for step in range(1, 6):
            model.differentiate(step)
            if step in (4, 5):
                gradient_in_place(model, torch._neg_view)
            if step == 4:
                with monkeypatch.context() as patched:
                    patched.setattr(engine, "_rate", lambda *arguments: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        optimizer.step()
            else:
                optimizer.step()
        results.append(snapshot(model, optimizer))
    assert_same(*results)
