"""The two methods of the paper (arXiv 2602.15322), `Magma` and `SkipUpdate`."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from magma_core import Base, Rule, magma, skip_update
from magma_core.config import LEARNING_RATE, SEED, Decay, Momentum
from magma_torch.optimizer import MaskedOptimizer
from magma_torch.wrap import Wrapped


class Magma(MaskedOptimizer):
    """Magma (arXiv 2602.15322): a random half of the blocks moves, each as far as gradient and momentum agree.

    A kept block's step is scaled by its score, 0.38 to 0.62 at τ = 2, so that with p = 0.5 the mean step is 0.28 of the
    base's: start from 3.2 to 3.6 times the base's learning rate.

    Args:
        params: see `MaskedOptimizer`.
        lr: see `MaskedOptimizer`.
        base: see `MaskedOptimizer`.
        p: the probability that a block is kept.
        tau: the temperature τ of the score.
        ema: a, the decay rate of the score.
        initial_score: s₀.
        cosine_momentum: the score sees the momentum "after" this step's update or "before" it.
        decay: weight decay "masked" with the update it is part of, or "dense": of every element at every step.
        betas: see `MaskedOptimizer`.
        eps: see `MaskedOptimizer`.
        weight_decay: see `MaskedOptimizer`.
        seed: see `MaskedOptimizer`.
        masked: see `MaskedOptimizer`.
        block_axes: see `MaskedOptimizer`.
        compile: see `MaskedOptimizer`.

    Raises:
        ValueError, TypeError, RuntimeError: see `MaskedOptimizer`.

    Example:
        >>> import torch
        >>> from magma_torch import Magma
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Magma(model.named_parameters(), lr=3e-3, compile=False)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 4)).square().sum().backward()
        ...     optimizer.step()
        >>> optimizer.alignment()["weight"].keep
        tensor(False)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = LEARNING_RATE,
        *,
        base: str | Base = "adamw",
        p: float = Rule.p,
        tau: float = Rule.tau,
        ema: float = Rule.ema,
        initial_score: float = Rule.initial_score,
        cosine_momentum: Momentum = Rule.momentum,
        decay: Decay = Rule.decay,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        seed: int = SEED,
        masked: bool = True,
        block_axes: Sequence[int] = (),
        compile: bool = True,
    ) -> None:
        rule = magma(p=p, tau=tau, ema=ema, initial_score=initial_score, momentum=cosine_momentum, decay=decay)
        super().__init__(
            params,
            lr,
            rule=rule,
            base=base,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            seed=seed,
            masked=masked,
            block_axes=block_axes,
            compile=compile,
        )

    @classmethod
    def wrap(  # type: ignore[override]  # it makes the rule, as the constructor does
        cls,
        optimizer: Optimizer,
        *,
        p: float = Rule.p,
        tau: float = Rule.tau,
        ema: float = Rule.ema,
        initial_score: float = Rule.initial_score,
        cosine_momentum: Momentum = Rule.momentum,
        seed: int = SEED,
        masked: bool = True,
        block_axes: Sequence[int] = (),
        compile: bool = True,
    ) -> Wrapped:
        """Magma over the step of any optimizer of torch.

        Args:
            optimizer: see `Wrapped`; start from about 3.4 times its learning rate.
            p: see `Magma`.
            tau: see `Magma`.
            ema: see `Magma`.
            initial_score: see `Magma`.
            cosine_momentum: see `Magma`.
            seed: see `Wrapped`.
            masked: see `Wrapped`.
            block_axes: see `Wrapped`.
            compile: see `Wrapped`.

        Returns:
            An optimizer to be used in place of ``optimizer``.

        Raises:
            ValueError, TypeError: see `Wrapped`; ``optimizer`` is as it was then.

        Example:
            >>> import torch
            >>> from magma_torch import Magma
            >>> weight = torch.nn.Parameter(torch.ones(4, 2))
            >>> optimizer = Magma.wrap(torch.optim.NAdam([("weight", weight)]), block_axes=(0,), compile=False)
            >>> weight.grad = torch.ones(4, 2)
            >>> optimizer.step()
            >>> optimizer.alignment()["weight"].score
            tensor([0.5122, 0.5122, 0.5122, 0.5122])
        """
        rule = magma(p=p, tau=tau, ema=ema, initial_score=initial_score, momentum=cosine_momentum)
        return Wrapped(optimizer, rule=rule, seed=seed, masked=masked, block_axes=block_axes, compile=compile)


class SkipUpdate(MaskedOptimizer):
    """SkipUpdate (arXiv 2602.15322): a random half of the blocks moves, twice as far.

    Args:
        params: see `MaskedOptimizer`.
        lr: see `MaskedOptimizer`.
        base: see `MaskedOptimizer`.
        p: the probability that a block is kept; what is kept is scaled by 1/p.
        decay: weight decay "masked" with the update it is part of, or "dense": of every element at every step.
        betas: see `MaskedOptimizer`.
        eps: see `MaskedOptimizer`.
        weight_decay: see `MaskedOptimizer`.
        seed: see `MaskedOptimizer`.
        masked: see `MaskedOptimizer`.
        block_axes: see `MaskedOptimizer`.
        compile: see `MaskedOptimizer`.

    Raises:
        ValueError, TypeError, RuntimeError: see `MaskedOptimizer`.

    Example:
        >>> import torch
        >>> from magma_torch import SkipUpdate
        >>> weight = torch.nn.Parameter(torch.ones(4, 2))
        >>> optimizer = SkipUpdate([("weight", weight)], lr=0.1, base="sgd", block_axes=(0,), compile=False)
        >>> weight.grad = torch.ones(4, 2)
        >>> optimizer.step()
        >>> weight[:, 0].detach()
        tensor([1.0000, 1.0000, 0.8000, 0.8000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = LEARNING_RATE,
        *,
        base: str | Base = "adamw",
        p: float = Rule.p,
        decay: Decay = Rule.decay,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        seed: int = SEED,
        masked: bool = True,
        block_axes: Sequence[int] = (),
        compile: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            rule=skip_update(p=p, decay=decay),
            base=base,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            seed=seed,
            masked=masked,
            block_axes=block_axes,
            compile=compile,
        )

    @classmethod
    def wrap(  # type: ignore[override]  # it makes the rule, as the constructor does
        cls,
        optimizer: Optimizer,
        *,
        p: float = Rule.p,
        seed: int = SEED,
        masked: bool = True,
        block_axes: Sequence[int] = (),
        compile: bool = True,
    ) -> Wrapped:
        """SkipUpdate over the step of any optimizer of torch.

        Args:
            optimizer: see `Wrapped`.
            p: see `SkipUpdate`.
            seed: see `Wrapped`.
            masked: see `Wrapped`.
            block_axes: see `Wrapped`.
            compile: see `Wrapped`.

        Returns:
            An optimizer to be used in place of ``optimizer``.

        Raises:
            ValueError, TypeError: see `Wrapped`; ``optimizer`` is as it was then.

        Example:
            >>> import torch
            >>> from magma_torch import SkipUpdate
            >>> weight = torch.nn.Parameter(torch.ones(4, 2))
            >>> optimizer = SkipUpdate.wrap(torch.optim.SGD([("weight", weight)], lr=0.1), block_axes=(0,))
            >>> weight.grad = torch.ones(4, 2)
            >>> optimizer.step()
            >>> weight[:, 0].detach()
            tensor([1.0000, 1.0000, 0.8000, 0.8000])
        """
        rule = skip_update(p=p)
        return Wrapped(optimizer, rule=rule, seed=seed, masked=masked, block_axes=block_axes, compile=compile)
