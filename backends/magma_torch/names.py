"""Names of an optimizer's parameters: they key the masks, and identify states."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from magma_core.arguments import short
from magma_torch.options import Group
from magma_torch.warn import warn


class Named(Optimizer):
    """An optimizer that names its parameters; those without names by group and position: ``"0.3"``."""

    _owners: dict[str, Tensor]  # the parameters by name, also those that have left their groups
    _paired: list[tuple[list[int], list[str] | None]]  # ids and names of each group, as last settled
    _told = False  # that parameters have no names

    def _names(self, i: int, group: Mapping[str, Any]) -> list[str]:
        return group.get("param_names") or [f"{i}.{j}" for j in range(len(group["params"]))]

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        groups = [zip(self._names(i, group), group["params"], strict=True) for i, group in enumerate(self.param_groups)]
        return itertools.chain.from_iterable(groups)

    def _remember_owners(self) -> None:
        """Take the groups as they are."""
        self._owners, self._paired = {}, []
        self._pair()

    def _pair(self) -> None:
        """Settle names and states where groups were edited in place since the last time.

        A tensor keeps its name and state. One in the place of a tensor that is gone takes over both. Others without a
        name get one. Names that were edited, too, are taken as they are.

        Raises:
            ValueError: naming the group or parameter; nothing has changed then.
        """
        found = [_listed(group) for group in self.param_groups]
        if found == self._paired:
            return
        present = {key for ids, _ in found for key in ids}
        names = self._completed_names(self._followed(present))
        lists = [zip(own, group["params"], strict=True) for own, group in zip(names, self.param_groups, strict=True)]
        named = list(itertools.chain.from_iterable(lists))
        check_distinct(named)
        check_names(name for name, _ in named)
        heirs = list(self._heirs(named, present))
        for group, own in zip(self.param_groups, names, strict=True):
            if group.get("param_names", own) != own:
                group["param_names"] = own
        for former, param in heirs:
            self.state[param] = self.state.pop(former)
        # places are names only as long as tensors stand there, given names may be asked for again
        gone = {name: p for name, p in self._owners.items() if id(p) not in present}
        self._owners = dict(named) if all(own is None for _, own in found) else {**gone, **dict(named)}
        self._paired = [_listed(group) for group in self.param_groups]

    def _followed(self, present: set[int]) -> list[list[str | None]]:
        """The names of each group, None for tensors without."""
        known = {id(param): name for name, param in self._owners.items()}
        former = {tuple(names) for _, names in self._paired if names is not None}
        found: list[list[str | None]] = []
        for i, group in enumerate(self.param_groups):
            params, given = group["params"], group.get("param_names")
            names = self._names(i, group) if given is None else given
            if given is not None and tuple(given) in former:  # so that only tensors were edited, if anything
                is_swap = len(names) == len(params)
                places = [name if is_swap and id(self._owners[name]) not in present else None for name in names]
                pairs = itertools.zip_longest(params, places[: len(params)])
                found.append([known.get(id(param), place) for param, place in pairs])
            elif len(names) == len(params):
                found.append([*names])
            else:
                raise ValueError(
                    f"group {i} has {len(params)} params and {len(names)} param_names: edit both alike, or params "
                    "alone, and names follow their tensors"
                )
        return found

    def _completed_names(self, found: Sequence[Sequence[str | None]]) -> list[list[str]]:
        """A name for every tensor: that of its place or, where this is taken, of the next place that is free."""
        taken = {*self._owners, *itertools.chain.from_iterable(found)}
        names: list[list[str]] = [[] for _ in found]
        for i, (group, own) in enumerate(zip(self.param_groups, found, strict=True)):
            for j, known in enumerate(own):
                name = known
                if name is None:
                    name = next(place for k in itertools.count(j) if (place := f"{i}.{k}") not in taken)
                    taken.add(name)
                    if group.get("masked", True):
                        warn(
                            f"group {i} has a parameter of shape {tuple(group['params'][j].shape)} without a name, "
                            f"and names key the masks: it is called {name!r} now. Append its name to 'param_names', "
                            "or use add_param_group({'params': [(name, parameter)]})"
                        )
                names[i].append(name)
        return names

    def _heirs(self, named: Iterable[tuple[str, Tensor]], present: set[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Tensors that are gone, and those that take over their states."""
        for name, param in named:
            former = self._owners.get(name, param)
            if id(former) in present or former not in self.state or param in self.state:
                continue
            if former.shape != param.shape:
                raise ValueError(
                    f"{name!r} was replaced by a tensor of shape {tuple(param.shape)}, its state is for "
                    f"{tuple(former.shape)}: make a new optimizer"
                )
            yield former, param

    @contextlib.contextmanager
    def _without_absent(self) -> Iterator[None]:
        """Only the states of tensors that are in groups: others have no key in a state_dict."""
        present = {id(param) for group in self.param_groups for param in group["params"]}
        absent = [key for key in self.state if isinstance(key, Tensor) and id(key) not in present]
        aside = {key: self.state.pop(key) for key in absent}
        try:
            yield
        finally:
            self.state.update(aside)

    def _admit(self, group: Group) -> tuple[Group, list[tuple[str, Any]]]:
        """A copy of a new group with its own list, and its parameters under their future names."""
        self._pair()
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
        check_distinct(named)
        return group, named

    def _remember_last(self) -> None:
        """Remember the group that was added, where all others are settled."""
        i, group = len(self.param_groups) - 1, self.param_groups[-1]
        self._owners.update(zip(self._names(i, group), group["params"], strict=True))
        self._paired = [*self._paired, _listed(group)]  # anew: the former list says what a step worked on

    def _tell_unnamed(self, i: int, group: Mapping[str, Any]) -> None:
        """Warn once if parameters of a masked group have no names; torch refuses to mix these with named ones."""
        named = any("param_names" in other for other in (group, *self.param_groups[:1]))
        named |= any(isinstance(p, tuple) for p in group["params"])
        if not (named or self._told) and group["masked"] and group["params"]:
            warn(
                f"parameters without names are called by group and position, from '{i}.0' on. Names key the masks, so "
                "these change when groups do, and equal those of other optimizers without names: pass "
                "model.named_parameters(), or (name, parameter) pairs in each group"
            )
            self._told = True


def _listed(group: Group) -> tuple[list[int], list[str] | None]:
    """Ids and names of a group's parameters; the names are copied, as they may be edited in place."""
    names = group.get("param_names")
    return list(map(id, group["params"])), None if names is None else list(names)


def check_names(names: Iterable[str]) -> None:
    """Raise TypeError if a name is not a string, ValueError if two are equal."""
    names = list(names)
    if alien := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"names of parameters must be strings, got {short(alien[0])}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two parameters are called {short(repeated[0])}: names key the masks, so give each its own")


def check_distinct(named: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError if a tensor is there twice."""
    names: dict[int, str] = {}
    for name, param in named:
        if isinstance(param, Tensor) and id(param) in names:
            raise ValueError(
                f"{names[id(param)]!r} and {name!r} are the same parameter, which would move twice in a step: pass it "
                "once, as model.named_parameters() does"
            )
        names[id(param)] = name
