"""A keyword that a function does not have: the message names the function that was called, and the remedy."""

from typing import Any, TypedDict, Unpack

import pytest

from magma_core.misspelt import nearest
from magma_core.signatures import shares_arguments


class Options(TypedDict, total=False):
    seed: int
    tau: float


def source(*, seed: int = 0, tau: float = 2.0) -> tuple[int, float]:
    """The source.

    Args:
        seed: of the masks.
        tau: temperature.
    """
    return seed, tau


@shares_arguments(source, hints={"momentum": "give it to the base"})
def public(first: int, **options: Unpack[Options]) -> tuple[int, float]:
    """Public."""
    return source(**options)


@shares_arguments(source)
class Public:
    """Public.

    Args:
        first: any.
    """

    def __init__(self, first: int, **options: Unpack[Options]) -> None:
        self.given = source(**options)

    @classmethod
    @shares_arguments(source)
    def make(cls, **options: Unpack[Options]) -> "Public":
        """Make one."""
        return cls(1, **options)


@shares_arguments(source)
def any_keyword(**kwargs: Any) -> dict[str, Any]:
    """For a function further inside to check."""
    return kwargs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: public(1, sed=3), r"^public\(\) got an unexpected keyword argument 'sed'. Did you mean 'seed'\?$"),
        (lambda: public(1, temperature=3), r"^public\(\) .* 'temperature'. Did you mean 'tau'\?$"),
        (lambda: public(1, momentum=3), r"^public\(\) .* 'momentum': give it to the base$"),
        (lambda: public(1, what=3), r"^public\(\) .* 'what': its arguments are first, seed, tau$"),
        (lambda: public(first=1, Seed=3), r"Did you mean 'seed'\?$"),
        (lambda: Public(1, sed=3), r"^Public\(\) .* 'sed'. Did you mean 'seed'\?$"),
        (lambda: Public.make(sed=3), r"^Public.make\(\) .* 'sed'. Did you mean 'seed'\?$"),
        (lambda: public(), r"public\(\) missing 1 required positional argument: 'first'"),
    ],
)
def test_unknown_keywords(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_calls_that_are_right_pass():
    assert public(1, seed=3) == public(first=1, seed=3) == (3, 2.0)
    assert Public(first=1, tau=1.0).given == (0, 1.0)
    assert Public.make(seed=5).given == (5, 2.0)
    assert any_keyword(anything=1) == {"anything": 1}


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("lr", ["learning_rate"], "learning_rate"),
        ("learning_rate", ["lr"], "lr"),
        ("beta2", ["b1", "b2"], "b2"),
        ("beta1", ["betas"], "betas"),
        ("alignment_ema", ["tau", "score_ema"], "score_ema"),
        ("mask", ["masked"], "masked"),
        ("name", ["names_of_none", "tau"], None),
        ("scale", ["lr_scale"], None),
    ],
)
def test_nearest_name(name, known, expected):
    assert nearest(name, known) == expected
