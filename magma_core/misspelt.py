"""Names of arguments that do not exist: what the caller may have meant."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

_SYNONYMS = (
    ("lr", "learning_rate"),
    ("eps", "epsilon"),
    ("betas", "beta1", "beta_1", "b1"),
    ("betas", "beta2", "beta_2", "b2"),
    ("p", "mask_prob", "survival_prob", "keep_prob"),
    ("tau", "temperature"),
    ("ema", "score_ema", "alignment_ema"),
)
"""Names of one argument in different frameworks, and in other packages with optimizers of this kind."""


def nearest(name: str, known: Iterable[str], /) -> str | None:
    """The one of the ``known`` names that ``name`` is a synonym of, or a misspelling.

    Example:
        >>> nearest("temperature", ["tau", "seed"]), nearest("sed", ["tau", "seed"]), nearest("name", ["tau", "seed"])
        ('tau', 'seed', None)
    """
    known = list(known)
    for synonyms in _SYNONYMS:
        if name.lower() in synonyms and (same := [other for other in known if other in synonyms]):
            return same[0]
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)), None)


def remedy(name: str, known: Sequence[str], hints: Mapping[str, str], /) -> str:
    """The end of a message about an unknown argument: a hint, or the nearest name, or all of them."""
    if name in hints:
        return f": {hints[name]}"
    near = nearest(name, known)
    return f". Did you mean {near!r}?" if near else f": its arguments are {', '.join(known)}"
