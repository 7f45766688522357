"""`load_state_dict` of almost valid state_dicts: each is loaded, or refused by an error that names the fault."""

import copy
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import magma_torch
import numpy as np
import pytest
import torch
from magma_torch import Magma, MaskedOptimizer
from torch import Tensor
from torch.nn import Parameter

from magma_core import damping, dense, magma, score_survival, skip_update

SHAPES = {"matrix": (3, 4), "row": (4,), "scalar": ()}


def groups(is_named: bool, second: str) -> list[dict[str, Any]]:
    """Two parameters with rows as blocks, of which the second is not stepped, and one in a group that is not masked."""
    made = [(name, Parameter(torch.ones(shape))) for name, shape in SHAPES.items()]
    params = made if is_named else [param for _, param in made]
    return [
        {"params": params[:2], "block_axes": (0,)},
        {"params": params[2:], "masked": False, **({"base": second} if second else {})},
    ]


def of_base(base: str, rule: Any, is_named: bool) -> MaskedOptimizer:
    return MaskedOptimizer(groups(is_named, "sgd"), 0.1, rule=rule, base=base, seed=5, compile=False)


def wrapped(make: Callable[..., Any], rule: Any) -> Any:
    return MaskedOptimizer.wrap(make(groups(True, ""), lr=0.1), rule=rule, seed=5, compile=False)


MAKERS: dict[str, Callable[[], Any]] = {
    "sgd, unnamed": lambda: of_base("sgd", magma(), False),
    "rmsprop": lambda: of_base("rmsprop", score_survival(damped=True), True),
    "adam": lambda: of_base("adam", skip_update(p=0.3), True),
    "adamw": lambda: of_base("adamw", magma(momentum="before", decay="dense"), True),
    "laprop, unnamed": lambda: of_base("laprop", damping(), False),
    "dense": lambda: of_base("adamw", dense(), True),
    "wrapped AdamW": lambda: wrapped(torch.optim.AdamW, magma()),
    "wrapped Adagrad": lambda: wrapped(torch.optim.Adagrad, magma()),
}


def step(optimizer: Any) -> None:
    for i, param in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        param.grad = None if i == 1 else torch.linspace(-1, 1, param.numel()).reshape(param.shape) + 0.5
    optimizer.step()


def made(kind: str, steps: int = 2) -> Any:
    optimizer = MAKERS[kind]()
    for _ in range(steps):
        step(optimizer)
    return optimizer


def in_bytes(value: Any) -> Any:
    """Everything there is, to be compared by ==."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: in_bytes(x) for key, x in value.items()}
    return [in_bytes(x) for x in value] if isinstance(value, list | tuple) else value


def seen(optimizer: Any) -> Any:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return (
        in_bytes(optimizer.state_dict()),
        in_bytes(params),
        in_bytes([x.keep for x in optimizer.alignment().values()]),
    )


class Odd:
    """Of no kind that a state_dict has, and with a repr that fails."""

    def __repr__(self) -> str:
        raise RuntimeError


def odd_values(value: Any) -> Iterator[tuple[str, Any]]:
    """What may stand where ``value`` stands."""
    yield from (
        ("None", None),
        ("text", "x\x1b[2J\n"),
        ("a list", [0.5]),
        ("a nest", [[0.5], {"x": None}]),
        ("a deep nest", {"x": {"y": [{}]}}),
        ("empty", []),
        ("an empty dict", {}),
        ("a truth", True),
        ("NaN", float("nan")),
        ("negative", -1),
        ("huge", 10**30),
        ("infinite", float("inf")),
        ("an array", np.ones(3)),
        ("an object", Odd()),
        ("a function", len),
        ("bytes", b"\0"),
        ("a complex number", 1j),
        ("a number", torch.tensor(0.5)),
        ("a matrix", torch.ones(5, 7)),
        ("elements of none", torch.ones(0)),
        ("meta", torch.empty((), device="meta")),
        ("sparse", torch.zeros(2, 2).to_sparse()),
        ("nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    )
    if isinstance(value, Tensor):
        yield from (
            ("another type", value.to(torch.bfloat16)),
            ("twice as wide", value.to(torch.float64)),
            ("one axis more", value[None]),
            ("flat", value.reshape(-1)),
            ("meta alike", torch.empty_like(value, device="meta")),
            ("NaN alike", torch.full_like(value.float(), float("nan"))),
            ("negative alike", torch.full_like(value, -1)),
            ("huge alike", torch.full_like(value, 2**33)),
            ("a parameter alike", Parameter(value.clone(), requires_grad=value.is_floating_point())),
            ("an array alike", value.numpy()),
            ("a list alike", value.tolist()),
        )
        if value.dim():
            yield "sparse alike", value.to_sparse()
    if isinstance(value, list | tuple):
        yield from (
            ("one more", [*value, *value[-1:]]),
            ("one less", list(value[:-1])),
            ("reversed", list(value[::-1])),
        )


def places_in(value: Any) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (key,)
        yield from ((key, *rest) for rest in places_in(inner))


def mutated(saved: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Almost ``saved``: with one thing in another's place, missing, renamed, or too many."""
    for label, value in odd_values(saved):
        yield label, (), value
    for place in places_in(saved):
        *path, last = place
        inner = at(saved, path)
        for label, value in odd_values(inner[last]):
            yield label, place, changed(saved, path, replaced(inner, last, value))
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        rest = {key: inner[key] for key in keys if key != last}
        yield "missing", place, changed(saved, path, rest if isinstance(inner, dict) else list(rest.values()))
        if isinstance(inner, dict):
            for name in (str(last), 99, None):
                if name != last:
                    yield "renamed", place, changed(saved, path, {**rest, name: inner[last]})
    for path in ((), ("state",), ("state", 0), ("param_groups", 0)):
        yield "one more", (*path, "surplus"), changed(saved, path, {**at(saved, path), "surplus": torch.ones(3)})


def at(value: Any, path: Sequence[Any]) -> Any:
    return at(value[path[0]], path[1:]) if path else value


def changed(value: Any, path: Sequence[Any], inner: Any) -> Any:
    """A copy with ``inner`` at the end of a path."""
    return replaced(value, path[0], changed(value[path[0]], path[1:], inner)) if path else inner


def replaced(value: Any, key: Any, inner: Any) -> Any:
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[key] = inner
    return copied


def is_the_wrapped_optimizer_s(optimizer: Any, place: tuple[Any, ...]) -> bool:
    """What torch loads by its own rules: entries of the groups and of the states that are not this package's."""
    if not hasattr(optimizer, "optimizer") or len(place) < 3:
        return False
    keys = {*magma_torch.wrapped_groups.KEYS, "params", "param_names"}
    return place[2] not in keys if place[0] == "param_groups" else not str(place[2]).startswith("magma_")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:parameters without names:UserWarning")
@pytest.mark.parametrize("kind", MAKERS)
def test_it_is_loaded_or_refused(kind):
    """Refused: nothing has changed, and the next step is what it would have been. Loaded: the next step works.

    Each kind takes another quarter of what can be changed.
    """
    saved, optimizer = made(kind, 3).state_dict(), made(kind)
    before, count, faults = seen(optimizer), Counter[str](), []
    for label, place, state_dict in itertools.islice(mutated(saved), list(MAKERS).index(kind) % 4, None, 4):
        foreign = is_the_wrapped_optimizer_s(optimizer, place)
        try:
            optimizer.load_state_dict(state_dict)
            count["loaded"] += 1
            if not foreign:
                step(optimizer)
            optimizer = made(kind)
        except (ValueError, TypeError) as error:
            count["refused"] += 1
            message = str(error)
            if seen(optimizer) != before or not (foreign or (30 < len(message) < 700 and message.isprintable())):
                faults.append(f"{label} at {place}: {message}")
                optimizer = made(kind)
        except Exception as error:
            faults.append(f"{label} at {place}: {type(error).__name__}: {error}")
            optimizer = made(kind)
    assert not faults, f"{len(faults)} of {sum(count.values())}:\n" + "\n".join(fault[:300] for fault in faults)
    step(optimizer)
    assert seen(optimizer) == seen(made(kind, 3))
    assert count["refused"] > 150
    assert count["loaded"] > 10


NAMED: list[tuple[tuple[Any, ...], Any, str]] = [
    ((), None, "the state_dict must be a dict, got None of type NoneType: load what state_dict"),
    (("state",), [], "'state' of the state_dict must be a mapping, got [] of type list"),
    (("param_groups",), {}, "'param_groups' of the state_dict must be a list, got {}"),
    (("param_groups", 0), 3, "group 0 of the loaded state must be a dict, got 3"),
    (("param_groups", 0, "params"), None, "'params' of group 0 of the loaded state must be a list, got None"),
    (("param_groups", 0, "params"), [0, [1]], "must have integers or strings, got [1]"),
    (("param_groups", 0, "params"), [0, 0], "'params' of group 0 of the loaded state has 0, which is another"),
    (("param_groups", 0, "params"), [0], "group 0 of the loaded state has 1 params, the optimizer's 2"),
    (("param_groups", 0, "param_names"), ["a"], "group 0 of the loaded state has 1 param_names, the optimizer's 2"),
    (("param_groups", 0, "param_names"), ["a", 1], "names of parameters must be strings, got 1"),
    (("param_groups", 1, "p"), [[0.5]], "group 1 of the loaded state cannot be used: p of a parameter group must be"),
    (("param_groups", 1, "base"), ["sgd"], "base of a group must be one of 'sgd', "),
    (("param_groups", 1, "base"), np.ones(3), "base of a group must be one of 'sgd', "),
    (("param_groups", 1, "lr"), torch.empty((), device="meta"), "lr must be a number or a tensor with one float"),
    (("param_groups", 1, "maximize"), torch.ones(2), "maximize must be True or False, got tensor([1., 1.])"),
    (("param_groups", 0, "block_axes"), (2,), "block_axes of 'matrix' has axis 2, out of range"),
    (("state", 0), None, "the loaded state of parameter 0 must be a mapping, got None"),
    (("state", "0"), {"step": 1}, "the loaded state has '0', which is in no group of it"),
    (("state", 0, "mu"), "x", "the loaded mu of 'matrix' must be a tensor, got 'x' of type str"),
    (("state", 0, "mu"), torch.zeros(3, 4).to_sparse(), "the loaded mu of 'matrix' must be dense and have values"),
    (("state", 0, "mu"), torch.zeros(3, 4, device="meta"), "the loaded mu of 'matrix' must be dense and have values"),
    (("state", 0, "step"), torch.tensor(-1), "the loaded step of 'matrix' must lie in [0, 4294967295], got tensor(-1)"),
    (("state", 0, "step"), 2**70, "the loaded step of 'matrix' counts steps, which must lie in [0, 4294967295]"),
    (("state", 0, "score"), torch.full((3,), float("nan")), "the loaded score of 'matrix' must lie in [0, 1]"),
    (("state", 0, "nu_power"), torch.tensor(1.5), "the loaded nu_power of 'matrix' must lie in [0, 1], got tensor(1.5"),
    (("state", 0, 7), 7, "the loaded state of 'matrix' has 7: it was saved by another"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "message"), NAMED, ids=str)
def test_errors_name_the_entry_the_value_and_the_remedy(place, value, message):
    optimizer = made("adamw")
    state_dict: Any = copy.deepcopy(optimizer.state_dict())
    if place:
        inner = state_dict
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    else:
        state_dict = value
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        optimizer.load_state_dict(state_dict)


def test_options_must_suit_parameters_that_have_no_state_yet():
    optimizer = made("adam")
    before, state_dict = seen(optimizer), copy.deepcopy(optimizer.state_dict())
    state_dict["param_groups"][0]["block_axes"] = (1,)
    with pytest.raises(ValueError, match="block_axes of 'row' has axis 1, out of range"):
        optimizer.load_state_dict(state_dict)
    assert seen(optimizer) == before


def test_what_the_wrapped_optimizer_cannot_load_changes_nothing():
    """It has taken its part over already when it finds that something is missing."""
    optimizer = made("wrapped AdamW")
    before, state_dict = seen(optimizer), copy.deepcopy(optimizer.state_dict())
    del state_dict["state"][0]["step"]
    with pytest.raises(ValueError, match=r"AdamW cannot load its part of the state \(KeyError: 'step'\): load what"):
        optimizer.load_state_dict(state_dict)
    assert seen(optimizer) == before
    state_dict = copy.deepcopy(optimizer.state_dict())
    del state_dict["param_groups"][0]["lr"]
    with pytest.raises(ValueError, match="group 0 of the loaded state has no entry 'lr'"):
        optimizer.load_state_dict(state_dict)
    assert seen(optimizer) == before
    assert optimizer.param_groups is optimizer.optimizer.param_groups


def test_hooks_may_make_a_state_dict_of_anything():
    """What is loaded is looked at when the hooks have been there."""
    for kind in ("adamw", "wrapped AdamW"):
        optimizer, saved = made(kind), made(kind, 3).state_dict()
        optimizer.register_load_state_dict_pre_hook(lambda _, state_dict: state_dict["packed"])
        optimizer.load_state_dict({"packed": saved})
        assert in_bytes(optimizer.state_dict()["state"]) == in_bytes(saved["state"])
        with pytest.raises(TypeError, match="the state_dict must be a dict, got 3"):
            optimizer.load_state_dict({"packed": 3})


def test_a_wrapped_optimizer_takes_its_own_state_dict_alone():
    with pytest.raises(ValueError, match="has no entry 'survival'"):
        made("wrapped AdamW").load_state_dict(torch.optim.AdamW(groups(True, ""), lr=0.1).state_dict())
    with pytest.raises(ValueError, match="was saved by an optimizer that was not wrapped"):
        made("wrapped AdamW").load_state_dict(Magma(groups(True, ""), compile=False).state_dict())
