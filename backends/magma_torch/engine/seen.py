"""What a step saw of its tensors, to tell at the next one whether they still are as they were."""

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from magma_torch.engine.memory import Slot
from magma_torch.options import Options

TensorGuards: Any  # torch.compile checks with these whether a program fits its arguments
try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None


class Seen:
    """Parameters, gradients and states of one step, all plain tensors.

    Any of them may be replaced. Parameters and gradients may also become something else in place: of another type,
    format, shape or order, a negative view, in other memory. To look at each of these in Python takes longer than to
    step a small parameter.

    Args:
        configured: what each group asks for.
        slots: the parameters.
        grads: their gradients.
    """

    def __init__(self, configured: Sequence[Options], slots: Sequence[Slot], grads: Sequence[Tensor]) -> None:
        self._configured, self._slots = [options.memory for options in configured], slots
        self._params = [slot.entry.param for slot in slots]
        self._addresses = list(map(Tensor.data_ptr, self._params))
        self._states = [slot.entry.state for slot in slots]
        self._values = list(_values(self._states))
        tensors = [*self._params, *grads]
        shapes, strides = [list(x.shape) for x in tensors], [list(x.stride()) for x in tensors]
        self._guards = TensorGuards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides)

    @staticmethod
    def possible(slots: Sequence[Slot], grads: Sequence[Tensor]) -> bool:
        """Whether these can be looked at in this way."""
        types = {*map(type, grads), *(type(slot.entry.param) for slot in slots)}
        return TensorGuards is not None and types <= {Tensor, Parameter}

    def again(self, configured: Sequence[Options], slots: Sequence[Slot], grads: Sequence[Tensor]) -> bool:
        """Whether all is as it was; gradients may be other tensors of the same kind, in the same order."""
        return (
            slots is self._slots
            and [options.memory for options in configured] == self._configured
            and self._guards.check(*self._params, *grads)
            and list(map(Tensor.data_ptr, self._params)) == self._addresses
            and sum(map(len, self._states)) == len(self._values)
            and all(map(operator.is_, _values(self._states), self._values))
        )


def _values(states: Sequence[dict[str, Any]]) -> Iterator[Any]:
    return itertools.chain.from_iterable(map(operator.methodcaller("values"), states))
