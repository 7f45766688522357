"""Hyper-parameters: frozen dataclasses, validated on construction.

Every default lives in this file and nowhere else.
"""

import numbers
from dataclasses import dataclass
from typing import Literal

from magma_core.arguments import check_choice, check_flag, check_interval, check_number

Survival = Literal["p", "score"]
Weight = Literal["inverse_p", "score", "one"]
Momentum = Literal["after", "before"]
Decay = Literal["masked", "dense"]

SMALLEST = 2.0**-100
"""The smallest magnitude kept (spec 1.2); also the lower bound of ``eps``, ``tau`` and ``lr_scale``."""

LEARNING_RATE = 1e-3
"""The default learning rate, for optimizers that have one."""

LR_SCALE = 1.0
"""The default learning-rate factor for masked parameters."""

SEED = 0
"""The default seed of keep masks."""

LARGEST_BETA = 1 - 2.0**-24
"""The largest binary32 below 1. A decay rate that rounds to 1 would make bias correction divide by 0."""


def check_lr_scale(value: object, /) -> None:
    """Raise unless ``value`` is a valid learning-rate factor."""
    if check_number("lr_scale", value) == 0:
        raise ValueError(f"lr_scale must be positive, got {value!r}: to freeze parameters, leave them out")
    check_interval("lr_scale", value, SMALLEST, None)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """μ ← βμ + g and Δ = μ, or g + βμ with ``nesterov`` (spec section 4.1).

    Args:
        momentum: β in [0, 1). With 0, the momentum equals the gradient and every cosine is 1.
        nesterov: look one momentum step ahead.
        weight_decay: coefficient λ ≥ 0 of the decoupled decay λθ, see `Rule.decay`.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_beta("momentum", self.momentum)
        check_flag("nesterov", self.nesterov)
        _check_decay(self.weight_decay)
        _make_floats(self)


@dataclass(frozen=True, kw_only=True)
class RMSProp:
    """ν ← β₂ν + (1−β₂)g² and Δ = g / (√ν + ε) (spec section 4.2).

    RMSProp has no first moment. Rules that measure alignment keep an extra average of the gradient.

    Args:
        beta2: decay rate of ν, in [0, 1).
        eps: ε ≥ 2⁻¹⁰⁰, added outside the square root.
        momentum: decay rate in [0, 1) of that average, which only the cosine uses.
        weight_decay: coefficient λ ≥ 0 of the decoupled decay λθ, see `Rule.decay`.
    """

    beta2: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_beta("beta2", self.beta2)
        _check_beta("momentum", self.momentum)
        check_interval("eps", self.eps, SMALLEST, None)
        _check_decay(self.weight_decay)
        _make_floats(self)


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with bias correction (spec section 4.3; Kingma and Ba, arXiv 1412.6980).

    Args:
        beta1: decay rate of the first moment, in [0, 1).
        beta2: decay rate of the second moment, in [0, 1).
        eps: ε ≥ 2⁻¹⁰⁰, added outside the square root.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    weight_decay = 0.0  # not a field: Adam with decoupled decay is AdamW

    def __post_init__(self) -> None:
        _check_beta("beta1", self.beta1)
        _check_beta("beta2", self.beta2)
        check_interval("eps", self.eps, SMALLEST, None)
        _make_floats(self)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (spec section 4.3; Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        beta1: decay rate of the first moment, in [0, 1).
        beta2: decay rate of the second moment, in [0, 1).
        eps: ε ≥ 2⁻¹⁰⁰, added outside the square root.
        weight_decay: coefficient λ ≥ 0 of the decoupled decay λθ, see `Rule.decay`.
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_decay(self.weight_decay)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class LaProp:
    """LaProp: normalize the gradient, then average it (spec section 4.4; Ziyin et al., arXiv 2002.04839).

    Args:
        beta1: decay rate of the average of normalized gradients, in [0, 1).
        beta2: decay rate of the second moment, in [0, 1).
        eps: ε ≥ 2⁻¹⁰⁰, added outside the square root.
        weight_decay: coefficient λ ≥ 0 of the decoupled decay λθ, see `Rule.decay`.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_beta("beta1", self.beta1)
        _check_beta("beta2", self.beta2)
        check_interval("eps", self.eps, SMALLEST, None)
        _check_decay(self.weight_decay)
        _make_floats(self)


Base = SGD | RMSProp | Adam | LaProp
"""Any base optimizer; `AdamW` is an `Adam`."""

BASES: dict[str, type[Base]] = {"sgd": SGD, "rmsprop": RMSProp, "adam": Adam, "adamw": AdamW, "laprop": LaProp}
"""The bases by the names that an optimizer's ``base`` accepts."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How blocks survive a step, and how surviving blocks are weighted (spec section 6).

    The paper's variants have constructors: `dense`, `skip_update`, `magma`, `damping`, `score_survival`. Use `Rule` for
    other combinations.

    Args:
        survival: a block survives with probability ``p``, or with its ``score`` as the probability.
        weight: the factor of a kept block's direction: ``inverse_p``, ``score`` or ``one``.
        p: survival probability in [0, 1]; 0 keeps no block and 1 keeps every block, exactly.
        tau: sigmoid temperature τ ≥ 2⁻¹⁰⁰.
        ema: a in [0, 1), the decay rate of the score.
        initial_score: s₀ in [0, 1].
        momentum: the cosine uses μ ``after`` or ``before`` this step's update.
        decay: ``masked`` puts weight decay inside Δ, so it is masked and weighted too; ``dense`` decays every element
            at every step at the full learning rate.

    Raises:
        ValueError: if a value is out of range.
        TypeError: if a value is not a number.

    Example:
        >>> Rule(survival="p", weight="score").uses_score
        True
        >>> magma(p=1.5)
        Traceback (most recent call last):
        ...
        ValueError: p must lie in [0, 1], got 1.5
    """

    survival: Survival = "p"
    weight: Weight = "score"
    p: float = 0.5
    tau: float = 2.0
    ema: float = 0.9
    initial_score: float = 0.5
    momentum: Momentum = "after"
    decay: Decay = "masked"

    def __post_init__(self) -> None:
        check_choice("survival", self.survival, ("p", "score"))
        check_choice("weight", self.weight, ("inverse_p", "score", "one"))
        check_choice("momentum", self.momentum, ("after", "before"))
        check_choice("decay", self.decay, ("masked", "dense"))
        check_interval("p", self.p, 0.0, 1.0)
        check_interval("tau", self.tau, SMALLEST, None)
        check_interval("ema", self.ema, 0.0, LARGEST_BETA)
        check_interval("initial_score", self.initial_score, 0.0, 1.0)
        _make_floats(self)

    @property
    def uses_score(self) -> bool:
        """Whether the rule needs alignment scores, and therefore a first moment."""
        return "score" in (self.survival, self.weight)

    @property
    def unmasked(self) -> "Rule":
        """The rule of unmasked parameters: the base itself, with the same decay (spec section 2)."""
        return dense(decay=self.decay)


def dense(*, decay: Decay = Rule.decay) -> Rule:
    """The base optimizer itself: keeps every block with weight 1."""
    return Rule(survival="p", weight="one", p=1.0, decay=decay)


def skip_update(*, p: float = Rule.p, decay: Decay = Rule.decay) -> Rule:
    """SkipUpdate: uniform masks, made unbiased by the weight 1/p."""
    return Rule(survival="p", weight="inverse_p", p=p, decay=decay)


def magma(
    *,
    p: float = Rule.p,
    tau: float = Rule.tau,
    ema: float = Rule.ema,
    initial_score: float = Rule.initial_score,
    momentum: Momentum = Rule.momentum,
    decay: Decay = Rule.decay,
) -> Rule:
    """Magma: uniform masks; the alignment score damps kept blocks."""
    return Rule(p=p, tau=tau, ema=ema, initial_score=initial_score, momentum=momentum, decay=decay)


def damping(
    *,
    tau: float = Rule.tau,
    ema: float = Rule.ema,
    initial_score: float = Rule.initial_score,
    momentum: Momentum = Rule.momentum,
    decay: Decay = Rule.decay,
) -> Rule:
    """Damping only: Magma with p = 1."""
    return magma(p=1.0, tau=tau, ema=ema, initial_score=initial_score, momentum=momentum, decay=decay)


def score_survival(
    *,
    damped: bool = False,
    tau: float = Rule.tau,
    ema: float = Rule.ema,
    initial_score: float = Rule.initial_score,
    momentum: Momentum = Rule.momentum,
    decay: Decay = Rule.decay,
) -> Rule:
    """The score is the survival probability; with ``damped``, also the weight."""
    check_flag("damped", damped)
    return Rule(
        survival="score",
        weight="score" if damped else "one",
        tau=tau,
        ema=ema,
        initial_score=initial_score,
        momentum=momentum,
        decay=decay,
    )


def _check_beta(name: str, value: float) -> None:
    check_interval(name, value, 0.0, LARGEST_BETA)


def _check_decay(value: float) -> None:
    check_interval("weight_decay", value, 0.0, None)


def _make_floats(config: object) -> None:
    """Convert other number types to binary64, in which expressions such as 1 − β are evaluated (spec 1.3)."""
    for name, value in vars(config).items():
        if isinstance(value, numbers.Real) and value is not True and value is not False:
            object.__setattr__(config, name, float(value))
