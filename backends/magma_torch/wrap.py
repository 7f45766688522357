"""`Wrapped`: keep masks and scores around any torch optimizer."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from magma_core import Alignment, Rule
from magma_core.signatures import shares_arguments
from magma_torch import checkpoint
from magma_torch.engine.engine import Engine, check_gradient
from magma_torch.engine.memory import Entry, Slot
from magma_torch.engine.overlap import address, check_memory
from magma_torch.engine.sharding import Sharding, is_dtensor, local
from magma_torch.engine.watched import Watched, moment_of
from magma_torch.mistakes import WRAP_ARGUMENTS, check_closure, checked_group, warn_of_unread
from magma_torch.names import Named
from magma_torch.options import Group, MaskOptions, check_parameter, mask_entries, rule_entries
from magma_torch.wrapped_groups import KEYS, PREFIX, Asked, check_members, check_wrappable, ours, read_options


class _Target(NamedTuple):
    """A masked parameter that has a gradient."""

    group: int
    name: str
    param: Tensor
    grad: Tensor


@shares_arguments(mask_entries, hints=WRAP_ARGUMENTS)
class Wrapped(Named):
    """Keep masks and scores around any torch optimizer; made by ``wrap`` of `Magma` and its siblings.

    The wrapped optimizer computes the whole step, with its own moments, arithmetic, weight decay and hooks. Then each
    kept block of a masked parameter becomes θ + (lr_scale·w)·(θ_base − θ), computed in float32 and rounded once to the
    parameter's format (if the factor is 1, the bits of θ_base). Every other block gets its old bits back. Weight decay
    is therefore masked and weighted with its update. The step holds the masked parameters' old values, one copy, and
    memory for one parameter at a time. Gradients are not cloned.

    The cosine compares the gradient with the optimizer's first moment: a state tensor of the parameter's shape named
    "exp_avg", "momentum_buffer" or "momentum". Without one, the wrapper keeps a gradient average with decay rate 0.9
    (spec 4.2). Given these, sums, cosines, scores and masks have the bits of `magma_core`. If an optimizer changes
    gradients in place, the cosine uses the changed ones, or, with ``cosine_momentum="before"``, the original ones.

    ``param_groups``, ``state`` and ``defaults`` are shared with the wrapped optimizer. Its groups hold the options
    beside its own, and may hold them before it is wrapped. ``state[param]`` of masked parameters also holds
    ``magma_step`` (int64). With rules that use scores, it holds ``magma_score`` (float32, in block shape) and perhaps
    ``magma_mu`` (float32, in the parameter's shape).

    Args:
        optimizer: the optimizer; from now on, step only the wrapper.
        rule: the rule that keeps and weights blocks; its decay must be "masked".

    Raises:
        TypeError: if ``optimizer`` is not an optimizer, or its step needs a closure (LBFGS), or an option or a masked
            parameter has an unsupported type.
        ValueError: naming the argument or parameter, its value and the remedy.
        RuntimeError: from `step` for sparse gradients of masked parameters.

    Example:
        >>> import torch
        >>> from magma_torch import Magma
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Magma.wrap(torch.optim.NAdam(model.named_parameters(), lr=0.01), compile=False)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()
        >>> list(optimizer.state_dict()["state"][0])
        ['step', 'mu_product', 'exp_avg', 'exp_avg_sq', 'magma_step', 'magma_score']
    """

    optimizer: Optimizer
    _engines: dict[str, Engine]  # by the momentum that the cosine uses

    def __init__(self, optimizer: Optimizer, *, rule: Rule, **options: Unpack[MaskOptions]) -> None:
        check_wrappable(optimizer)
        entries = rule_entries(rule)
        if rule.decay != "masked":
            raise ValueError(
                f'decay must be "masked", got {rule.decay!r}: the weight decay of {type(optimizer).__name__} is part '
                "of its update"
            )
        entries |= mask_entries(**options)
        own = {key: entries[key] for key in KEYS}
        if clash := [key for key in own if key in optimizer.defaults]:
            raise ValueError(
                f"{type(optimizer).__name__} has an option {clash[0]!r} already: it is wrapped, or has a use of its "
                "own for the name"
            )
        self.optimizer = optimizer
        self._remember_owners()
        for i, group in enumerate(self.param_groups):
            checked_group(group, i, self._entries())
            check_members({**own, **group}, zip(self._names(i, group), group["params"], strict=True))
        check_memory((name, param) for name, param in self._named() if param.requires_grad)
        for i, group in enumerate(self.param_groups):
            self._tell_unnamed(i, {**own, **group})
        optimizer.defaults.update(own)
        for group in self.param_groups:
            group.update({**own, **group})
        self.__setstate__(self.__getstate__())  # not Optimizer.__init__, which would create its own groups

    @property
    def param_groups(self) -> list[Group]:
        """The wrapped optimizer's groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> Group:
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch._disable_dynamo  # the step works on addresses, which Dynamo cannot follow
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Let the wrapped optimizer step, then mask and weight; parameters without gradients stay.

        Args:
            closure: recomputes the loss and the gradients; called once, before any gradient is read, and not passed to
                the wrapped optimizer.

        Returns:
            The result of the closure.

        Raises, warns:
            See `MaskedOptimizer.step`.
        """
        check_closure(closure)
        warn_of_unread(self.param_groups, self._entries())
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        asked = [read_options(group) for group in self.param_groups]
        targets = self._targets(asked)
        for i, name, param, _ in targets:
            check_parameter(name, param, asked[i].own)
        self._check_memory(targets)
        olds = {target.name: local(target.param).detach().clone() for target in targets}
        entries = self._watch("before", asked, targets)
        self.optimizer.step()
        entries += self._watch("after", asked, targets)
        self._settle(olds, entries)
        return loss

    def alignment(self) -> dict[str, Alignment]:
        """Same as `MaskedOptimizer.alignment`."""
        return {name: seen for engine in self._engines.values() for name, seen in engine.alignment().items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer, with options of either.

        Raises:
            ValueError, TypeError: for an invalid group; the optimizer is unchanged then.
        """
        if isinstance(param_group, dict):
            param_group = checked_group(param_group, len(self.param_groups), self._entries())
            param_group, named = self._admit(param_group)
            check_members({**self.defaults, **param_group}, named)
            self._tell_unnamed(len(self.param_groups), {**self.defaults, **param_group})
        self.optimizer.add_param_group(param_group)
        self._remember_last()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state_dict, including this wrapper's entries."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._pair()
        with self._without_absent():
            state_dict = checkpoint.compacted(self.optimizer.state_dict(), PREFIX)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`: masks and scores bit for bit, the rest as the wrapped optimizer does.

        Raises:
            ValueError, TypeError: if it belongs to another optimizer or other parameters, or is invalid otherwise, or
                the wrapped optimizer cannot load it. The optimizer is unchanged then.
        """
        checkpoint.check_kind("the state_dict", state_dict, dict)
        self._pair()
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        own, others = self._parted(state_dict)
        self._load_others(others)
        self._start()
        for param, entries in own.items():
            self.state[param].update(entries)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()

    def __repr__(self) -> str:
        return f"Wrapped {self.optimizer!r}"

    def _entries(self) -> frozenset[str]:
        """The entries of a group that are read."""
        return frozenset(("params", "param_names", *KEYS, *self.defaults))

    def _start(self) -> None:
        make = functools.partial(Watched, self.optimizer)
        self._engines = {"before": Engine(make), "after": Engine(make)}
        self._addresses: list[int] = []  # of what was stepped last
        self._remember_owners()

    def _targets(self, asked: Sequence[Asked]) -> list[_Target]:
        """Masked parameters that have gradients, validated."""
        self._pair()
        targets = []
        for i, group in enumerate(self.param_groups):
            for name, param in zip(self._names(i, group), group["params"], strict=True):
                if param.grad is not None and asked[i].own.masked:
                    check_gradient(name, param.grad)
                    if is_dtensor(param):
                        Sharding.of(param).blocks(asked[i].own.block_axes, name)
                    targets.append(_Target(i, name, param, param.grad))
        return targets

    def _check_memory(self, targets: Sequence[_Target]) -> None:
        """Raise if parameters share memory; looked at only where some have moved in memory."""
        addresses = [address(target.param) for target in targets]
        if addresses != self._addresses:
            check_memory((target.name, target.param) for target in targets)
            self._addresses = addresses

    @torch.no_grad()
    def _watch(self, momentum: str, asked: Sequence[Asked], targets: Sequence[_Target]) -> list[Entry]:
        """Decide the blocks of parameters whose rule uses this momentum."""
        slots, grads = [], []
        for i, name, param, grad in targets:
            if asked[i].own.rule.momentum == momentum:
                known = not asked[i].own.rule.uses_score or moment_of(self.optimizer, param) is not None
                slots.append(Slot(2 * i + known, Entry(name, param, ours(self.state.get(param, {})))))
                grads.append(grad)
        self._engines[momentum].step([x for both in asked for x in both], [1.0] * (2 * len(asked)), slots, grads)
        return [slot.entry for slot in slots]

    @torch.no_grad()
    def _settle(self, olds: Mapping[str, Tensor], entries: Sequence[Entry]) -> None:
        """Finish the parameters. State is written only now: optimizers initialize where it is empty."""
        for engine in self._engines.values():
            for batch in engine.all_batches:
                cast(Watched, batch).settle(olds)
        for _, param, values in entries:
            state = self.state[param]
            for key in ours(state):
                del state[PREFIX + key]
            average = moment_of(self.optimizer, param) is None  # with "before", unknown until the first step ends
            state.update({PREFIX + key: value for key, value in values.items() if key != "mu" or average})

    def _parted(self, loaded: Mapping[str, Any]) -> tuple[dict[Tensor, dict[str, Any]], dict[str, Any]]:
        """The wrapper's loaded state, validated, by parameter; and the rest, for the wrapped optimizer."""
        loaded = checkpoint.name_groups(loaded, self.param_groups, self._names)
        checkpoint.check_loaded_names(loaded["param_groups"], self.param_groups)
        own = {}
        groups = [checkpoint.completed(saved) for saved in loaded["param_groups"]]
        for i, (group, saved) in enumerate(zip(self.param_groups, groups, strict=True)):
            if "base" in saved:
                raise ValueError(f"group {i} of the loaded state was saved by an optimizer that was not wrapped")
            if lacking := [key for key in KEYS if key not in saved]:
                raise ValueError(
                    f"group {i} of the loaded state has no entry {lacking[0]!r}: it was saved by another optimizer; "
                    f"load what {type(self.optimizer).__name__} saved alone before you wrap it"
                )
            named = list(zip(self._names(i, {**group, **saved}), group["params"], strict=True))
            checkpoint.read_group(i, saved, functools.partial(check_members, named=named))
            checkpoint.check_same(i, saved, group, ("survival", "weight"))
            asked = read_options({**saved, "masked": True})  # parameters masked before may be masked again
            for (name, param), key in zip(named, saved["params"], strict=True):
                values = loaded["state"].get(key, {})
                checkpoint.check_whole(name, values, self.state.get(param, {}))
                if values := ours(values):
                    settings = asked.own if "mu" in values else asked.known
                    state = checkpoint.validated_state(name, param, settings, values)
                    own[param] = {PREFIX + field: value for field, value in state.items()}
        rest = {
            key: {field: value for field, value in entries.items() if not str(field).startswith(PREFIX)}
            if isinstance(entries, dict)
            else entries
            for key, entries in loaded["state"].items()
        }
        return own, {**loaded, "param_groups": groups, "state": rest}

    def _load_others(self, others: dict[str, Any]) -> None:
        """Let the wrapped optimizer load its part: all of it, or nothing."""
        before, groups = dict(self.optimizer.__dict__), self.param_groups
        try:
            self.optimizer.load_state_dict(others)
            for i, (former, group) in enumerate(zip(groups, self.param_groups, strict=True)):
                if lacking := sorted((former.keys() & self.defaults.keys()) - group.keys()):
                    raise ValueError(f"group {i} of the loaded state has no entry {lacking[0]!r}")
        except Exception as error:
            self.optimizer.__dict__.clear()
            self.optimizer.__dict__.update(before)
            raise ValueError(
                f"{type(self.optimizer).__name__} cannot load its part of the state ({type(error).__name__}: {error}): "
                "load what state_dict() of the same optimizer, wrapped, has returned"
            ) from error
