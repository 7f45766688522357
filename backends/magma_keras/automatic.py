"""Names of variables without the numbers that Keras counts throughout a process."""

import re
from collections import Counter
from collections.abc import Sequence, Set

import keras

_NUMBER = re.compile(r"_[1-9][0-9]*$")
_VARIABLE = frozenset({"variable"})


def stable_names(paths: Sequence[str], /) -> list[str]:
    """The names that key the masks of variables at these paths, unless the user chooses others.

    A name is automatic if Keras would give it: a layer class's name in snake case, perhaps with a number. Those of
    layers and variables are numbered anew among their siblings, in order of appearance. Those of models go, because
    Keras loses them when it loads a model; they stay if two variables would have one name. All other names stay.

    Args:
        paths: the paths of all variables of an optimizer.

    Example:
        >>> stable_names(["sequential_3/dense_7/kernel", "sequential_3/dense_8/kernel", "sequential_3/head/kernel"])
        ['dense/kernel', 'dense_1/kernel', 'head/kernel']
    """
    layers, models = _snake_names(keras.Layer), _snake_names(keras.Model)
    short = _numbered_anew(paths, layers, models)
    return short if len(set(short)) == len(set(paths)) else _numbered_anew(paths, layers, frozenset())


def without_numbers(paths: Sequence[str], /) -> list[str]:
    """The paths with automatic names reduced to those of their classes."""
    layers = _snake_names(keras.Layer)
    split = [path.split("/") for path in paths]
    return ["/".join([*(_stem(name, layers) or name for name in above), last]) for *above, last in split]


def _numbered_anew(paths: Sequence[str], layers: Set[str], dropped: Set[str]) -> list[str]:
    split = [tuple(path.split("/")) for path in paths]
    # Keras counts from 1: a 0 is the user's own
    layers = layers - {name.removesuffix("_0") for parts in split for name in parts if name.endswith("_0")}
    names: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
    siblings = Counter[tuple[str, ...]]()
    for parts in split:
        for end in range(1, len(parts) + 1):
            if parts[:end] in names:
                continue
            *_, last = parts[:end]
            above = names[parts[: end - 1]]
            stem = _stem(last, layers if end < len(parts) else _VARIABLE)
            if stem is None:
                names[parts[:end]] = (*above, last)
            elif stem in dropped:
                names[parts[:end]] = above
            else:
                number = siblings[*above, stem]
                siblings[*above, stem] += 1
                names[parts[:end]] = (*above, f"{stem}_{number}" if number else stem)
    return ["/".join(names[parts]) for parts in split]


def _stem(name: str, automatic: Set[str]) -> str | None:
    """An automatic name without its number; None for any other."""
    return next((stem for stem in (name, _NUMBER.sub("", name)) if stem in automatic), None)


def _snake_names(kind: type[keras.Layer]) -> Set[str]:
    """The automatic names of all classes derived from ``kind``; `keras.Model` itself, of abstract use, has none."""
    names: set[str] = set()
    for each in kind.__subclasses__():
        own = set() if each is keras.Model else {_snake(each.__name__)}
        names |= own | {f"{way}_{name}" for name in own for way in ("forward", "backward")}  # `Bidirectional`
        names |= _snake_names(each)
    return frozenset(names)


def _snake(name: str) -> str:
    """As Keras makes a layer's name of its class's."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
