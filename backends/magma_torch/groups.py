"""The paper's masked parameters, attention and MLP matrices, as parameter groups."""

from typing import Any

from torch import Tensor, nn

from magma_core.arguments import short
from magma_core.config import check_lr_scale
from magma_core.selection import Tensor as Entry
from magma_core.selection import chosen
from magma_torch.options import shape_of

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def attention_and_mlp(model: nn.Module, *, lr_scale: float | None = None, quiet: bool = False) -> list[dict[str, Any]]:
    """Parameter groups that mask only attention and MLP matrices, as in arXiv 2602.15322.

    It finds the modules of attention and MLP by class and name, and in the layers around them the matrices that are the
    layer's own. Embeddings, norms, biases, routers and heads are not masked. A matrix is a block, and so is each matrix
    of a stack of experts. The selection is printed, so check it.

    Args:
        model: the model. Parameters that do not require gradients are omitted.
        lr_scale: learning-rate factor for masked parameters only, ≥ 2⁻¹⁰⁰. None for the optimizer's own.
        quiet: print nothing; warnings come all the same.

    Returns:
        One to three groups with ``masked``, ``block_axes`` and, if given, ``lr_scale``, for `Magma`, `SkipUpdate` or
        `MaskedOptimizer`.

    Raises:
        ValueError: if no attention or MLP matrix is found, all parameters are frozen, one is lazy and has no shape yet,
            or ``lr_scale`` is out of range.
        TypeError: if ``model`` is not a module, or ``lr_scale`` not a number.

    Warns:
        UserWarning: if a layer with masked matrices has others that no rule knows, for instance those of Mamba.

    Example:
        >>> import torch
        >>> from magma_torch import Magma, attention_and_mlp
        >>> model = torch.nn.TransformerEncoderLayer(8, 2)
        >>> groups = attention_and_mlp(model, quiet=True)
        >>> [name for name, _ in groups[0]["params"]]
        ['self_attn.in_proj_weight', 'self_attn.out_proj.weight', 'linear1.weight', 'linear2.weight']
        >>> optimizer = Magma(groups, lr=3e-3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, not its parameters: give the model itself, got {short(model)}"
        )
    masked: dict[str, Any] = {"masked": True}
    if lr_scale is not None:
        check_lr_scale(lr_scale)
        masked["lr_scale"] = lr_scale
    classes = {name: type(module).__name__ for name, module in model.named_modules(remove_duplicate=False)}
    parameters: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for path, p in model.named_parameters():
        if p.requires_grad:
            entry = _entry(path, p, classes)
            name = ".".join(entry.path)  # without wrappers, for names key the masks
            name = path if name in parameters else name
            parameters[name], entries[name] = p, entry
    if not parameters:
        frozen = sum(1 for _ in model.parameters())
        raise ValueError(
            f"model has no parameter that requires a gradient, and {frozen} that are frozen: unfreeze some, got "
            f"a {type(model).__name__}"
        )
    axes = chosen(entries, quiet=quiet, stacklevel=2)
    groups: list[dict[str, Any]] = []
    for own in sorted({each for each in axes.values() if each is not None}):
        groups.append(
            {"params": [(name, parameters[name]) for name in axes if axes[name] == own], **masked, "block_axes": own}
        )
    if plain := [(name, parameters[name]) for name in axes if axes[name] is None]:
        groups.append({"params": plain, "masked": False, "block_axes": ()})
    return groups


def _entry(path: str, p: Tensor, classes: dict[str, str]) -> Entry:
    """The parameter without the modules that wrap others: DDP's, and those of compiling, sharding, checkpointing."""
    names = path.split(".")
    around = [classes[".".join(names[:n])] for n in range(len(names))]
    kept = [n for n, name in enumerate(names) if name not in _WRAPPERS]
    return Entry(tuple(names[n] for n in kept), shape_of(path, p), tuple(around[n] for n in kept))
