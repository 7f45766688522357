"""Against external implementations: pytorch_optimizer's Magma with our coins, and torch's own optimizers.

Both sides get the same gradients, those of a small model at our parameters. So differences add up but do not feed back,
and a bound exists. Conventions that had to be aligned are numbered (1) to (10).
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from magma_conformance.bits import assert_bits_equal
from magma_torch import Magma, MaskedOptimizer
from torch import Tensor

from magma_core import SGD, Adam, AdamW, LaProp, RMSProp, dense

STEPS, LR = 50, 0.01

ROUNDINGS = STEPS * 2.0**-22
"""Relative error of a direction: each step adds at most four roundings of 2⁻²⁴ to the moments."""

BIAS_CORRECTION = 2.0**-15
"""Relative error of a direction of Adam and LaProp: in 1 − β₂ᵗ, which is above 0.95·t(1 − β₂) for β₂ = 0.999 and 50
steps, our binary32 βᵗ is wrong by up to t·2⁻²⁴, and the root halves what follows; torch computes it in binary64."""


class Model:
    """A small model with decaying and noisy gradients, some of them small."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        self.inputs, self.targets = torch.randn(STEPS, 16, 6), torch.randn(STEPS, 16, 3)
        self.copies = [torch.nn.Parameter(p.detach().clone()) for p in self.net.parameters()]
        self.paths = [torch.zeros_like(p) for p in self.copies]

    @property
    def named(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.net.named_parameters())

    def run(self, ours: Any, theirs: Any, between: Callable[[], None] = lambda: None) -> None:
        """All steps of both; ``between`` ours and theirs."""
        params = list(self.net.parameters())
        for inputs, targets in zip(self.inputs, self.targets, strict=True):
            ours.zero_grad()
            (self.net(inputs) - targets).square().mean().backward()
            for param, copy in zip(params, self.copies, strict=True):
                copy.grad = param.grad.clone()
            before = [param.detach().clone() for param in params]
            ours.step()
            for path, param, old in zip(self.paths, params, before, strict=True):
                path += (param.detach() - old).abs()
            between()
            theirs.step()

    def check(self, relative: float) -> None:
        """Errors are ``relative`` to the way that a parameter has gone, and a rounding of θ at either side's steps.

        Theirs round twice where weights decay or blend, so three of 2⁻²⁴ and a fourth to spare.
        """
        for (name, param), copy, path in zip(self.named.items(), self.copies, self.paths, strict=True):
            way, size = path.max().item(), param.detach().abs().max().item() + path.max().item()
            tolerance = relative * way + STEPS * 2.0**-22 * size
            assert tolerance < 0.002 * way, "the check would say nothing"
            error = (param - copy).abs().max().item()
            assert error <= tolerance, f"{name}: {error:.3g} > {tolerance:.3g}"


def cosine_error(param: Tensor) -> float:
    """Of a cosine with n elements: (6) each operand is rounded to 16 bits, where its largest is at least 2¹⁴.

    So an operand is turned by at most ½√n / 2¹⁴. A float cosine errs far less.
    """
    return 2 * 0.5 * math.sqrt(param.numel()) / 2.0**14


def score_error(param: Tensor, tau: float) -> float:
    """A sigmoid is nowhere steeper than ¼, and an average of scores errs no more than these."""
    return cosine_error(param) / (4 * tau) + 2.0**-20


# pytorch_optimizer's Magma


BASES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    # (9) torch decays AdamW's weights inside the step that is then blended: that is decay="masked", our default. The
    # decay of its SGD and RMSprop is added to the gradient, which no base here does: none on either side.
    "adamw": (AdamW(weight_decay=0.1), lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=0.1)),
    "sgd": (SGD(), lambda ps: torch.optim.SGD(ps, lr=LR, momentum=0.9)),
    # (4) without a first moment theirs keeps an average with momentum_beta = 0.9; ours calls it RMSProp.momentum
    "rmsprop": (RMSProp(), lambda ps: torch.optim.RMSprop(ps, lr=LR)),
}


class Coins:
    """Our keep masks, one after the other, in place of torch.bernoulli.

    (1) Theirs draws from torch's global generator, a number for each parameter in their order, which depends on all
    that was drawn before; ours are a function of name, seed, step and block.
    """

    def __init__(self, p: float) -> None:
        self.p, self.queue = p, deque[bool]()

    def __call__(self, probabilities: Tensor) -> Tensor:
        assert torch.all(probabilities == torch.tensor(self.p)), "(2) mask_prob is our p: of being kept"
        drawn = [float(self.queue.popleft()) for _ in range(probabilities.numel())]
        return torch.tensor(drawn).reshape(probabilities.shape)


@pytest.mark.parametrize(
    ("wrapped", "foreach", "options"),
    [(False, False, {}), (False, True, {"p": 0.75, "tau": 0.5, "ema": 0.6}), (True, False, {}), (True, True, {})],
    ids=["own_base", "other_options-foreach", "wrap", "wrap-foreach"],
)
@pytest.mark.parametrize("base", BASES)
def test_pytorch_optimizer_magma(
    monkeypatch: pytest.MonkeyPatch, base: str, wrapped: bool, foreach: bool, options: dict[str, float]
) -> None:
    p, tau, ema = (options.get(key, default) for key, default in (("p", 0.5), ("tau", 2.0), ("ema", 0.9)))
    model, (config, make), start = Model(), BASES[base], 0.7
    plain = "2.bias"
    groups: list[dict[str, Any]] = [
        {"params": [pair for pair in model.named.items() if pair[0] != plain]},
        {"params": [(plain, model.named[plain])], "masked": False},
    ]
    # (5) theirs sees the momentum after the step's update, as ours by default; (7) a block is a whole parameter
    common: dict[str, Any] = {**options, "initial_score": start, "compile": False}
    if wrapped:
        ours: Any = Magma.wrap(make(groups), **common)
    else:
        ours = Magma(groups, lr=LR, base=config, **common)
    # (8) what our group says with masked=False, theirs is told with exclude
    excluded = model.copies[list(model.named).index(plain)]
    theirs = pytorch_optimizer.optimizer.magma.Magma(
        make(model.copies),
        mask_prob=p,
        tau=tau,
        alignment_ema=ema,
        momentum_beta=RMSProp().momentum,
        foreach=foreach,
        exclude={excluded},
    )
    # (3) their score starts at 1 and cannot be set; ours at 0.5. Here both start at 0.7
    masked = {name: copy for name, copy in zip(model.named, model.copies, strict=True) if copy is not excluded}
    for copy in masked.values():
        theirs._state[id(copy)] = {"alignment": torch.tensor(start)}
    coins, kept = Coins(p), list[bool]()
    scores, errors = list[float](), list[float]()
    monkeypatch.setattr(torch, "bernoulli", coins)
    olds: dict[str, Tensor] = {}

    def toss() -> None:
        seen = ours.alignment()
        assert list(seen) == list(masked)
        coins.queue.extend(bool(seen[name].keep) for name in masked)
        kept.extend(coins.queue)
        olds.update({name: copy.detach().clone() for name, copy in masked.items()})

    def compare(*_: Any) -> None:
        for name, copy in masked.items():
            seen, theirs_score = ours.alignment()[name], theirs._state[id(copy)]["alignment"]
            scores.append(seen.score.item())
            errors.append(abs(seen.score - theirs_score).item() / score_error(copy, tau))
            if not seen.keep:
                assert_bits_equal(copy.detach().numpy(), olds[name].numpy(), name)

    theirs.register_step_post_hook(compare)
    model.run(ours, theirs, toss)
    assert len(errors) == STEPS * len(masked)
    assert not coins.queue
    assert abs(sum(kept) / len(kept) - p) < 0.15
    assert max(errors) <= 1
    relative = max(score_error(copy, tau) for copy in masked.values()) / min(scores)
    # (10) theirs blends θ + s(θ_base − θ), ours with its own bases writes θ − (lr·s)Δ: a rounding more, see `check`
    model.check(relative + ROUNDINGS + (BIAS_CORRECTION if base == "adamw" else 0))


# torch's own optimizers


SMALL = {"betas": (0.8, 0.95), "eps": 1e-3}  # an ε that shows, inside or outside of the root and of the correction
# torch's momentum starts as the first gradient, ours as 0, to which that is added: the same without dampening, which no
# base here has. ε is outside the root on both sides. torch's alpha is our beta2; our RMSProp neither centers nor moves
# by its momentum.
PAIRS: dict[str, tuple[Any, Any, float]] = {
    "adam": (Adam(), lambda ps: torch.optim.Adam(ps, lr=LR), BIAS_CORRECTION),
    "adam numbers": (
        Adam(beta1=0.8, beta2=0.95, eps=1e-3),
        lambda ps: torch.optim.Adam(ps, lr=LR, **SMALL),
        0.0,  # of β₂ = 0.95 the bias correction is exact enough
    ),
    "adamw": (AdamW(), lambda ps: torch.optim.AdamW(ps, lr=LR), BIAS_CORRECTION),
    "adamw numbers": (
        AdamW(beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.5),
        lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=0.5, **SMALL),
        0.0,
    ),
    "sgd": (SGD(momentum=0.0), lambda ps: torch.optim.SGD(ps, lr=LR), 0.0),
    "momentum": (SGD(), lambda ps: torch.optim.SGD(ps, lr=LR, momentum=0.9), 0.0),
    "nesterov": (
        SGD(nesterov=True, momentum=0.8),
        lambda ps: torch.optim.SGD(ps, lr=LR, momentum=0.8, nesterov=True),
        0.0,
    ),
    "rmsprop": (RMSProp(), lambda ps: torch.optim.RMSprop(ps, lr=LR), 0.0),
    "rmsprop numbers": (
        RMSProp(beta2=0.9, eps=1e-3),
        lambda ps: torch.optim.RMSprop(ps, lr=LR, alpha=0.9, eps=1e-3),
        0.0,
    ),
    # torch has no LaProp. pytorch_optimizer's corrects ε along with the root, so ε is too small to matter; it decays
    # weights after the step, so that there is no decay
    "laprop": (LaProp(eps=1e-20), lambda ps: pytorch_optimizer.LaProp(ps, lr=LR, eps=1e-20), BIAS_CORRECTION),
}


@pytest.mark.parametrize(("name", "decay"), [*((name, "masked") for name in PAIRS), ("adamw numbers", "dense")])
def test_dense_is_the_base(name: str, decay: Any) -> None:
    """Where nothing is masked both kinds of decay are torch's θ(1 − lr·λ) − lr·Δ, but for rounding."""
    base, make, relative = PAIRS[name]
    model = Model()
    ours = MaskedOptimizer(model.named.items(), lr=LR, rule=dense(decay=decay), base=base, compile=False)
    model.run(ours, make(model.copies))
    model.check(relative + ROUNDINGS)
