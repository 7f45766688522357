"""Masks and scores around torch optimizers: their bits for any optimizer, and its conduct as a torch optimizer."""

import copy
import inspect
import io
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from magma_conformance.bits import assert_bits_equal
from magma_conformance.implementations.process_group import Ranks
from magma_numpy import namespace as xp
from magma_torch import Magma, MaskedOptimizer, SkipUpdate
from magma_torch.wrap import Wrapped
from magma_torch.wrapped_groups import KEYS
from steps import AXES, gradients, label, parameters
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import magma_core
from magma_core import SGD, RMSProp, Rule, cut, damping, magma, score_survival, skip_update
from magma_core.alignment import alignment_sums
from magma_core.hyperparameters import rule_numbers
from magma_core.keep import BlockWords, block_index, key_vectors, mask_key
from magma_core.numerics import real
from magma_core.rule import decide

SEED = 7
RULES = [
    magma(),
    magma(momentum="before", tau=0.5),
    skip_update(p=0.3),
    skip_update(p=1.0),
    damping(),
    damping(tau=2.0**-60, ema=0.0),  # scores of exactly 1, and 0
    score_survival(),
    score_survival(damped=True, momentum="before"),
]
MASKED = [name for name, axes in AXES.items() if axes is not None]

SHAPES = {"matrix": (6, 8), "turned": (8, 6), "image": (4, 3, 5, 5), "vector": (5,)}
SHAPE_AXES = {"matrix": (0,), "turned": (1,), "image": (1, 0), "vector": ()}
OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, fused=True),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "rmsprop momentum": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "muon": lambda p: torch.optim.Muon(p, lr=0.05),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}
WITH_MOMENT = {"adamw", "adamw foreach", "adamw fused", "adam amsgrad", "sgd momentum", "rmsprop momentum"}
WITH_MOMENT |= {"nadam", "radam", "adamax", "muon"}
TWO = ["adamw", "sgd"]  # one with a moment of its own, and one without


def array(x: Tensor) -> np.ndarray:
    x = x.detach().contiguous()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def bits(x: Tensor) -> np.ndarray:
    """Patterns: a NaN must keep its payload where nothing may change."""
    return x.detach().contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()]).numpy().copy()


def start(name: str, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    x = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(len(name))).to(dtype)
    return nn.Parameter(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x)


def gradient(name: str, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of ordinary size, but for the first of the vector, whose momentum the core calls zero."""
    x = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(100 * step + len(name)))
    return (x * 2.0**-110 if name == "vector" and step == 1 else x).to(dtype)


def groups_of(params: dict[str, Tensor], axes: Any = SHAPE_AXES) -> list[dict[str, Any]]:
    """A group for each parameter."""
    return [
        {"params": [(name, param)], **({"masked": False} if axes[name] is None else {"block_axes": axes[name]})}
        for name, param in params.items()
    ]


def wrap(kind: str, rule: Rule | None = None, dtype: torch.dtype = torch.float32, **options: Any) -> Wrapped:
    """Over parameters of every layout, only matrices for Muon."""
    params = {name: start(name, dtype) for name in SHAPES if kind != "muon" or len(SHAPES[name]) == 2}
    options = {"seed": SEED, "compile": False, **options}
    return MaskedOptimizer.wrap(OPTIMIZERS[kind](groups_of(params)), rule=rule or magma(), **options)


def members(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {g["param_names"][i]: p for g in optimizer.param_groups for i, p in enumerate(g["params"])}


def differentiate(optimizer: torch.optim.Optimizer, step: int) -> None:
    for name, param in members(optimizer).items():
        param.grad = gradient(name, step, param.dtype)


def advance(optimizer: torch.optim.Optimizer, first: int, last: int) -> torch.optim.Optimizer:
    for step in range(first, last + 1):
        differentiate(optimizer, step)
        optimizer.step()
    return optimizer


def seen(optimizer: Any) -> dict[str, np.ndarray]:
    """Everything that two runs must agree on."""
    found = {name: array(param) for name, param in members(optimizer).items()}
    for name, alignment in optimizer.alignment().items():
        found |= {f"{name}.{key}": array(x) for key, x in alignment._asdict().items() if x is not None}
    for index, entries in optimizer.state_dict()["state"].items():
        found |= {f"{index}.{key}": array(torch.as_tensor(x)) for key, x in entries.items() if x is not None}
    return {name: x.copy() for name, x in found.items()}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_bits_equal(actual[name], expected[name], name)


def moment_in(state: dict[str, Any]) -> Tensor | None:
    return next((state[key] for key in ("exp_avg", "momentum_buffer", "magma_mu") if key in state), None)


# Scores and masks


@pytest.mark.parametrize("base", ["sgd", "average"])
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_scores_and_masks_are_those_of_magma_core(rule, base):
    """Torch's momentum has the core's bits on moderate numbers; the average of one's own also on hard ones."""
    params = {name: nn.Parameter(torch.from_numpy(x)) for name, x in parameters().items()}
    mine = [torch.from_numpy(np.array(x)) for x in parameters().values()]
    options = {"base": SGD() if base == "sgd" else RMSProp(), "rule": rule, "xp": xp}
    states = [
        magma_core.init(p.numpy(), block_axes=AXES[n], name=n, **options) for n, p in zip(AXES, mine, strict=True)
    ]
    inner = torch.optim.SGD(groups_of(params, AXES), lr=0.01, momentum=0.9 if base == "sgd" else 0.0)
    optimizer = MaskedOptimizer.wrap(inner, rule=rule, seed=SEED, compile=False)
    for step in range(1, 6):
        grads = gradients(step) if base == "average" else moderate(step)
        for name, param in params.items():
            param.grad = torch.from_numpy(np.array(grads[name]))
        optimizer.step()
        _, states, reports = magma_core.update_all(
            [x.numpy() for x in mine],
            [np.asarray(grad) for grad in grads.values()],
            states,
            names=list(AXES),
            step=step,
            lr=0.01,
            seed=SEED,
            block_axes=AXES,
            **options,
        )
        found = optimizer.alignment()
        assert sorted(found) == sorted(MASKED)
        for name, state, report in zip(AXES, states, reports, strict=True):
            if name in MASKED:
                assert_bits_equal(array(found[name].keep), report.keep, f"keep of {name}")
                if rule.uses_score:
                    assert_bits_equal(array(found[name].sums), report.sums, f"sums of {name}")
                    assert_bits_equal(array(found[name].cosine), report.cosine, f"cosine of {name}")
                    assert_bits_equal(array(found[name].score), state.score, f"score of {name}")
                    mu = moment_in(optimizer.state[params[name]])
                    assert_bits_equal(array(mu), state.mu, f"momentum of {name}")


def moderate(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {name: np.asarray(rng.normal(size=x.shape), np.float32) for name, x in parameters().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kind", "rule"),
    [pytest.param(kind, magma(), id=kind) for kind in OPTIMIZERS]
    + [pytest.param(kind, rule, id=f"{kind}-{label(rule)}") for kind in TWO for rule in RULES[1:]],
)
def test_kept_blocks_are_weighted_and_others_restored(kind, rule, dtype):
    """Against the optimizer alone, from the same state: its own step is the framework's, the rest the core's."""
    optimizer = wrap(kind, rule, dtype)
    scores = {name: np.full(cut_of(name).block_shape, 0.5, np.float32) for name in members(optimizer)}
    for step in range(1, 5):
        differentiate(optimizer, step)
        alone, momentum = copy.deepcopy(optimizer.optimizer), moments(optimizer)
        olds = {name: array(param).copy() for name, param in members(optimizer).items()}
        differentiate(alone, step)  # torch copies parameters without their gradients
        alone.step()
        optimizer.step()
        if rule.momentum == "after":
            momentum = moments(optimizer)
        assert (kind in WITH_MOMENT or not rule.uses_score) == ("magma_mu" not in optimizer.state_dict()["state"][0])
        for name, base in members(alone).items():
            param, blocks = members(optimizer)[name], cut_of(name)
            keep, weight, scores[name] = expected(rule, name, step, momentum[name], param.grad, scores[name])
            found = optimizer.alignment()[name]
            assert_bits_equal(array(found.keep), keep, f"keep of {name} at step {step}")
            if rule.uses_score:
                assert_bits_equal(array(found.score), scores[name], f"score of {name} at step {step}")
            old, theta = olds[name], array(base)
            keep, weight = blocks.spread(keep, xp=xp), blocks.spread(np.broadcast_to(weight, keep.shape), xp=xp)
            with np.errstate(invalid="ignore", over="ignore"):  # torch's own epsilons are zero in float16
                a, b = old.astype(np.float32), theta.astype(np.float32)
                moved = (weight * (b - a) + a).astype(old.dtype)
            new = np.where(keep, np.where(weight == 1, theta, moved), old)
            assert_bits_equal(array(param), new, f"{name} at step {step}")


def cut_of(name: str) -> Any:
    return cut(SHAPES[name], SHAPE_AXES[name], name=name)


def moments(optimizer: Wrapped) -> dict[str, np.ndarray]:
    """The first moments as binary32, zeros before there are any."""
    found = {name: moment_in(optimizer.state[param]) for name, param in members(optimizer).items()}
    return {n: np.zeros(SHAPES[n], np.float32) if x is None else array(x.float()).copy() for n, x in found.items()}


def expected(
    rule: Rule, name: str, step: int, mu: np.ndarray, grad: Tensor, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep, weight and score of one parameter by the functions of the core."""
    blocks = cut_of(name)
    key = key_vectors([mask_key(name, SEED, xp=xp)], xp=xp, device=None)
    words, score = BlockWords(*key, block_index(blocks, xp=xp, device=None).reshape(-1)), score.reshape(-1)
    with xp.scope():
        sums = alignment_sums(real(mu, xp=xp).flush(), real(array(grad), xp=xp).flush(), blocks).reshape(3, -1)
        decision = decide(rule, rule_numbers(rule), words, sums, score, step=step, rate=real(1.0, xp=xp))
    shape = blocks.block_shape
    new = score if decision.score is None else decision.score
    scale = np.broadcast_to(decision.scale.array, decision.keep.shape)
    return decision.keep.reshape(shape), scale.reshape(shape), new.reshape(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_blocks_that_stay_keep_every_bit(dtype):
    """Also NaNs with their payload, −0 and subnormals; weight decay does not move them."""
    pattern = torch.arange(-(2**15), 2**15, 7, dtype=torch.int32)
    narrow = pattern.to(torch.int16) if dtype != torch.float32 else pattern * 2**16 + 12345
    theta = narrow.view(dtype).clone()[:9360].reshape(390, 24)
    for p in (0.0, 0.5):
        param = nn.Parameter(theta.clone())
        inner = torch.optim.SGD([("w", param)], lr=0.1, momentum=0.9, weight_decay=0.1)
        optimizer = Magma.wrap(inner, p=p, block_axes=(0,), compile=False)
        for step in range(3):
            before = bits(param)
            param.grad = torch.full_like(param, 1.0 + step)
            optimizer.step()
            keep = optimizer.alignment()["w"].keep.numpy()
            assert keep.any() == (p > 0)
            assert_bits_equal(bits(param)[~keep], before[~keep], f"p = {p}")
            assert not np.array_equal(bits(param)[keep], before[keep]) or p == 0


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compile", [False, True])
def test_large_parameters_and_odd_layouts(compile):
    """More than one piece; gradients and moments that lie in another order than the parameter."""
    shapes = {"long": (3, 70_000), "wide": (400, 700)}
    found = []
    for order in (False, True):
        torch.manual_seed(0)
        params = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
        groups = groups_of(params, {"long": (0,), "wide": (1,)})
        optimizer = Magma.wrap(torch.optim.AdamW(groups, lr=0.01, foreach=False), compile=order and compile)
        for _ in range(2):
            for param in params.values():
                grad = torch.randn(param.shape)
                param.grad = grad.T.contiguous().T if order else grad
            optimizer.step()
        found.append(seen(optimizer))
    assert_same(found[1], found[0])


@pytest.mark.filterwarnings("ignore:parameters without names:UserWarning")
def test_names_key_the_masks_as_those_of_magma():
    for named in (True, False):
        params = [nn.Parameter(torch.ones(64, 2)) for _ in range(3)]
        given = [(f"layer.{i}", p) for i, p in enumerate(params)] if named else params
        optimizers = [
            Magma(given, seed=3, block_axes=(0,), compile=False),
            Magma.wrap(torch.optim.Adam(given), seed=3, block_axes=(0,), compile=False),
        ]
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            for optimizer in optimizers:
                optimizer.step()
        mine, theirs = (optimizer.alignment() for optimizer in optimizers)
        assert mine.keys() == theirs.keys() == ({f"layer.{i}" for i in range(3)} if named else {"0.0", "0.1", "0.2"})
        for name in mine:
            assert_bits_equal(theirs[name].keep.numpy(), mine[name].keep.numpy(), name)


# Gradients and closures


class Copies(TorchDispatchMode):
    """Collects the operations that read the gradient and make something as large."""

    def __init__(self, grad: Tensor) -> None:
        super().__init__()
        self.grad, self.found = grad, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        memory = self.grad.untyped_storage().data_ptr()
        read = any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == memory for x in args)
        if read and isinstance(result, Tensor) and result.untyped_storage().data_ptr() != memory:
            made = result.untyped_storage().data_ptr() not in [
                x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)
            ]
            if made and result.numel() >= self.grad.numel():
                self.found.append(str(function))
        return result


@pytest.mark.parametrize("rule", [magma(), magma(momentum="before"), skip_update()], ids=label)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_are_not_cloned(rule, momentum):
    param = nn.Parameter(torch.randn(600, 1000))
    inner = torch.optim.SGD([("w", param)], lr=0.1, momentum=momentum, foreach=False)
    optimizer = MaskedOptimizer.wrap(inner, rule=rule, compile=False)
    grad = param.grad = torch.randn_like(param)
    pattern, memory = bits(grad), grad.data_ptr()
    optimizer.step()  # torch's momentum begins as a clone
    with Copies(grad) as copies:
        optimizer.step()
    assert copies.found == []
    assert param.grad is grad
    assert grad.data_ptr() == memory
    assert_bits_equal(bits(grad), pattern)


def test_closure_runs_once_before_gradients_are_read():
    plain, closed = wrap("adamw"), wrap("adamw")
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append(step)
        differentiate(closed, step)
        return 2.0 * step

    for step in range(1, 4):
        advance(plain, step, step)
        for param in members(closed).values():
            param.grad = torch.full_like(param, 100.0)  # what was left of the step before
        assert closed.step(closure) == 2.0 * step
        assert_same(seen(closed), seen(plain))
    assert calls == [1, 2, 3]


class InPlace(torch.optim.SGD):
    """Changes the gradient, and puts a new momentum where the old one was."""

    def step(self, closure: Any = None) -> None:
        assert closure is None
        with torch.no_grad():
            for param in members(self).values():
                if param.grad is not None:
                    param.grad.mul_(torch.linspace(-1, 1, param.grad.numel()).view(param.shape))
                    old = self.state[param].get("exp_avg", torch.zeros_like(param))
                    self.state[param]["exp_avg"] = 0.5 * old + param.grad
                    param.data = param.data - 0.1 * self.state[param]["exp_avg"]


def test_an_optimizer_that_replaces_its_tensors_and_changes_gradients():
    for rule in (magma(), magma(momentum="before")):
        param = nn.Parameter(torch.randn(SHAPES["matrix"]))
        inner = InPlace([("matrix", param)], lr=0.1)
        optimizer = MaskedOptimizer.wrap(inner, rule=rule, seed=SEED, block_axes=(0,), compile=False)
        score, mu = np.full(6, 0.5, np.float32), np.zeros(SHAPES["matrix"], np.float32)
        for step in range(1, 5):
            old, grad = param.detach().clone(), gradient("matrix", step)
            param.grad = grad.clone()
            optimizer.step()
            new = array(optimizer.state[param]["exp_avg"])
            looked = (mu, grad) if rule.momentum == "before" else (new, param.grad)
            keep, _, score = expected(rule, "matrix", step, *looked, score)
            assert_bits_equal(array(optimizer.alignment()["matrix"].score), score, f"step {step}")
            moved = (array(param) != old.numpy()).any(axis=1)
            assert_bits_equal(moved, keep, f"step {step}")
            mu = new.copy()


def test_parameters_without_gradients_do_not_advance():
    optimizer = wrap("adamw")
    advance(optimizer, 1, 1)
    params = members(optimizer)
    before = {name: (bits(param), copy.deepcopy(optimizer.state[param])) for name, param in params.items()}
    differentiate(optimizer, 2)
    params["matrix"].grad = None
    optimizer.step()
    assert "matrix" not in optimizer.alignment()
    for name, param in params.items():
        still = name == "matrix"
        assert int(optimizer.state[param]["magma_step"]) == (1 if still else 2)
        if still:
            assert_bits_equal(bits(param), before[name][0])
            for key, value in before[name][1].items():
                assert_bits_equal(array(optimizer.state[param][key]), array(value), key)
    advance(optimizer, 3, 3)  # at its second step, with the coins of the second
    keep = expected(skip_update(), "matrix", 2, np.zeros((6, 8), np.float32), gradient("matrix", 3), np.ones(6))[0]
    assert_bits_equal(array(optimizer.alignment()["matrix"].keep), keep)


# State


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["adamw", "adamw fused", "sgd", "adagrad", "muon"])
@pytest.mark.parametrize("rule", [magma(), magma(momentum="before"), skip_update()], ids=label)
def test_resumed_run_is_the_uninterrupted_one(rule, kind, dtype):
    optimizer = wrap(kind, rule, dtype)
    advance(optimizer, 1, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    values = {name: param.detach().clone() for name, param in members(optimizer).items()}
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other = magma(p=0.9, initial_score=0.1) if rule.uses_score else skip_update(p=0.9)
    resumed = wrap(kind, other, dtype, seed=0)  # numbers and options are restored too
    advance(resumed, 1, 1)  # what it remembers and decides on is replaced
    for name, param in members(resumed).items():
        param.data.copy_(values[name])
    resumed.load_state_dict(loaded)
    assert resumed.alignment() == {}
    for state in resumed.state_dict()["state"].values():
        if rule.uses_score:
            assert state["magma_score"].dtype == torch.float32
            assert ("magma_mu" in state) == (kind not in WITH_MOMENT)
        assert state["magma_step"].dtype == torch.int64
    assert_same(seen(advance(resumed, 4, 6)), seen(advance(optimizer, 4, 6)))
    file.seek(0)
    untouched = torch.load(file, weights_only=True)
    for key, entries in loaded["state"].items():  # ours is a copy; torch goes on in the loaded tensors themselves
        for field in [field for field in entries if field.startswith("magma_")]:
            assert_bits_equal(array(entries[field]), array(untouched["state"][key][field]), field)


@pytest.mark.parametrize("kind", TWO)
def test_one_state_dict_in_the_format_of_torch(kind):
    optimizer = advance(wrap(kind), 1, 1)
    alone = advance(OPTIMIZERS[kind](groups_of({name: start(name) for name in SHAPES})), 1, 1)
    mine, theirs = optimizer.state_dict(), alone.state_dict()
    assert mine.keys() == theirs.keys() == {"state", "param_groups"}
    for group, other in zip(mine["param_groups"], theirs["param_groups"], strict=True):
        assert group.keys() == other.keys() | set(KEYS)
        assert group["params"] == other["params"]
    ours = {"magma_step", "magma_score"} | (set() if kind in WITH_MOMENT else {"magma_mu"})
    for key, entries in mine["state"].items():
        assert entries.keys() == theirs["state"].get(key, {}).keys() | ours
        assert all(isinstance(value, Tensor) for value in entries.values())


def test_what_does_not_fit_is_not_loaded():
    optimizer = advance(wrap("adamw", dtype=torch.bfloat16), 1, 2)
    saved, before = copy.deepcopy(optimizer.state_dict()), seen(optimizer)

    def without(key: str) -> dict[str, Any]:
        changed = copy.deepcopy(saved)
        del changed["state"][2][key]
        return changed

    def with_score(value: Tensor) -> dict[str, Any]:
        changed = copy.deepcopy(saved)
        changed["state"][2]["magma_score"] = value
        return changed

    alone = advance(OPTIMIZERS["adamw"](groups_of({name: start(name) for name in SHAPES})), 1, 1).state_dict()
    score = saved["state"][2]["magma_score"]
    wrong: list[tuple[dict[str, Any], str]] = [
        (alone, "group 0 of the loaded state has no entry 'survival'.*AdamW saved alone before you wrap it"),
        (without("magma_score"), "'image' lacks 'score'"),
        (without("magma_step"), "'image' lacks 'step'"),
        (with_score(score.bfloat16()), "score of 'image' is torch.bfloat16, expected torch.float32"),
        (with_score(score[0]), "score of 'image' has shape"),
        ({**saved, "param_groups": saved["param_groups"][:2]}, "different number of parameter groups"),
    ]
    for state_dict, message in wrong:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state_dict)
        assert_same(seen(optimizer), before)


@pytest.mark.parametrize("kind", TWO)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike_and_apart(kind, copied):
    optimizer = advance(wrap(kind), 1, 2)
    other = copied(optimizer)
    assert type(other) is Wrapped
    assert other.optimizer is not optimizer.optimizer
    assert_same(seen(advance(other, 3, 4)), seen(advance(optimizer, 3, 4)))
    before = seen(optimizer)
    advance(other, 5, 5)
    assert_same(seen(optimizer), before)


def test_distributed_checkpoint_takes_it():
    def make() -> tuple[nn.Module, Wrapped]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, dtype=torch.float32))
        inner = torch.optim.AdamW(model.named_parameters(), lr=0.1)
        return model, Magma.wrap(inner, seed=SEED, compile=False)

    def train(model: nn.Module, optimizer: Wrapped, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()

    for flatten in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        model, optimizer = make()
        train(model, optimizer, 3)
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        other_model, other = make()
        other_model.load_state_dict(model.state_dict())
        set_optimizer_state_dict(other_model, other, saved, options=options)
        train(model, optimizer, 2)
        train(other_model, other, 2)
        assert_same(seen(other), seen(optimizer))


# Manners


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[2]
        ),
    ],
    ids=["onecycle", "cosine", "lambda", "sequential"],
)
def test_schedules_see_either_optimizer(make):
    found = []
    for of in (lambda wrapped: wrapped, lambda wrapped: wrapped.optimizer):
        optimizer = wrap("adamw")
        schedule, rates = make(of(optimizer)), []
        for step in range(1, 6):
            advance(optimizer, step, step)
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
            assert optimizer.optimizer.param_groups[0]["lr"] == rates[-1]
        assert len(set(rates)) > 1
        found.append(seen(optimizer))
    assert_same(found[1], found[0])


def test_groups_are_those_of_the_wrapped_optimizer():
    optimizer = wrap("adamw")
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.optimizer.param_groups
    assert optimizer.state is optimizer.optimizer.state
    assert optimizer.defaults is optimizer.optimizer.defaults
    groups, state = list(optimizer.param_groups), copy.copy(optimizer.state)
    optimizer.param_groups, optimizer.state = groups, state  # as trainers do
    assert optimizer.optimizer.param_groups is groups
    assert optimizer.optimizer.state is state
    assert optimizer.param_groups[0]["block_axes"] == (0,)  # it stood there
    assert optimizer.param_groups[0]["seed"] == SEED  # it was added
    advance(optimizer, 1, 1)
    optimizer.optimizer.load_state_dict(OPTIMIZERS["adamw"](groups_of(members(optimizer))).state_dict())
    assert optimizer.param_groups is optimizer.optimizer.param_groups


@pytest.mark.parametrize("by", ["wrapper", "wrapped"])
def test_added_groups(by):
    optimizer = advance(wrap("adamw"), 1, 1)
    added = nn.Parameter(torch.ones(5, 2))
    group = {"params": [("added", added)], "block_axes": (0,), "lr": 0.5}
    (optimizer if by == "wrapper" else optimizer.optimizer).add_param_group(group)
    assert optimizer.param_groups[-1]["p"] == 0.5
    assert optimizer.param_groups[-1]["weight_decay"] == 0.1
    SHAPES["added"] = (5, 2)
    try:
        advance(optimizer, 2, 2)
    finally:
        del SHAPES["added"]
    assert int(optimizer.state[added]["magma_step"]) == 1
    keep = optimizer.alignment()["added"].keep
    assert ((added != 1).any(dim=1) == keep).all()


def test_groups_that_cannot_be_added():
    optimizer = wrap("adamw")
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"params": [("matrix", nn.Parameter(torch.ones(2)))]}, ValueError, "two parameters are called 'matrix'"),
        ({"params": [("new", nn.Parameter(torch.ones(2)))], "p": 2}, ValueError, "p must lie in"),
        ({"params": [("new", nn.Parameter(torch.ones(2)))], "block_axes": (1,)}, ValueError, "'new' has axis 1"),
        ({"params": [("new", nn.Parameter(torch.ones(2).double()))]}, TypeError, "'new' must be float32"),
        ({"params": [nn.Parameter(torch.ones(2))]}, ValueError, "with/without names"),
    ]
    for group, error, message in wrong:
        with pytest.raises(error, match=message):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == len(SHAPES)
    optimizer.add_param_group({"params": [("new", nn.Parameter(torch.ones(2).double()))], "masked": False})


def test_unmasked_parameters_are_the_optimizers_own():
    for kind in TWO:
        params = {"a": torch.randn(4, 3), "b": torch.randn(4, 3, dtype=torch.float64), "c": torch.randn(2)}
        twins = [{name: nn.Parameter(x.clone()) for name, x in params.items()} for _ in range(2)]
        axes = {"a": None, "b": None, "c": ()}
        optimizer = Magma.wrap(OPTIMIZERS[kind](groups_of(twins[0], axes)), compile=False)
        alone = OPTIMIZERS[kind](groups_of(twins[1], axes))
        for _ in range(3):
            for name, x in params.items():
                grad = torch.randn_like(x)
                for twin in twins:
                    twin[name].grad = grad.clone()
            optimizer.step()
            alone.step()
        assert list(optimizer.alignment()) == ["c"]
        for name in ("a", "b"):
            assert_bits_equal(array(twins[0][name]), array(twins[1][name]), name)
            assert optimizer.state[twins[0][name]].keys() == alone.state[twins[1][name]].keys()


def test_options_may_change_between_steps():
    optimizer = advance(wrap("adamw"), 1, 1)
    for group in optimizer.param_groups:
        group["p"] = 1.0
    advance(optimizer, 2, 2)
    assert all(alignment.keep.all() for alignment in optimizer.alignment().values())
    for group in optimizer.param_groups:
        group["masked"] = False
    alone = copy.deepcopy(optimizer.optimizer)
    advance(optimizer, 3, 3)
    advance(alone, 3, 3)
    assert optimizer.alignment() == {}
    for name, param in members(optimizer).items():
        assert_bits_equal(array(param), array(members(alone)[name]), name)
    loaded = wrap("adamw")
    loaded.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["p"] = 1.5
    with pytest.raises(ValueError, match="p must lie in"):
        optimizer.step()


def test_momentum_that_comes_later_takes_over():
    optimizer = advance(wrap("sgd"), 1, 2)
    assert "magma_mu" in optimizer.state_dict()["state"][0]
    scores = {name: alignment.score.numpy().copy() for name, alignment in optimizer.alignment().items()}
    for group in optimizer.param_groups:
        group["momentum"] = 0.9
    advance(optimizer, 3, 3)
    assert optimizer.state_dict()["state"][0].keys() == {"momentum_buffer", "magma_step", "magma_score"}
    for name, mu in moments(optimizer).items():
        score = expected(magma(), name, 3, mu, gradient(name, 3), scores[name])[2]
        assert_bits_equal(array(optimizer.alignment()[name].score), score, name)


def test_tensor_in_anothers_place_takes_over_its_state():
    for kind in TWO:
        plain, swapped = wrap(kind), wrap(kind)
        advance(plain, 1, 2)
        advance(swapped, 1, 2)
        for group in swapped.param_groups:
            group["params"][0] = nn.Parameter(group["params"][0].detach().clone())
        assert_same(seen(advance(swapped, 3, 4)), seen(advance(plain, 3, 4)))


def test_hooks_of_both_run_once():
    optimizer, calls = wrap("adamw"), []

    def note(what: str) -> Any:
        return lambda *arguments: calls.append((what, arguments[0])) and None

    for name, one in (("wrapper", optimizer), ("wrapped", optimizer.optimizer)):
        one.register_step_pre_hook(note(f"{name} step pre"))
        one.register_step_post_hook(note(f"{name} step post"))
        one.register_state_dict_pre_hook(note(f"{name} save pre"))
        one.register_state_dict_post_hook(note(f"{name} save post"))
        one.register_load_state_dict_pre_hook(note(f"{name} load pre"))
        one.register_load_state_dict_post_hook(note(f"{name} load post"))
    advance(optimizer, 1, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    nested = ["wrapper {} pre", "wrapped {} pre", "wrapped {} post", "wrapper {} post"]
    assert [what for what, _ in calls] == [one.format(verb) for verb in ("step", "save", "load") for one in nested]
    for what, given in calls:
        assert given is (optimizer if what.startswith("wrapper") else optimizer.optimizer)
    optimizer.optimizer.register_load_state_dict_pre_hook(lambda _, state_dict: own_alone(state_dict))
    optimizer.register_state_dict_post_hook(lambda _, state_dict: {**state_dict, "more": 1})
    assert optimizer.state_dict()["more"] == 1
    optimizer.register_load_state_dict_pre_hook(lambda _, state_dict: calls.append(state_dict.pop("more")))
    optimizer.load_state_dict(optimizer.state_dict())
    assert 1 in calls


def own_alone(state_dict: dict[str, Any]) -> None:
    """The wrapped optimizer, which may be strict, is to load what it knows."""
    for entries in state_dict["state"].values():
        assert entries.keys() == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("kind", ["adamw", "adamw fused"])
def test_grad_scaler_skips_and_unscales(kind):
    optimizer, plain = wrap(kind), wrap(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for step in range(1, 4):
        differentiate(optimizer, step)
        for param in members(optimizer).values():
            param.grad *= scaler.get_scale()
        if step == 2:
            members(optimizer)["vector"].grad[0] = torch.inf
        scaler.scale(torch.ones(()))  # as one scales the loss
        before = seen(optimizer) if step > 1 else {}
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert_same(seen(optimizer), before)
        else:
            assert_same(seen(optimizer), seen(advance(plain, step, step)))


def test_zero_grad_and_repr():
    optimizer = advance(wrap("adamw"), 1, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all((param.grad == 0).all() for param in members(optimizer).values())
    optimizer.zero_grad()
    assert all(param.grad is None for param in members(optimizer).values())
    text = repr(optimizer)
    assert text.startswith("Wrapped AdamW (\nParameter Group 0\n")
    assert all(f"    {key}: " in text for key in KEYS)


# Refusals


class Closed(torch.optim.SGD):
    def step(self, closure: Any) -> float:  # type: ignore[override]
        return closure()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda w: Magma.wrap(torch.optim.LBFGS([("w", w)])),
            TypeError,
            "LBFGS cannot be wrapped, its step needs 'closure'",
        ),
        (lambda w: Magma.wrap(Closed([("w", w)])), TypeError, "Closed cannot be wrapped"),
        (lambda w: Magma.wrap([w]), TypeError, "optimizer must be one of torch such as torch.optim.AdamW"),
        (
            lambda w: Magma.wrap(Magma([("w", w)], compile=False)),
            TypeError,
            "optimizer is a Magma, which masks its steps already",
        ),
        (
            lambda w: Magma.wrap(SkipUpdate.wrap(torch.optim.SGD([("w", w)]))),
            TypeError,
            "optimizer is a Wrapped, which masks",
        ),
        (lambda w: Magma.wrap(SkipUpdate.wrap(torch.optim.SGD([("w", w)])).optimizer), ValueError, "it is wrapped"),
        (
            lambda w: MaskedOptimizer.wrap(torch.optim.SGD([("w", w)]), rule=magma(decay="dense")),
            ValueError,
            "decay must be \"masked\", got 'dense': the weight decay of SGD is part of its update",
        ),
        (
            lambda w: MaskedOptimizer.wrap(torch.optim.SGD([("w", w)]), rule="magma"),
            TypeError,
            "rule must be a magma_core.Rule",
        ),
        (
            lambda w: Magma.wrap(torch.optim.SGD([("w", w)], maximize=True)),
            ValueError,
            "maximize=True.*negate the loss",
        ),
        (lambda w: Magma.wrap(torch.optim.SGD([("w", w)], differentiable=True)), ValueError, "differentiable=True"),
        (
            lambda w: Magma.wrap(torch.optim.SGD([("w", nn.Parameter(w.double()))])),
            TypeError,
            "'w' must be float32.*got torch.float64",
        ),
        (lambda w: Magma.wrap(torch.optim.SGD([("w", w)]), block_axes=(5,)), ValueError, "'w' has axis 5"),
        (lambda w: Magma.wrap(torch.optim.SGD([("w", w)]), p=2), ValueError, "p must lie in"),
        (lambda w: Magma.wrap(torch.optim.SGD([("w", w)]), seed=-1), ValueError, "seed must lie in"),
        (lambda w: Magma.wrap(torch.optim.SGD([("w", w)]), masked="no"), TypeError, "masked must be True or False"),
        (lambda w: Magma.wrap(torch.optim.SGD([{"params": [("w", w)], "p": 3}])), ValueError, "p must lie in"),
        (
            lambda w: Magma.wrap(torch.optim.SGD([{"params": [("a", x)]} for x in (w, torch.ones(2))])),
            ValueError,
            "two parameters are called 'a'",
        ),
    ],
)
def test_what_cannot_be_wrapped(make, error, message):
    with pytest.raises(error, match=message):
        make(torch.ones(3, 2, requires_grad=True))


class Open(torch.optim.SGD):
    def step(self, *arguments: Any, **options: Any) -> Any:
        return super().step(*arguments, **options)


def test_a_step_of_any_arguments_can_be_wrapped():
    param = nn.Parameter(torch.zeros(3))
    optimizer = SkipUpdate.wrap(Open([("w", param)], lr=0.5), p=1.0)
    param.grad = torch.ones(3)
    optimizer.step()
    assert param.tolist() == [-0.5] * 3


def test_refusal_changes_nothing():
    inner = torch.optim.SGD([("w", nn.Parameter(torch.ones(3, 2)))])
    groups, defaults = copy.deepcopy(inner.param_groups), dict(inner.defaults)
    with pytest.raises(ValueError, match="axis 5"):
        Magma.wrap(inner, block_axes=(5,))
    assert inner.defaults == defaults
    assert inner.param_groups[0].keys() == groups[0].keys()
    Magma.wrap(inner, block_axes=(0,))


def test_skip_update_may_maximize():
    params = [nn.Parameter(torch.ones(64, 2)) for _ in range(2)]
    optimizer = SkipUpdate.wrap(torch.optim.SGD([("w", params[0])], lr=0.25, maximize=True), block_axes=(0,))
    params[0].grad = torch.ones(64, 2)
    optimizer.step()
    assert sorted(set(params[0].detach().reshape(-1).tolist())) == [1.0, 1.5]


def test_sparse_gradients_are_refused_where_parameters_are_masked():
    for masked in (True, False):
        embedding = nn.Embedding(5, 3, sparse=True)
        other = nn.Parameter(torch.ones(3))
        groups = [{"params": [("table", embedding.weight)], "masked": masked}, {"params": [("other", other)]}]
        optimizer = Magma.wrap(torch.optim.SGD(groups, lr=0.1), p=1.0, compile=False)
        (embedding(torch.tensor([1, 2])) * other).sum().backward()
        before = bits(embedding.weight), bits(other)
        if masked:
            with pytest.raises(RuntimeError, match="gradient of 'table' is sparse: use a dense one"):
                optimizer.step()
            assert_bits_equal(bits(embedding.weight), before[0])
            assert_bits_equal(bits(other), before[1])
            assert optimizer.state_dict()["state"] == {}
        else:
            optimizer.step()
            assert not np.array_equal(bits(embedding.weight), before[0])
            assert not np.array_equal(bits(other), before[1])


def test_no_compiler_is_no_error(monkeypatch):
    monkeypatch.setattr("magma_torch.engine.compiler.compiler_missing", lambda: "none is there")
    with pytest.warns(UserWarning, match="compile=True has no effect, none is there"):
        optimizer = Magma.wrap(torch.optim.SGD([("w", torch.ones(3))]))
    assert optimizer.param_groups[0]["compile"] is False


@pytest.mark.parametrize("kind", [Magma, SkipUpdate, MaskedOptimizer])
def test_arguments_and_defaults_are_those_of_the_class(kind):
    of_class = inspect.signature(kind).parameters
    not_ours = {"params", "lr", "base", "betas", "eps", "weight_decay", "decay"}
    of_wrap = dict(inspect.signature(kind.wrap).parameters)
    assert of_wrap.pop("optimizer").default is inspect.Parameter.empty
    expected = {name: parameter.default for name, parameter in of_class.items() if name not in not_ours}
    assert {name: parameter.default for name, parameter in of_wrap.items()} == expected


# Several processes


def sharded_steps(kind: str) -> dict[str, np.ndarray]:
    """Four steps over two ranks, with what is whole brought together."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    optimizer = wrap(kind)
    for group in optimizer.param_groups:
        whole = group["params"][0]
        group["params"][0] = nn.Parameter(distribute_tensor(whole.detach(), mesh, [Shard(0)]))
    for step in range(1, 5):
        for name, param in members(optimizer).items():
            param.grad = distribute_tensor(gradient(name, step), mesh, [Shard(0)])
        optimizer.step()
    found = {name: param.full_tensor() for name, param in members(optimizer).items()}
    for name, alignment in optimizer.alignment().items():
        found |= {f"{name}.{key}": x for key, x in alignment._asdict().items()}
    for name, param in members(optimizer).items():
        mu = moment_in(optimizer.state[param])
        assert isinstance(mu, DTensor)
        found[f"{name}.mu"] = mu.full_tensor()
    return {name: array(x) for name, x in found.items()}


def test_sharded_parameters_are_decided_on_as_whole_ones():
    ranks = Ranks(2, sharded_steps)
    try:
        for kind in TWO:
            optimizer = advance(wrap(kind), 1, 4)
            plain = {name: array(param) for name, param in members(optimizer).items()}
            for name, alignment in optimizer.alignment().items():
                plain |= {f"{name}.{key}": array(x) for key, x in alignment._asdict().items()}
                plain[f"{name}.mu"] = array(moment_in(optimizer.state[members(optimizer)[name]]))
            for found in ranks.call(kind):
                assert_same(found, plain)
    finally:
        ranks.close()
