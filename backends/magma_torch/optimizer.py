"""`MaskedOptimizer`: any rule over any base as a torch optimizer."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from magma_core import Alignment, Base, Rule
from magma_core.config import LEARNING_RATE
from magma_core.signatures import shares_arguments
from magma_torch import checkpoint
from magma_torch.engine.engine import Engine
from magma_torch.engine.memory import Entry, Slot
from magma_torch.engine.overlap import check_memory
from magma_torch.mistakes import (
    ARGUMENTS,
    WRAP_ARGUMENTS,
    check_closure,
    check_params,
    checked_group,
    warn_of_unread,
)
from magma_torch.names import Named
from magma_torch.options import (
    ENTRIES,
    Group,
    MaskOptions,
    base_entries,
    check_parameter,
    mask_entries,
    own_entries,
    read,
    rule_entries,
)
from magma_torch.wrap import Wrapped


@shares_arguments(mask_entries, hints=ARGUMENTS)
class MaskedOptimizer(Named):
    """Any `magma_core.Rule` over any base: `damping()`, `score_survival()`, or your own.

    Args:
        params: tensors, (name, tensor) pairs such as ``model.named_parameters()``, or dicts as parameter groups, whose
            entries are arguments of this class; others are left alone, but misspelt ones raise. Names key the masks.
            Tensors without names are named by group and position, ``"0.3"``, so their masks change with these; a
            warning says so. No two may share memory.
        lr: learning rate ≥ 0, a number or a tensor with one float.
        rule: the rule that keeps and weights blocks.
        base: "sgd", "rmsprop", "adam", "adamw", "laprop", or a configuration such as ``magma_core.SGD(momentum=0.8)``.
        betas: decay rates of the moments, in [0, 1); None for the base's own, also for the next two.
        eps: ε ≥ 2⁻¹⁰⁰, added outside the square root.
        weight_decay: coefficient λ ≥ 0 of decoupled decay, see `magma_core.Rule.decay`.

    Raises:
        ValueError, TypeError: naming the argument or parameter, its value and the remedy; nothing changes then.
        RuntimeError: from `step` for sparse gradients.

    ``optimizer.state[param]`` holds ``step`` (int64), ``mu`` and ``nu`` (float32, in the parameter's shape),
    ``mu_power`` and ``nu_power`` (float32, βᵗ) and ``score`` (float32, in block shape), if base and rule use them
    (`magma_core.State`).

    Example:
        >>> import torch
        >>> from magma_core import damping
        >>> from magma_torch import MaskedOptimizer
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = MaskedOptimizer(model.named_parameters(), lr=0.01, rule=damping(), compile=False)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.alignment()["weight"].keep
        tensor(True)
    """

    _engine: Engine
    _loaded: Mapping[Any, Any] | None  # the state while it is loaded

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = LEARNING_RATE,
        *,
        rule: Rule,
        base: str | Base = "adamw",
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        **options: Unpack[MaskOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            **base_entries(base, betas=betas, eps=eps, weight_decay=weight_decay),
            **rule_entries(rule),
            **mask_entries(**options),
        }
        read(defaults)
        check_params(params)
        self._start()
        super().__init__(params, defaults)
        check_memory((name, param) for name, param in self._named() if param.requires_grad)

    @classmethod
    @shares_arguments(Wrapped, hints=WRAP_ARGUMENTS)
    def wrap(cls, optimizer: Optimizer, *, rule: Rule, **options: Unpack[MaskOptions]) -> Wrapped:
        """Mask and score the steps of any torch optimizer.

        Returns:
            An optimizer to use in place of ``optimizer``.

        Raises:
            ValueError, TypeError: see `Wrapped`; ``optimizer`` is unchanged then.

        Example:
            >>> import torch
            >>> from magma_core import score_survival
            >>> from magma_torch import MaskedOptimizer
            >>> weight = torch.nn.Parameter(torch.ones(4, 2))
            >>> adagrad = torch.optim.Adagrad([("weight", weight)], lr=0.1)
            >>> optimizer = MaskedOptimizer.wrap(adagrad, rule=score_survival(), block_axes=(0,), compile=False)
            >>> weight.grad = torch.ones(4, 2)
            >>> optimizer.step()
            >>> weight[:, 0].detach()
            tensor([1.0000, 1.0000, 0.9000, 0.9000])
        """
        return Wrapped(optimizer, rule=rule, **options)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch._disable_dynamo  # the step works on addresses, which Dynamo cannot follow
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; the others keep their values, state and step count.

        Args:
            closure: recomputes the loss and the gradients; called once, before any gradient is read.

        Returns:
            The result of the closure.

        Raises:
            TypeError: if ``closure`` is no function, such as a loss.
            ValueError, TypeError: for an entry of a group or a gradient that cannot be used; nothing changes then.

        Warns:
            UserWarning: of an entry of a group that is not read and looks like a misspelt one.
        """
        check_closure(closure)
        warn_of_unread(self.param_groups, ENTRIES)
        loss, only_state = None, not self.state and checkpoint.wants_only_state()
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        configured = [read(group) for group in self.param_groups]
        slots, grads = self._collect()
        if only_state:
            self._engine.prepare(configured, slots, grads)
        else:
            self._engine.step(configured, [group["lr"] for group in self.param_groups], slots, grads)
        return loss

    def alignment(self) -> dict[str, Alignment]:
        """Cosine, score and keep of every block at the last step, by the names of masked parameters.

        Nothing is copied to the host until a value is read.

        Returns:
            An `Alignment` for each name. Empty before the first step.
        """
        return self._engine.alignment()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see ``params`` of the class.

        Raises:
            ValueError, TypeError: for an invalid group, also for an entry that is not read and looks like a misspelt
                one; the optimizer is unchanged then.
        """
        if isinstance(param_group, dict):
            param_group = self._completed(param_group)
        super().add_param_group(param_group)
        self._remember_last()

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """The state and the groups, as those of any torch optimizer; tensors that have left their groups are omitted.

        Large tensors share memory with the optimizer, as torch's do; those of small parameters are copies.
        """
        self._pair()
        handle = self.register_state_dict_post_hook(_compacted, prepend=True)  # first, so other hooks see its results
        try:
            with self._without_absent():
                return super().state_dict()
        finally:
            handle.remove()

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`, copied bit for bit, whatever the parameters' format.

        Raises:
            ValueError, TypeError: naming the entry, if it belongs to another optimizer or other parameters, or is
                invalid otherwise. The optimizer is unchanged then.
        """
        checkpoint.check_kind("the state_dict", state_dict, dict)
        self._pair()
        handle = self.register_load_state_dict_pre_hook(_take_state)  # last, so it sees the other hooks' results
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loaded = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        if (loaded := self.__dict__.get("_loaded")) is not None:
            own = zip(state["param_groups"], self.param_groups, strict=True)
            # compilation depends on this machine, not on the saved state
            groups = [{**checkpoint.completed(new), "compile": group["compile"]} for new, group in own]
            state = {**state, "state": loaded, "param_groups": groups}
        self._start()
        super().__setstate__(state)
        self._remember_owners()

    def _start(self) -> None:
        self._engine = Engine(former=self.__dict__.get("_engine"))
        self._loaded = None
        self._owners, self._paired = {}, []
        self._slots: list[Slot] = []
        self._stepped: list[Tensor] = []  # their parameters, and the states of these
        self._states: list[dict[str, Any]] = []
        self._key: object = None  # what these were made for

    def _collect(self) -> tuple[list[Slot], list[Tensor]]:
        """The parameters that have gradients, and the gradients.

        Reuses the previous step's lists unless something changed: there may be thousands of parameters.
        """
        self._pair()
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        key = self._paired, [grad is None for grad in grads]
        if key != self._key or not all(map(operator.is_, map(self.state.get, self._stepped), self._states)):
            groups = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
            self._slots = [
                Slot(i, Entry(name, param, self.state[param]))
                for i, (name, param), grad in zip(groups, self._named(), grads, strict=True)
                if grad is not None
            ]
            self._stepped = [slot.entry.param for slot in self._slots]
            self._states = [slot.entry.state for slot in self._slots]
            self._key = key
        return self._slots, [grad for grad in grads if grad is not None]

    def _completed(self, group: Group) -> Group:
        """The group completed with its base's entries, validated together with its parameters."""
        group, named = self._admit(checked_group(group, len(self.param_groups), ENTRIES))
        group = own_entries(group, self.defaults)
        settings = read({**self.defaults, **group})
        for name, param in named:
            if isinstance(param, Tensor):
                check_parameter(name, param, settings)
        self._tell_unnamed(len(self.param_groups), {**self.defaults, **group})
        return group


def _compacted(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    return checkpoint.compacted(state_dict)


def _take_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Validate everything loaded; keep its state from the base class, which rounds it to the parameters' formats."""
    assert isinstance(optimizer, MaskedOptimizer)
    state_dict = checkpoint.name_groups(state_dict, optimizer.param_groups, optimizer._names)
    optimizer._loaded = checkpoint.restore(state_dict, optimizer.param_groups, optimizer._names)
    return {**state_dict, "param_groups": checkpoint.copied(state_dict["param_groups"]), "state": {}}
