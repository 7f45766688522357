"""The two methods of the paper (arXiv 2602.15322), `Magma` and `SkipUpdate`."""

from collections.abc import Iterable
from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from magma_core import Rule, magma, skip_update
from magma_core.arguments import check_choice
from magma_core.config import LEARNING_RATE, Decay, Momentum
from magma_core.signatures import shares_arguments
from magma_torch.mistakes import ARGUMENTS, WRAP_ARGUMENTS
from magma_torch.optimizer import MaskedOptimizer
from magma_torch.options import BaseOptions, MaskOptions
from magma_torch.wrap import Wrapped


@shares_arguments(MaskedOptimizer, Rule, hints=ARGUMENTS)
class Magma(MaskedOptimizer):
    """Magma (arXiv 2602.15322): a random half of the blocks moves, scaled by how well gradient and momentum agree.

    A kept block's step is scaled by its score, 0.38 to 0.62 at τ = 2. With p = 0.5, the mean step of a masked block is
    0.28 of the dense one. ``lr_scale`` compensates; it is a range to search, 1 to 3.6, not a start.

    Args:
        cosine_momentum: the score uses the momentum "after" or "before" this step's update.

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
        p: float = Rule.p,
        tau: float = Rule.tau,
        ema: float = Rule.ema,
        initial_score: float = Rule.initial_score,
        cosine_momentum: Momentum = Rule.momentum,
        decay: Decay = Rule.decay,
        **options: Unpack[BaseOptions],
    ) -> None:
        check_choice("cosine_momentum", cosine_momentum, ("after", "before"))
        rule = magma(p=p, tau=tau, ema=ema, initial_score=initial_score, momentum=cosine_momentum, decay=decay)
        super().__init__(params, lr, rule=rule, **options)

    @classmethod
    @shares_arguments(Wrapped, Rule, hints=WRAP_ARGUMENTS)
    def wrap(  # type: ignore[override]  # it makes the rule, as the constructor does
        cls,
        optimizer: Optimizer,
        *,
        p: float = Rule.p,
        tau: float = Rule.tau,
        ema: float = Rule.ema,
        initial_score: float = Rule.initial_score,
        cosine_momentum: Momentum = Rule.momentum,
        **options: Unpack[MaskOptions],
    ) -> Wrapped:
        """Magma over the steps of any torch optimizer.

        Args:
            cosine_momentum: the score uses the momentum "after" or "before" this step's update.

        Returns:
            An optimizer to use in place of ``optimizer``.

        Raises:
            ValueError, TypeError: see `Wrapped`; ``optimizer`` is unchanged then.

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
        check_choice("cosine_momentum", cosine_momentum, ("after", "before"))
        rule = magma(p=p, tau=tau, ema=ema, initial_score=initial_score, momentum=cosine_momentum)
        return Wrapped(optimizer, rule=rule, **options)


@shares_arguments(MaskedOptimizer, Rule, hints=ARGUMENTS)
class SkipUpdate(MaskedOptimizer):
    """SkipUpdate (arXiv 2602.15322): a random half of the blocks moves, twice as far.

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
        p: float = Rule.p,
        decay: Decay = Rule.decay,
        **options: Unpack[BaseOptions],
    ) -> None:
        super().__init__(params, lr, rule=skip_update(p=p, decay=decay), **options)

    @classmethod
    @shares_arguments(Wrapped, Rule, hints=WRAP_ARGUMENTS)
    def wrap(  # type: ignore[override]  # it makes the rule, as the constructor does
        cls,
        optimizer: Optimizer,
        *,
        p: float = Rule.p,
        **options: Unpack[MaskOptions],
    ) -> Wrapped:
        """SkipUpdate over the steps of any torch optimizer.

        Returns:
            An optimizer to use in place of ``optimizer``.

        Raises:
            ValueError, TypeError: see `Wrapped`; ``optimizer`` is unchanged then.

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
        return Wrapped(optimizer, rule=skip_update(p=p), **options)
