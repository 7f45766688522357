"""The paper's choice of masked parameters, attention and MLP matrices, for the adapters: they list their parameters."""

from magma_core.selection.place import Tensor
from magma_core.selection.report import chosen
from magma_core.selection.select import Choice, select

__all__ = ["Choice", "Tensor", "chosen", "select"]
