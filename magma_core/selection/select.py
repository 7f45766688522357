"""Decides which tensors of a model are matrices of attention or MLP, and how they are cut into blocks."""

from collections.abc import Sequence
from typing import NamedTuple

from magma_core.selection import vocabulary as words
from magma_core.selection.place import Path, Place, Tensor, Tree, place, with_queries


class Choice(NamedTuple):
    """The decision about one tensor."""

    axes: tuple[int, ...] | None  # the axes that index its blocks; None if it is not masked
    unclear: bool = False  # a matrix of a layer that has masked matrices, of an unknown kind


def select(tensors: Sequence[Tensor], /) -> list[Choice]:
    """Which tensors are attention or MLP matrices, and their blocks: one for a matrix, one for each matrix of a stack.

    Args:
        tensors: all parameters of a model, since each decision takes the others into account.

    Returns:
        A choice for each.

    Example:
        >>> shapes = {"attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,), "experts.up": (4, 8, 16), "norm.weight": (8,)}
        >>> choices = select([Tensor(("layers", "0", *name.split(".")), shape) for name, shape in shapes.items()])
        >>> [choice.axes for choice in choices]
        [(), None, (0,), None]
    """
    queries = with_queries(tensors)
    places = [place(tensor, queries) for tensor in tensors]
    layers = {each.layer_path for each in places if each.module is not None or each.layer_path in queries} - {None}
    tree = Tree(places)
    axes = [None if _is_known(each, tree) or not _belongs(each, layers) else _blocks(each, tree) for each in places]
    pairs = list(zip(places, axes, strict=True))
    masked = {each.around for each, own in pairs if own is not None and (each.layer is not None or not layers)}
    around = {layer[:n] for layer in masked for n in range(len(layer))}

    def unclear(each: Place) -> bool:
        if _is_known(each, tree) or not _may_be_matrix(each):
            return False
        if any(prefix in masked for prefix in each.prefixes):
            return True  # half of its layer is masked
        item = each.layer_path or ()  # of a list, where other items have masked matrices, but this one has none
        return item[:-1] in around and item not in around and "".join(item[-1:])[-1:].isdigit()

    return [Choice(own, own is None and unclear(each)) for each, own in pairs]


def _belongs(each: Place, layers: set[Path | None]) -> bool:
    """Whether it is in attention, in an MLP (of a layer, if there are any), or the layer's own."""
    if each.module is not None and (each.role == "attention" or each.layer is not None or not layers):
        return True
    if any(map(words.is_projection, each.path[-2:])) and (not layers or any(map(str.isdigit, each.layer_path or ()))):
        return True
    return any(prefix in layers and _is_own(each, len(prefix)) for prefix in each.prefixes)


def _is_own(each: Place, layer: int) -> bool:
    """Whether it is in no module of this layer but in a projection, or in the output as BERT has it."""
    inner = each.path[layer:]
    if len(inner) == 3 and words.is_output(inner[0], each.classes[layer + 1]):
        inner = inner[1:]
    return len(inner) == 1 or (len(inner) == 2 and words.is_weight(inner[1]))


def _is_known(each: Place, tree: Tree) -> bool:
    """Whether a word says that it is no matrix of attention or MLP: embedding, norm, bias, router …"""
    start = each.layer or 0
    return (
        words.is_none(each.path[-1])
        or words.has_vectors(each.classes[-1])
        or any(map(words.holds_none, each.path[start:-1], each.classes[start + 1 :]))
        or tree.routes(each)
    )


def _blocks(each: Place, tree: Tree) -> tuple[int, ...] | None:
    """The axes that index its blocks; None if it is, by its shape, neither a matrix nor a stack of them."""
    stacked = tree.stacked(each.around)
    axes = [axis for axis in range(len(each.shape)) if axis not in stacked]
    shape = [each.shape[axis] for axis in axes]
    if len(shape) > 2 and not any(map(words.is_experts, each.within)):
        if each.is_convolution:
            sides = (shape[:2], shape[2:]), (shape[-2:], shape[:-2])  # channels first, or last
            pointwise = any(min(matrix) > 1 and set(window) == {1} for matrix, window in sides)
            return stacked if pointwise else None
        if shape[0] == 1 and not words.is_weight(each.path[-1]):
            return None  # made to broadcast
        if each.role == "attention":  # (width, heads, width of a head)
            return stacked if sum(extent > 1 for extent in shape) > 1 else None
    if len(shape) < 2 or min(shape[-2:]) < 2:
        return None
    return (*stacked, *axes[:-2])


def _may_be_matrix(each: Place) -> bool:
    """Whether its shape is a matrix's. Convolutions count in attention and MLP, where they do a matrix's work."""
    return len(each.shape) > 1 and min(each.shape) > 1 and (each.module is not None or not each.is_convolution)
