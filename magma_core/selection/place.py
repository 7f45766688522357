"""Where in a model a tensor is: in which layer, and in which attention or MLP of it."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from magma_core.selection import vocabulary as words

Path: TypeAlias = tuple[str, ...]


class Tensor(NamedTuple):
    """A parameter as `select` sees it."""

    path: Path  # names of the modules around it, outermost first, and its own
    shape: tuple[int, ...]
    classes: Path = ()  # classes of the model and of these modules, as many as ``path``; () if unknown


class Place(NamedTuple):
    """A tensor, and where in the model it is. Modules are given by the lengths of their paths; the model's is 0."""

    path: Path
    shape: tuple[int, ...]
    classes: Path  # as many as ``path``, "" where unknown
    layer: int | None  # the nearest layer around its module, or around itself if it is in none
    module: int | None  # the outermost attention or MLP in this layer
    role: words.Role | None  # of this module

    @property
    def prefixes(self) -> list[Path]:
        """The paths of the modules around it, outermost first."""
        return [self.path[:n] for n in range(len(self.path))]

    @property
    def layer_path(self) -> Path | None:
        """The path of its layer."""
        return None if self.layer is None else self.path[: self.layer]

    @property
    def around(self) -> Path:
        """The path of its layer, or of what its module is in."""
        return self.path[: max((self.module or 1) - 1, 0) if self.layer is None else self.layer]

    @property
    def within(self) -> Path:
        """The names and classes from its module on."""
        start = self.module or 0
        return (*self.path[max(start - 1, 0) :], *self.classes[start:])

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution's kernel."""
        return len(self.shape) > 2 and any(map(words.is_convolution, self.within))


def with_queries(tensors: Iterable[Tensor], /) -> set[Path]:
    """The modules that have a projection to queries themselves: they are attention, or layers that do without one."""
    return {path[:n] for path, _, _ in tensors for n, name in enumerate(path) if words.makes_queries(name)}


def place(tensor: Tensor, queries: set[Path], /) -> Place:
    """Find the layer and the module that a tensor belongs to; ``queries`` from `with_queries`."""
    path, shape, classes = tensor
    classes = classes or ("",) * len(path)
    added = next((n for n, name in enumerate(path) if words.is_added(name)), len(path))
    if added < len(path):
        path, classes = (*path[:added], "weight"), classes[: added + 1]
    modules = list(zip(("", *path[:-1]), classes, strict=True))
    layers = [n for n, module in enumerate(modules) if words.is_layer(*module)]
    roles = [words.role(*module) for module in modules]
    for n in range(1, len(modules)):
        if n not in layers and path[:n] in queries:
            roles[n] = roles[n] or "attention"
    layer = max((n for n in layers if any(roles[n + 1 :])), default=None)  # of nested layers, the last with a module
    module = next((n for n in range(0 if layer is None else layer + 1, len(roles)) if roles[n]), None)
    if module is None:
        return Place(path, shape, classes, max(layers, default=None), None, None)
    return Place(path, shape, classes, layer, module, roles[module])


class Tree:
    """What the tensors of a model say about its modules."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._shapes: dict[Path, list[tuple[int, ...]]] = defaultdict(list)
        self._norms: dict[Path, int] = {}  # the smallest rank of the scales of its norms
        self._stacks: dict[Path, list[tuple[int, ...]]] = defaultdict(list)  # shapes of its own stacks
        self._with_experts: set[Path] = set()
        for each in places:
            path, shape = each.path, each.shape
            is_scale = words.is_norm(path[-1]) or (words.is_weight(path[-1]) and any(map(words.is_norm, path[-2:-1])))
            for prefix in each.prefixes:
                self._shapes[prefix].append(shape)
                if is_scale:
                    self._norms[prefix] = min(len(shape), self._norms.get(prefix, len(shape)))
                if words.is_experts(path[len(prefix)]):
                    self._with_experts.add(prefix)
            if len(shape) > 2:
                self._stacks[path[:-1]].append(shape)

    def stacked(self, module: Path) -> tuple[int, ...]:
        """The axes that index the layers of a stack.

        The scale of a norm is a vector. If it has more axes, so have all tensors of its layer, with the same extents.
        """
        around = next((module[:n] for n in range(len(module), -1, -1) if module[:n] in self._norms), None)
        more = 0 if around is None else self._norms[around] - 1
        if around is None or more < 1:
            return ()
        axes = [
            axis for axis in range(more + 1) if len({shape[axis : axis + 1] for shape in self._shapes[around]}) == 1
        ]
        return tuple(axes[:more])

    def routes(self, each: Place) -> bool:
        """Whether a tensor is a gate beside experts: a module called so, or a stack of as many as the gate chooses."""
        for n in range(each.layer or 0, len(each.path)):
            if words.is_gate(each.path[n]):
                module, rank = each.path[:n], len(each.shape) + 1
                stacks = [shape for shape in self._stacks.get(module, ()) if len(shape) == rank]
                if module in self._with_experts or any(shape[-3] in each.shape for shape in stacks):
                    return each.role != "attention"
        return False
