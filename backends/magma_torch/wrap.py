"""`Wrapped`: keep masks and scores around any optimizer of torch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from magma_core import Alignment, Rule
from magma_core.signatures import shares_arguments
from magma_torch import checkpoint
from magma_torch.engine.engine import Engine, Slot, check_gradient
from magma_torch.engine.memory import Entry
from magma_torch.engine.sharding import Sharding, is_dtensor, local
from magma_torch.engine.watched import Watched, moment_of
from magma_torch.names import Named, check_names
from magma_torch.options import Group, MaskOptions, check_parameter, mask_entries, rule_entries
from magma_torch.wrapped_groups import KEYS, PREFIX, Asked, check_members, check_wrappable, ours, read_options


class _Target(NamedTuple):
    """A masked parameter that has a gradient."""

    group: int
    name: str
    param: Tensor
    grad: Tensor


@shares_arguments(mask_entries)
class Wrapped(Named):
    """Keep masks and scores around any optimizer of torch; made by ``wrap`` of `Magma` and its siblings.

    The wrapped optimizer makes its whole step: moments, arithmetic, weight decay and hooks are its own. Of what it did
    to a masked parameter, every kept block gets θ + (lr_scale·w)·(θ_base − θ), computed in float32 and rounded once
    to the parameter's format (where the factor is 1, the bits of θ_base), and every other block its old bits back. So
    its weight decay is masked and weighted with the update that it is part of. During the step the old values of the
    masked parameters are held: one copy of these, and memory for one parameter at a time. Gradients are not cloned.

    The alignment is that of the gradient with the optimizer's own first moment: a tensor of the parameter's shape in
    its state that is called "exp_avg", "momentum_buffer" or "momentum". Where it has none, an average of the gradient
    with decay rate 0.9 is kept for the purpose (spec 4.2). Given these, sums, cosines, scores and masks have the bits
    of `magma_core`. An optimizer that changes gradients in place is measured by what it makes of them, or, with
    ``cosine_momentum="before"``, by what it finds.

    ``param_groups``, ``state`` and ``defaults`` are those of the wrapped optimizer: what changes the one changes the
    other. Options stand in its groups beside its own, and may stand there before it is wrapped. ``state[param]`` of
    masked parameters also holds ``magma_step`` (int64) and, with rules that use scores, ``magma_score`` (float32, in
    block shape) and perhaps ``magma_mu`` (float32, in the parameter's shape).

    Args:
        optimizer: the optimizer, from now on to be stepped by this one alone.
        rule: how blocks are kept and weighted; its decay must be "masked".

    Raises:
        TypeError: if ``optimizer`` is no optimizer, or one whose step needs a closure (LBFGS), or an option or a masked
            parameter is not of a supported type.
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
    _engines: dict[str, Engine]  # by the momentum that is looked at

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
        for i, group in enumerate(self.param_groups):
            check_members({**own, **group}, zip(self._names(i, group), group["params"], strict=True))
        check_names(name for name, _ in self._named())
        optimizer.defaults.update(own)
        for group in self.param_groups:
            group.update({**own, **group})
        self.__setstate__(self.__getstate__())  # not Optimizer.__init__, which would make groups of its own

    @property
    def param_groups(self) -> list[Group]:
        """Those of the wrapped optimizer."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """That of the wrapped optimizer."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> Group:
        """Those of the wrapped optimizer."""
        return self.optimizer.defaults

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch._disable_dynamo  # what is to be compiled compiles itself
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Let the wrapped optimizer make its step, and mask and weight it; parameters without gradients stay.

        Args:
            closure: computes the loss and the gradients anew; called once, before any gradient is read, and not handed
                on to the wrapped optimizer.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        asked = [read_options(group) for group in self.param_groups]
        targets = self._targets(asked)
        for i, name, param, _ in targets:
            check_parameter(name, param, asked[i].own)
        olds = {target.name: local(target.param).detach().clone() for target in targets}
        entries = self._watch("before", asked, targets)
        self.optimizer.step()
        entries += self._watch("after", asked, targets)
        self._settle(olds, entries)
        return loss

    def alignment(self) -> dict[str, Alignment]:
        """What `MaskedOptimizer.alignment` gives."""
        return {name: seen for engine in self._engines.values() for name, seen in engine.alignment().items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer, with options of either.

        Raises:
            ValueError, TypeError: for what is wrong with it; the optimizer is as it was then.
        """
        if isinstance(param_group, dict):
            param_group, named = self._admit(param_group)
            check_members({**self.defaults, **param_group}, named)
        self.optimizer.add_param_group(param_group)
        self._remember_owners()

    def state_dict(self) -> dict[str, Any]:
        """That of the wrapped optimizer, with the entries of this one among its own."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self.optimizer.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned: masks and scores bit for bit, the rest as the wrapped optimizer does.

        Raises:
            ValueError, TypeError: if it is of another optimizer or of other parameters, or has something else wrong
                with it, or the wrapped optimizer cannot load it. The optimizer is as it was then.
        """
        checkpoint.check_kind("the state_dict", state_dict, dict)
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

    def _start(self) -> None:
        make = functools.partial(Watched, self.optimizer)
        self._engines = {"before": Engine(make), "after": Engine(make)}
        self._remember_owners()

    def _targets(self, asked: Sequence[Asked]) -> list[_Target]:
        """Masked parameters that have gradients, checked."""
        targets = []
        for i, group in enumerate(self.param_groups):
            for name, param in zip(self._names(i, group), group["params"], strict=True):
                if param.grad is not None:
                    self._follow(name, param)
                    if asked[i].own.masked:
                        check_gradient(name, param.grad)
                        if is_dtensor(param):
                            Sharding.of(param).blocks(asked[i].own.block_axes, name)
                        targets.append(_Target(i, name, param, param.grad))
        return targets

    @torch.no_grad()
    def _watch(self, momentum: str, asked: Sequence[Asked], targets: Sequence[_Target]) -> list[Entry]:
        """Decide on the blocks of those whose rule looks at this momentum."""
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
        """Finish the parameters; only now does the state say so: optimizers begin where it is empty."""
        for engine in self._engines.values():
            for batch in engine.all_batches:
                cast(Watched, batch).settle(olds)
        for _, param, values in entries:
            state = self.state[param]
            for key in ours(state):
                del state[PREFIX + key]
            average = moment_of(self.optimizer, param) is None  # "before" did not know yet at the first step
            state.update({PREFIX + key: value for key, value in values.items() if key != "mu" or average})

    def _parted(self, loaded: Mapping[str, Any]) -> tuple[dict[Tensor, dict[str, Any]], dict[str, Any]]:
        """What is loaded here, checked, by parameter; and the rest, which is for the wrapped optimizer."""
        checkpoint.check_layout(loaded, self.param_groups)
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
            asked = read_options({**saved, "masked": True})  # what was masked before may be again
            for (name, param), key in zip(named, saved["params"], strict=True):
                if values := ours(loaded["state"].get(key, {})):
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
        """Have the wrapped optimizer load what is its own: all of it, or nothing."""
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
