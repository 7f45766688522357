"""A separate learning rate for masked parameters: with schedulers, compiled, wrapped and saved."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from lr_scale import AXES, LR_SCALE, RATES, every_bad_one, every_case, expected, start
from magma_conformance.bits import assert_bits_equal
from magma_torch import Magma, MaskedOptimizer, attention_and_mlp
from magma_torch.engine import engine
from torch.nn import Parameter

from magma_core import damping, magma, score_survival


def groups() -> tuple[dict[str, Parameter], list[dict[str, Any]]]:
    """A group for each parameter."""
    params = {name: Parameter(torch.from_numpy(x)) for name, x in start().items()}
    return params, [
        {"params": [(name, p)], "masked": AXES[name] is not None, "block_axes": AXES[name] or ()}
        for name, p in params.items()
    ]


def steps(optimizer: Any, params: dict[str, Parameter], base: Any, rule: Any) -> None:
    """As many as there are rates, by a scheduler, each compared with the core."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: RATES[min(step, len(RATES) - 1)])
    for step, lr, grads, after in expected(base, rule):
        assert {float(group["lr"]) for group in optimizer.param_groups} <= {lr, float(np.float32(lr))}
        for name, p in params.items():
            p.grad = torch.from_numpy(grads[name])
        optimizer.step()
        schedule.step()
        for name, p in params.items():
            assert_bits_equal(p.detach().numpy(), after[name], f"{name} at step {step}")


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@every_case
def test_masked_parameters_have_the_rate_of_the_specification(base, rule, compile):
    params, given = groups()
    optimizer = MaskedOptimizer(given, lr=1.0, rule=rule, base=base, lr_scale=LR_SCALE, compile=compile)
    steps(optimizer, params, base, rule)


@every_case
def test_a_group_has_a_factor_of_its_own_and_a_rate_that_is_a_tensor(base, rule):
    params, given = groups()
    for group in given:
        group["lr_scale"] = LR_SCALE
    steps(MaskedOptimizer(given, lr=torch.tensor(1.0), rule=rule, base=base, compile=False), params, base, rule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [*RATES, 2.0**-99, 3e38])
@pytest.mark.parametrize("factor", [LR_SCALE, 0.3])
def test_a_rate_on_a_device_has_the_bits_of_a_number(lr, factor, dtype):
    there = engine._rate_on_device(torch.tensor([lr], dtype=dtype), factor)
    assert_bits_equal(there.numpy(), np.asarray(engine._rate(lr, factor), np.float32))


def test_the_factor_may_change_without_compiling_anew(monkeypatch):
    params, given = groups()
    optimizer = MaskedOptimizer(given, lr=0.1, rule=magma())
    for p in params.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    monkeypatch.setattr("magma_torch.native.library", lambda *a: pytest.fail("compiled anew"))
    for factor in (2.0, 3.5):
        optimizer.param_groups[0]["lr_scale"] = factor
        optimizer.step()


@pytest.mark.parametrize("rule", [damping(), score_survival()], ids=["damping", "score survival"])
def test_wrapped_optimizers_move_masked_parameters_so_many_times_as_far(rule):
    """The weight of a kept block is lr_scale ⊗ w; the others keep their bits."""
    params, given = groups()
    for group in given:
        group["lr_scale"] = LR_SCALE
    optimizer = MaskedOptimizer.wrap(torch.optim.SGD(given, lr=0.1), rule=rule, compile=False)
    for name, p in params.items():
        before = p.detach().clone()
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
        base, factor = before - torch.full_like(p, 0.5) * 0.1, torch.tensor(1.0)
        if AXES[name] is not None:
            seen = optimizer.alignment()[name]
            factor = torch.tensor(LR_SCALE) * (seen.score if rule.weight == "score" else 1.0)
            factor = torch.where(seen.keep, factor, 0.0).reshape(-1, *[1] * (p.ndim - 1))
        moved = torch.where(factor == 1, base, (base - before) * factor + before)
        assert_bits_equal(p.detach().numpy(), moved.numpy(), name)
        p.grad = None


def test_the_factor_is_saved_with_the_group():
    params, given = groups()
    optimizer = Magma(given, lr=0.1, lr_scale=LR_SCALE, compile=False)
    other = Magma(groups()[1], lr=0.1, compile=False)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr_scale"] for group in other.param_groups] == [LR_SCALE] * len(params)


@every_bad_one
def test_a_bad_factor_is_refused(bad):
    params, given = groups()
    with pytest.raises((ValueError, TypeError), match="lr_scale must be"):
        Magma(given, lr_scale=bad, compile=False)
    optimizer = Magma(given, lr=0.1, compile=False)
    for p in params.values():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params.values()]
    optimizer.param_groups[0]["lr_scale"] = bad
    with pytest.raises((ValueError, TypeError), match="lr_scale must be"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params.values(), before, strict=True))
    assert not optimizer.state


def test_attention_and_mlp_gives_the_factor_to_what_is_masked():
    model = torch.nn.TransformerEncoderLayer(8, 2)
    masked, plain = attention_and_mlp(model, lr_scale=LR_SCALE, quiet=True)
    assert masked["lr_scale"] == LR_SCALE
    assert "lr_scale" not in plain
    optimizer = Magma(attention_and_mlp(model, quiet=True), lr_scale=LR_SCALE, compile=False)
    assert optimizer.param_groups[0]["lr_scale"] == LR_SCALE  # what is not asked for is the optimizer's own
    with pytest.raises(ValueError, match="lr_scale must be"):
        attention_and_mlp(model, lr_scale=0.0, quiet=True)
