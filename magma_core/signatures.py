"""Arguments shared by several functions: documented at one, shown by ``help`` at all, and checked where they arrive."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from magma_core.misspelt import remedy

_T = TypeVar("_T", bound=Callable[..., Any])

_ENTRY = re.compile(r"^    \**(\w+): .*(?:\n     .*)*", re.MULTILINE)
"""An argument under "Args:", with its continuation lines."""

_DOCSTRING = re.compile(
    r"(?P<head>.*?)(?:^Args:\n(?P<args>.*?))?(?P<tail>^(?:Returns|Raises|Example):\n.*)?", re.MULTILINE | re.DOTALL
)


def shares_arguments(*sources: Callable[..., Any], hints: Mapping[str, str] | None = None) -> Callable[[_T], _T]:
    """Decorate a function or class that shares arguments with ``sources``.

    In its signature, ``**options: Unpack[SomeTypedDict]`` expands to keyword arguments with the defaults of
    ``sources``. "Args:" in its docstring gets their descriptions. A call with any other keyword raises a TypeError,
    which names the target, not a function further inside, and the remedy.

    Args:
        sources: functions or classes; the first that has an argument documents it.
        hints: the remedies for keywords that it does not have but callers may expect, where the nearest name is none.

    Example:
        >>> from typing import TypedDict, Unpack
        >>> class Size(TypedDict, total=False):
        ...     width: int
        >>> def box(*, width: int = 3) -> int:
        ...     '''A box.
        ...
        ...     Args:
        ...         width: in metres.
        ...     '''
        ...     return width
        >>> @shares_arguments(box)
        ... def crate(**size: Unpack[Size]) -> int:
        ...     '''A crate.'''
        ...     return box(**size)
        >>> inspect.signature(crate)
        <Signature (*, width: int = 3) -> int>
        >>> print(inspect.getdoc(crate))
        A crate.
        <BLANKLINE>
        Args:
            width: in metres.
        >>> crate(widht=2)
        Traceback (most recent call last):
        ...
        TypeError: crate() got an unexpected keyword argument 'widht'. Did you mean 'width'?
    """
    shared: dict[str, inspect.Parameter] = {}
    described: dict[str, str] = {}
    for source in sources:
        shared |= {name: one for name, one in inspect.signature(source).parameters.items() if name not in shared}
        described |= {name: entry for name, entry in _entries(source).items() if name not in described}

    def complete(target: _T) -> _T:
        function = vars(target)["__init__"] if isinstance(target, type) else target
        signature = inspect.signature(function)
        parameters = [one for own in signature.parameters.values() for one in _expanded(own, shared)]
        checked = _checked(function, target.__qualname__, _keywords(signature, parameters), hints or {})
        vars(checked)["__signature__"] = signature.replace(parameters=parameters)
        if isinstance(target, type):
            setattr(target, function.__name__, checked)
        else:
            target = cast(_T, checked)
        if target.__doc__:  # python -OO removes it
            target.__doc__ = _documented(target, described)
        return target

    return complete


def _expanded(parameter: inspect.Parameter, shared: Mapping[str, inspect.Parameter]) -> list[inspect.Parameter]:
    """The expansion of ``**options``; if a source takes any keyword, the unmatched ones stay in ``**options``."""
    families = getattr(parameter.annotation, "__args__", ())
    if parameter.kind is not parameter.VAR_KEYWORD or not families:
        return [parameter]
    names = families[0].__annotations__
    rest = [other for other in shared.values() if other.kind is other.VAR_KEYWORD]
    if not rest and (missing := [name for name in names if name not in shared]):
        raise TypeError(f"no source has the argument {missing[0]!r} of {families[0].__name__}")
    own = [other for name, other in shared.items() if name in names]
    return [other.replace(kind=inspect.Parameter.KEYWORD_ONLY) for other in own] + rest


def _keywords(signature: inspect.Signature, parameters: Sequence[inspect.Parameter]) -> list[str] | None:
    """The keywords that a call may have; None if it may have any."""
    variadic = [one for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD]
    families: list[Any] = [getattr(one.annotation, "__args__", ()) for one in variadic]
    if not all(families):
        return None
    named = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    named += [name for family in families for name in family[0].__annotations__ if name not in named]
    return [name for name in named if name not in ("self", "cls")]


def _checked(function: _T, target: str, keywords: Sequence[str] | None, hints: Mapping[str, str]) -> _T:
    """The function, which refuses keywords that are none of these."""
    if keywords is None:
        return function

    @functools.wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in keywords:
                raise TypeError(
                    f"{target}() got an unexpected keyword argument {name!r}{remedy(name, keywords, hints)}"
                )
        return function(*args, **given)

    return cast(_T, checked)


def _sections(source: Callable[..., Any]) -> dict[str, str | None]:
    match = _DOCSTRING.fullmatch(inspect.getdoc(source) or "")
    assert match is not None  # every text matches
    return match.groupdict()


def _entries(source: Callable[..., Any]) -> dict[str, str]:
    """The entries under "Args:", by argument name."""
    return {entry[1]: entry[0] for entry in _ENTRY.finditer(_sections(source)["args"] or "")}


def _documented(target: Callable[..., Any], described: Mapping[str, str]) -> str:
    """The docstring with one entry per argument, in signature order."""
    described = {**described, **_entries(target)}
    head, _, tail = _sections(target).values()
    entries = [described[name] for name in inspect.signature(target).parameters if name in described]
    return "\n\n".join([(head or "").rstrip(), "\n".join(["Args:", *entries]), tail or ""]).rstrip()
