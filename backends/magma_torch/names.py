"""Names of an optimizer's parameters: they key the masks, and identify states."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from magma_core.arguments import short
from magma_torch.options import Group


class Named(Optimizer):
    """An optimizer that names its parameters; those without names by group and position: ``"0.3"``."""

    _owners: dict[str, Tensor]  # the parameters by name

    def _names(self, i: int, group: Mapping[str, Any]) -> list[str]:
        return group.get("param_names") or [f"{i}.{j}" for j in range(len(group["params"]))]

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        groups = [zip(self._names(i, group), group["params"], strict=True) for i, group in enumerate(self.param_groups)]
        return itertools.chain.from_iterable(groups)

    def _remember_owners(self) -> None:
        self._owners = dict(self._named())

    def _follow(self, name: str, param: Tensor) -> None:
        """Move the state to a tensor that replaces another."""
        former = self._owners.setdefault(name, param)
        if former is param:
            return
        there = any(former is p for _, p in self._named())
        if not there and former in self.state and param not in self.state:
            if former.shape != param.shape:
                raise ValueError(
                    f"{name!r} was replaced by a tensor of shape {tuple(param.shape)}, its state is for "
                    f"{tuple(former.shape)}: make a new optimizer"
                )
            self.state[param] = self.state.pop(former)
        self._owners[name] = param

    def _follow_all(self) -> None:
        for name, param in list(self._named()):
            self._follow(name, param)

    def _admit(self, group: Group) -> tuple[Group, list[tuple[str, Any]]]:
        """A copy of a new group with its own list, and its parameters under their future names."""
        params = group["params"]
        group = {**group, "params": [params] if isinstance(params, Tensor) else params}
        if not isinstance(params, set):
            group["params"] = list(group["params"])
        pairs = [p if isinstance(p, tuple) else (None, p) for p in group["params"]]
        named = [
            (f"{len(self.param_groups)}.{j}" if name is None else name, param) for j, (name, param) in enumerate(pairs)
        ]
        if pairs and pairs[0][0] is not None:
            check_names([name for name, _ in (*named, *self._named())])
        return group, named


def check_names(names: Iterable[str]) -> None:
    """Raise TypeError if a name is not a string, ValueError if two are equal."""
    names = list(names)
    if alien := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"names of parameters must be strings, got {short(alien[0])}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two parameters are called {short(repeated[0])}: names key the masks, so give each its own")
