"""Parameters that share memory: a step would move the same elements twice."""

from collections.abc import Iterable
from operator import attrgetter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from magma_torch.engine.sharding import local
from magma_torch.options import has_values


class _Span(NamedTuple):
    """The addresses between the first and the last byte of a parameter on this rank."""

    start: int
    end: int
    name: str
    tensor: Tensor

    def meets(self, other: "_Span") -> bool:
        """Whether the two have an element in common; spans alone do not tell, as views may be interleaved."""
        return np.shares_memory(_elements(self.tensor), _elements(other.tensor))


def check_memory(named: Iterable[tuple[str, Tensor]], /) -> None:
    """Raise ValueError if two parameters have elements in common, or one has the same element twice."""
    near: list[_Span] = []  # those that may reach into what follows
    for span in sorted(_spans(named), key=attrgetter("start")):
        near = [other for other in near if other.end > span.start]
        for other in near:
            if other.tensor.device == span.tensor.device and other.meets(span):
                raise ValueError(
                    f"{other.name!r} and {span.name!r} share memory, which would move twice in a step: to tie them use "
                    "one Parameter in both places, else give each memory of its own with clone()"
                )
        near.append(span)


def address(param: Tensor, /) -> int:
    """Where the elements of a parameter begin in this rank's memory, 0 if there are none."""
    tensor = local(param)
    if isinstance(tensor, FakeTensor) or not has_values(tensor) or not tensor.numel():
        return 0
    return tensor.data_ptr()


def _spans(named: Iterable[tuple[str, Tensor]]) -> Iterable[_Span]:
    for name, param in named:
        if is_lazy(param) or not (start := address(param)):
            continue
        tensor = local(param)
        if not tensor.is_contiguous():
            _check_itself(name, tensor)
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        yield _Span(start, start + (last + 1) * tensor.itemsize, name, tensor)


def _check_itself(name: str, tensor: Tensor) -> None:
    """Raise ValueError where an axis, by rising stride, steps back into those before it."""
    reached = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reached:
            raise ValueError(
                f"elements of {name!r} share memory, as after expand(): give each memory of its own with clone()"
            )
        reached += (size - 1) * stride


def _elements(tensor: Tensor) -> np.ndarray:
    """The addresses of the elements as an array of NumPy, on any device: what lies there is not read."""
    interface = {
        "version": 3,
        "typestr": f"|V{tensor.itemsize}",
        "data": (tensor.data_ptr(), False),
        "shape": tuple(tensor.shape),
        "strides": tuple(tensor.itemsize * stride for stride in tensor.stride()),
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))
