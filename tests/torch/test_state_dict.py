"""`state_dict` and `load_state_dict` where the optimizers, or their tensors, are not quite those that saved."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from magma_conformance.bits import assert_bits_equal
from magma_torch import Magma
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Linear, Parameter

KINDS: dict[str, Callable[..., Any]] = {
    "Magma": lambda params: Magma(params, lr=0.1, block_axes=(0,), compile=False),
    "wrapped": lambda params: Magma.wrap(torch.optim.Adagrad(params, lr=0.1), block_axes=(0,), compile=False),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def tensors(*shape: int, count: int = 2) -> list[Parameter]:
    return [Parameter(torch.linspace(-1, 1, 64).reshape(shape or (16, 4)) + i) for i in range(count)]


def step(optimizer: Any, steps: int = 1) -> Any:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = param.detach() * 0.5
        optimizer.step()
    return optimizer


def bits(tensor: torch.Tensor) -> Any:
    return tensor.detach().numpy()


@pytest.mark.filterwarnings("ignore::UserWarning")  # parameters without names
@every_kind
def test_a_named_optimizer_takes_the_names_of_an_unnamed_one(make):
    """Its masks are those of the run that saved."""
    saving = step(make([{"params": [param]} for param in tensors()]), 3)
    saved = copy.deepcopy(saving.state_dict())
    twins = [Parameter(p.detach().clone()) for group in saving.param_groups for p in group["params"]]
    loading = make([{"params": [(name, p)]} for name, p in zip("ab", twins, strict=True)])
    loading.load_state_dict(saved)
    step(loading, 4)
    step(saving, 4)
    for mine, other in zip(saving.param_groups, loading.param_groups, strict=True):
        assert_bits_equal(bits(other["params"][0]), bits(mine["params"][0]))
    assert [group["param_names"] for group in loading.param_groups] == [["0.0"], ["1.0"]]
    assert loading.alignment().keys() == saving.alignment().keys() == {"0.0", "1.0"}
    loading.add_param_group({"params": [("c", tensors()[0])]})


@every_kind
def test_a_tensor_that_was_swapped_has_the_state_of_the_other(make):
    optimizer = step(make(list(zip("ab", tensors(), strict=True))), 2)
    before = optimizer.state_dict()
    params = optimizer.param_groups[0]["params"]
    params[0] = Parameter(params[0].detach().clone())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, values in before["state"].items():
        for field, value in values.items():
            assert_bits_equal(bits(after["state"][key][field]), bits(value), field)
    step(optimizer)


@every_kind
def test_a_small_parameter_is_saved_without_its_stack(make):
    optimizer = step(make([(str(i), p) for i, p in enumerate(tensors(count=100))]))
    state, file = optimizer.state_dict()["state"][0], io.BytesIO()
    torch.save(state, file)
    elements = sum(value.numel() for value in state.values())
    assert len(file.getvalue()) < 8 * elements + 600 * len(state)
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in state.values())


def test_a_large_parameter_shares_its_state():
    """Nobody pays for a second copy of the moments."""
    optimizer = step(Magma([("a", Parameter(torch.ones(2**17)))], compile=False))
    (state,) = optimizer.state_dict()["state"].values()
    (own,) = optimizer.state.values()
    assert state["mu"].data_ptr() == own["mu"].data_ptr()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ["score", "step"])
def test_a_distributed_checkpoint_lacks_an_entry(kind, entry):
    model, options = Linear(3, 2), StateDictOptions(flatten_optimizer_state_dict=True)
    optimizer = step(KINDS[kind](model.named_parameters()))
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    del saved[f"state.weight.{'magma_' if kind == 'wrapped' else ''}{entry}"]
    with pytest.raises(ValueError, match=f"the loaded state of 'weight' lacks '(magma_)?{entry}'"):
        set_optimizer_state_dict(model, optimizer, saved, options=options)
