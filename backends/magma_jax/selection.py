"""The paper's masked parameters, attention and MLP matrices, as ``block_axes``."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from magma_core import Axes
from magma_core.arguments import short
from magma_core.selection import Tensor, chosen
from magma_jax.names import Name, is_none, leaf_names


def attention_and_mlp(
    params: Any, *, name: Name | None = None, quiet: bool = False
) -> Callable[[str, Any], Axes | None]:
    """``block_axes`` that mask only attention and MLP matrices, as in arXiv 2602.15322.

    It finds the modules of attention and MLP by name, and in the layers around them the matrices that are the layer's
    own. Embeddings, norms, biases, routers and heads are not masked. A matrix is a block, and so is each matrix of a
    stack of experts, and of a stack of layers as `jax.lax.scan` takes it, which shows in the shapes of its norms. The
    selection is printed, so check it.

    Args:
        params: the tree of parameters: arrays, or their shapes from `jax.eval_shape`. Leaves that are not floats are
            omitted.
        name: the optimizer's ``name``, if it has one.
        quiet: print nothing; warnings come all the same.

    Returns:
        A function for ``block_axes``, of a leaf's name and the leaf: ``()`` for a matrix, ``(0,)`` for a stack, None
        for leaves that are not masked. It raises ValueError for a name that is not in ``params``.

    Raises:
        ValueError: if no attention or MLP matrix is found.
        TypeError: if ``params`` has no arrays of floats.

    Warns:
        UserWarning: if a layer with masked matrices has others that no rule knows, for instance those of Mamba.

    Example:
        >>> import jax.numpy as jnp
        >>> from magma_jax import attention_and_mlp, magma
        >>> layer = {"attention": {"qkv": jnp.ones((8, 24))}, "mlp": {"up": jnp.ones((8, 32))}, "norm": jnp.ones(8)}
        >>> params = {"embedding": jnp.ones((256, 8)), "layers": [layer]}
        >>> optimizer = magma(3e-3, block_axes=attention_and_mlp(params))
        matrices, one block each: 2 tensors, 448 elements
          layers.*.attention.qkv
          layers.*.mlp.up
        not masked: 2 tensors, 2,056 elements
          embedding
          layers.*.norm
    """
    leaves = jax.tree.leaves(params, is_leaf=is_none)
    paths, names = leaf_names(params, None), leaf_names(params, name)
    floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    if not floats:
        raise TypeError(f"params must be a tree of arrays of floats, as a model's init returns it, got {short(params)}")
    tensors = {paths[i]: Tensor(tuple(re.split(r"[./]", paths[i])), tuple(leaves[i].shape)) for i in floats}
    selected = chosen(tensors, quiet=quiet, stacklevel=2)
    axes = {names[i]: selected[paths[i]] for i in floats}

    def block_axes(name: str, leaf: Any) -> Axes | None:
        del leaf
        if name not in axes:
            raise ValueError(
                f"attention_and_mlp was given other parameters, such as {short(next(iter(axes)))}, without "
                f"{short(name)}: call it for these, with the name= of the optimizer"
            )
        return axes[name]

    return block_axes


def _is_float(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and hasattr(leaf, "shape") and jax.numpy.issubdtype(dtype, np.floating)
