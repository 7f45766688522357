"""The applicable checks of torch's own optimizer suite, run on our classes.

Inputs, error inputs, schedulers and trackers come from ``torch.testing._internal.common_optimizers``. Each driver has
the name and the behaviour of its check in torch's ``test/test_optim.py``, with two differences: compiled against eager
replaces foreach and fused against forloop, and equality is bitwise throughout.
"""

import ast
import functools
import inspect
import io
import pickle
import sys
import textwrap
import unittest
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from magma_conformance.bits import assert_bits_equal
from magma_torch import Magma, MaskedOptimizer, SkipUpdate
from magma_torch.wrap import Wrapped
from signatures import REQUIRED, check_defaults, check_documented, check_refused
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from magma_core import SGD, Adam, AdamW, LaProp, RMSProp, Rule, dense, magma, skip_update
from magma_core.config import LEARNING_RATE, LR_SCALE, SEED

with pytest.MonkeyPatch.context() as patch:
    # torch's test classes inherit from one of expecttest, a package of which nothing here is used
    patch.setitem(sys.modules, "expecttest", SimpleNamespace(TestCase=unittest.TestCase))
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        OptimizerErrorEnum,
        OptimizerInfo,
        OptimizerInput,
        TensorTracker,
        _get_optim_inputs_including_global_cliquey_kwargs,
        optim_db,
        optim_error_inputs_func_adamw,
        optim_inputs_func_adamw,
    )
settings.load_profile("magma")  # the import has loaded torch's own

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),  # inductor's imports
    pytest.mark.filterwarnings("ignore:parameters without names:UserWarning"),  # torch's checks give none
]

NOT_APPLICABLE = {
    # checks of test_optim.py
    "test_complex_2d": "Complex parameters are refused, which test_errors checks.",
    "test_rosenbrock_sparse": "Sparse gradients are refused, which test_errors checks.",
    "test_forloop_goes_right_direction_multigpu": "It needs two GPUs.",
    "test_mixed_device_dtype": "It needs a GPU; its half about dtypes is test_mixed_dtype.",
    "test_state_dict_with_cuda_params": "It needs a GPU.",
    "test_cpu_load_state_dict": "It needs a GPU, whose state of a capturable optimizer went to the host.",
    "test_foreach_large_tensor": "It needs a GPU and 2³² elements, to overflow indices of 32 bits in CUDA.",
    "test_peak_memory_foreach": "It reads the CUDA allocator's counters to bound the temporaries of foreach.",
    "test_defaults_changed_to_foreach": "No implementation is chosen silently: compile has a default in the signature.",
    "test_fused_matches_forloop": "There is no fused; test_foreach_matches_forloop compares all implementations.",
    "test_fused_large_tensor": "There is no fused, and it needs a GPU.",
    "test_fused_does_not_step_if_foundinf": "There is no fused: GradScaler itself leaves out the step.",
    "test_grad_scaling_autocast_fused_optimizers": "There is no fused: GradScaler unscales before the step.",
    "test_fused_cpu_matches_cuda": "There is no fused, and it needs a GPU.",
    "TestDifferentiableOptimizer": "Keep masks have no derivative: differentiable=True is refused.",
    "CompiledOptimizerTests": "They count the kernels of a step that is traced as a whole; ours compiles its parts.",
    "CompiledOptimizerParityTests": "They trace a step as a whole, which ours is not made for: it compiles its parts.",
    "LBFGS, Adagrad, Adamax, NAdam, RAdam, Rprop, Muon, SparseAdam": "Their checks are about numbers of their own.",
    # inputs of AdamW
    "input: maximize": "It is refused in a group and no argument, see test_refused_flags.",
    "input: amsgrad": "It is refused in a group and no argument, see test_refused_flags.",
    # error inputs of AdamW
    "error: a param group cannot have duplicate parameters": "An error, no warning: test_parameters checks it.",
    "error: lr as Tensor doesn't work with foreach & not capturable": "There is no foreach.",
    "error: betas must be either both floats or both Tensors": "The values are read, so that both may be mixed.",
    r"error: betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "There is no foreach.",
}
"""What of torch's suite has no counterpart here, and why."""

OWN_WORDS = {
    "Tensor lr must be 1-element": "lr must be a number or a tensor with one float, got",
    "Invalid beta parameter at index 0: 1.0": r"beta1 must lie in \[0, .*\], got 1.0",
    "Invalid weight_decay value: -1": "weight_decay must be at least 0 .*, got -1",
}
"""Our words for torch's, where the type of the error is the same."""


# Infos


def inputs_of_both(device: Any, dtype: Any = None) -> list[OptimizerInput]:
    """torch's inputs of AdamW, and one for each base and option that both classes have."""
    inputs = [x for x in optim_inputs_func_adamw(device, dtype) if f"input: {x.desc}" not in NOT_APPLICABLE]
    more: dict[str, dict[str, Any]] = {
        "Tensor betas": {"betas": (torch.tensor([[0.9]]), torch.tensor(0.99))},
        "dense decay": {"weight_decay": 0.1, "decay": "dense"},
        "sgd": {"base": "sgd"},
        "rmsprop": {"base": "rmsprop", "eps": 1e-6},
        "p": {"p": 0.75},
        "factor of lr": {"lr_scale": 2.5},
        "seed": {"seed": 2**64 - 1},
        "rows": {"block_axes": (0,)},
        "not masked": {"masked": False},
    }
    return inputs + [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in more.items()]


def inputs_of_magma(device: Any, dtype: Any = None) -> list[OptimizerInput]:
    more: dict[str, dict[str, Any]] = {
        "Tensor lr": {"lr": torch.tensor(0.001)},
        "zero weight_decay": {"weight_decay": 0.0},
        "nesterov": {"base": SGD(nesterov=True), "weight_decay": 0.1},
        "adam": {"base": "adam"},
        "laprop": {"base": "laprop", "weight_decay": 0.1},
        "damping": {"p": 1.0},
        "score": {"tau": 0.5, "ema": 0.5, "initial_score": 1.0},
        "momentum before": {"cosine_momentum": "before"},
    }
    own = [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in more.items()]
    return inputs_of_both(device, dtype) + own


def error_inputs(device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
    """torch's error inputs of AdamW, in our words where these are others, and errors that its bases do not raise."""
    errors = [
        error
        for error in optim_error_inputs_func_adamw(device, dtype)
        if f"error: {error.optimizer_error_input.desc}" not in NOT_APPLICABLE
    ]
    for error in errors:
        error.error_regex = OWN_WORDS.get(error.error_regex, error.error_regex)

    def add(desc: str, params: Any, kind: type[Exception], regex: str, on_step: bool = False, **kwargs: Any) -> None:
        when = OptimizerErrorEnum.STEP_ERROR if on_step else OptimizerErrorEnum.CONSTRUCTION_ERROR
        given = OptimizerInput(params=params, kwargs=kwargs, desc=desc)
        errors.append(ErrorOptimizerInput(given, error_on=when, error_type=kind, error_regex=regex))

    param, other = parameter(2, 3), parameter(3)
    sparse = parameter(2, 3)
    sparse.grad = torch.eye(2, 3).to_sparse()
    formats = "must be float32, bfloat16 or float16, got torch"
    wrong = {dtype: torch.zeros(1, dtype=dtype, requires_grad=True) for dtype in (torch.cfloat, torch.float64)}
    add("complex", [wrong[torch.cfloat]], TypeError, rf"'0.0' {formats}.complex64: cast it, or split")
    add("complex in a group", [{"params": [param, wrong[torch.cfloat]]}], TypeError, f"'0.1' {formats}")
    add("float64", [wrong[torch.float64]], TypeError, rf"'0.0' {formats}.float64")
    add("sparse gradient", [other, sparse], RuntimeError, "gradient of '0.1' is sparse: use a dense one", on_step=True)
    add("non-leaf", [param * 2], ValueError, "can't optimize a non-leaf Tensor")
    add("not a tensor", [param, 1.0], TypeError, "optimizer can only optimize Tensors, but one of the params is float")
    add("a set in a group", [{"params": {param}}], TypeError, "optimizer parameters need to be organized in ordered")
    add("no parameters", [], ValueError, "optimizer got an empty parameter list")
    add("no such key", [{"param": [param]}], ValueError, "has an entry 'param', .* Did you mean 'params'")
    add("no group", [{"params": [param]}, other], TypeError, "param_group must be a dict, but got")
    add("one name", [("w", param), ("w", other)], ValueError, "two parameters are called 'w'")
    add("negative lr", [param], ValueError, "lr must be at least 0 .*, got -1", lr=-1.0)
    add("nan lr", [param], ValueError, "lr must be a number, got nan", lr=torch.tensor(float("nan")))
    add("p", [param], ValueError, r"p must lie in \[0, 1\], got 1.5", p=1.5)
    add("base", [param], ValueError, "base must be one of 'sgd'", base="lion")
    add("number of another base", [param], ValueError, "betas does not belong to base 'sgd'", base="sgd", betas=(0, 0))
    add("eps in a group", [{"params": [param], "eps": -1.0}], ValueError, "eps must be at least .*, got -1")
    add("block axes", [param, other], ValueError, "'0.1'", block_axes=(1,))
    return errors


def _info(cls: type[Optimizer], inputs: Callable[..., list[OptimizerInput]]) -> OptimizerInfo:
    sgd = next(info for info in optim_db if info.name == "SGD")
    return OptimizerInfo(
        cls,
        optim_inputs_func=inputs,
        optim_error_inputs_func=error_inputs,
        scheduler_inputs=sgd.scheduler_inputs,  # most of all
        supported_impls=("compile",),
        not_og_supported_flags=(),  # this is the first version
        supports_complex=False,
        supports_multiple_devices=False,
    )


INFOS = [_info(Magma, inputs_of_magma), _info(SkipUpdate, inputs_of_both)]


@dataclass(frozen=True)
class Case:
    """A class and arguments for it."""

    info: OptimizerInfo
    input: OptimizerInput

    @property
    def kwargs(self) -> dict[str, Any]:
        return deepcopy(self.input.kwargs)

    def make(self, params: Any, **changes: Any) -> Any:
        return self.info.optim_cls(params, **(self.kwargs | changes))


def cases(*, only_default: bool = False, compiled: bool = True) -> Any:
    """Parametrise as torch does, over all inputs with and without the flags of implementations.

    Compiled are the default inputs only: others have programs of their own, each of which takes seconds to make.
    """
    found = []
    for info in INFOS:
        for given in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info):
            is_default = given.desc.partition(" & ")[0] == "default"
            if (is_default and compiled) if given.kwargs["compile"] else (is_default or not only_default):
                found.append(pytest.param(Case(info, given), id=f"{info.name}-{given.desc}".replace(" ", "_")))
    return pytest.mark.parametrize("case", found)


every_case, every_eager_case = cases(), cases(compiled=False)
few_cases, eager_cases = cases(only_default=True), cases(only_default=True, compiled=False)
every_info = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)


# What the drivers share


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameter(*shape: int) -> Parameter:
    return Parameter(torch.randn(shape))


def as_array(x: Tensor) -> Any:
    x = x.detach()
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Bits of tensors in any nest of dicts and sequences, everything else by ``==``."""
    if isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype, where
        assert_bits_equal(as_array(actual), as_array(expected), where)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert type(actual) is type(expected)
        assert len(actual) == len(expected), where
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    else:
        assert actual == expected, where


class Bits(unittest.TestCase):
    """What a TensorTracker asserts with."""

    def assertEqual(self, first: Any, second: Any, msg: Any = None) -> None:
        assert_same(first, second)


class Affine:
    """The loss |Wx + b|² of torch's drivers."""

    def __init__(self, contiguous: bool = True) -> None:
        if contiguous:
            self.weight, self.bias = parameter(10, 5), parameter(10)
        else:
            self.weight, self.bias = Parameter(torch.randn(10, 5, 2)[..., 0]), Parameter(torch.randn(10, 2)[..., 0])
        self.input = torch.randn(5)

    @property
    def params(self) -> list[Parameter]:
        return [self.weight, self.bias]

    def loss(self) -> Tensor:
        return (self.weight.mv(self.input) + self.bias).pow(2).sum()

    def closure(self) -> Tensor:
        for param in self.params:
            param.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def run(self, optimizer: Any, steps: int = 20) -> float:
        """How much the loss rises until before the last step."""
        first = self.loss().item()
        for _ in range(steps):
            loss = self.closure()
            optimizer.step()
        return loss.item() - first


# Coverage


def test_nothing_is_omitted() -> None:
    """Every check that the wheel knows by name is here or in the table, and the table holds nothing else."""
    named = {
        (decorator.cls_name, decorator.test_name)
        for info in optim_db
        for decorator in info.decorators
        if getattr(decorator, "test_name", None)
    }
    checks = {test for cls, test in named if cls == "TestOptimRenewed"}
    assert len(checks) >= 20
    here = {name for name in globals() if name.startswith("test_")}
    assert checks <= here | set(NOT_APPLICABLE)
    assert not here & set(NOT_APPLICABLE)
    assert all(reason.endswith(".") and len(reason.split()) > 3 for reason in NOT_APPLICABLE.values())
    inputs = {f"input: {x.desc}" for x in optim_inputs_func_adamw("cpu", torch.float32)}
    errors = optim_error_inputs_func_adamw("cpu", torch.float32)
    inputs |= {f"error: {x.optimizer_error_input.desc}" for x in errors}
    assert {key for key in NOT_APPLICABLE if key.startswith(("input", "error"))} <= inputs
    assert set(OWN_WORDS) <= {error.error_regex for error in errors}


@every_info
def test_optim_infos_do_not_specify_global_cliquey_kwargs(info: OptimizerInfo) -> None:
    for given in info.optim_inputs_func(device="cpu"):
        assert not {"foreach", "fused", "differentiable", "compile"} & given.kwargs.keys()


@every_info
def test_every_option_has_an_input(info: OptimizerInfo) -> None:
    covered = {key for given in info.optim_inputs_func(device="cpu") for key in given.kwargs}
    options = set(inspect.signature(info.optim_cls).parameters) - {"params", "compile"}
    assert covered == options


# Errors


def _error_cases() -> Iterator[Any]:
    for info in INFOS:
        for i, error in enumerate(info.optim_error_inputs_func(device="cpu", dtype=torch.float32)):
            desc = error.optimizer_error_input.desc.replace(" ", "_")
            yield pytest.param(info.optim_cls, error, id=f"{info.name}-{i}-{desc}")


@pytest.mark.parametrize(("optim_cls", "error"), list(_error_cases()))
def test_errors(optim_cls: Any, error: ErrorOptimizerInput) -> None:
    given = error.optimizer_error_input
    kwargs = {**given.kwargs, "compile": False}
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            optim_cls(given.params, **kwargs)
    elif error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(error.error_type, match=error.error_regex):
            optim_cls(given.params, **kwargs)
    else:
        optimizer = optim_cls(given.params, **kwargs)
        before = deepcopy(given.params)
        with pytest.raises(error.error_type, match=error.error_regex):
            optimizer.step()
        assert_same(list(given.params), before)


@every_info
@pytest.mark.parametrize("flag", ["differentiable", "capturable", "fused", "foreach", "maximize", "amsgrad"])
def test_refused_flags(info: OptimizerInfo, flag: str) -> None:
    """As an argument, in a group that is made, added, loaded or changed later; False is harmless."""
    param = parameter(3)
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{flag}'"):
        info.optim_cls([param], compile=False, **{flag: True})
    refused = pytest.raises(ValueError, match=f"{flag}=True is not supported: ")
    with refused:
        info.optim_cls([{"params": [param], flag: True}], compile=False)
    optimizer = info.optim_cls([{"params": [param], flag: False}], compile=False)
    param.grad = torch.ones(3)
    optimizer.step()
    with refused:
        optimizer.add_param_group({"params": [parameter(2)], flag: True})
    assert len(optimizer.param_groups) == 1
    saved, before = deepcopy(optimizer.state_dict()), param.detach().clone()
    saved["param_groups"][0][flag] = True
    with refused:
        optimizer.load_state_dict(saved)
    optimizer.param_groups[0][flag] = True
    with refused:
        optimizer.step()
    assert_same(param, before)


# The right direction


@every_case
def test_forloop_goes_right_direction(case: Case) -> None:
    for contiguous in (True, False):
        model = Affine(contiguous)
        assert model.run(case.make(model.params)) < 0


CYCLE = {"base_lr": 0.001, "max_lr": 0.01, "step_size_up": 5}
MORE_SCHEDULERS: dict[str, Any] = {
    "Lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.95**epoch),
    "Multiplicative": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.95),
    "MultiStep": lambda opt: lr_scheduler.MultiStepLR(opt, [3, 8]),
    "CosineAnnealing": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 20),
    "WarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 7),
    "Plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1, threshold=0.5),
    "Cyclic": lambda opt: lr_scheduler.CyclicLR(opt, **CYCLE),
    "OneCycle": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.01, total_steps=20),
    "Sequential": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(opt, 15)], [5]
    ),
    "Chained": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 4), lr_scheduler.ExponentialLR(opt, 0.95)]
    ),
    "SWA": lambda opt: swa_utils.SWALR(opt, swa_lr=0.005, anneal_epochs=5),
}
"""All others of torch.optim."""

CYCLING = ("Cyclic", "OneCycle")
"""Those that write momenta too."""


def advance(scheduler: Any, loss: Tensor) -> None:
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss.detach())
    else:
        scheduler.step()


SCHEDULED = ("lr", "betas", "momentum")


def run_scheduled(model: Affine, optimizer: Any, makers: Iterable[Any]) -> tuple[float, list[list[dict[str, Any]]]]:
    """How much the loss rises in 20 steps, and what schedulers may change, of every group at every step."""
    schedulers = [make(optimizer) for make in makers]
    first, seen = model.loss().item(), []
    for _ in range(20):
        loss = model.closure()
        seen.append(
            [{key: deepcopy(group[key]) for key in SCHEDULED if key in group} for group in optimizer.param_groups]
        )
        optimizer.step()
        for scheduler in schedulers:
            advance(scheduler, loss)
    return loss.item() - first, seen


def groups_of(model: Affine, lr: Any = 0.01) -> list[dict[str, Any]]:
    return [{"params": [model.weight]}, {"params": [model.bias], "lr": lr}]


@pytest.mark.parametrize("makers", INFOS[0].scheduler_inputs, ids=lambda makers: f"{len(makers)}")
@eager_cases
def test_param_group_with_lrscheduler_goes_right_direction(case: Case, makers: Any) -> None:
    model = Affine()
    rise, _ = run_scheduled(model, case.make(groups_of(model)), makers)
    assert rise < 0


@pytest.mark.parametrize("name", MORE_SCHEDULERS)
@pytest.mark.parametrize(("cls", "base"), [(Magma, "adamw"), (SkipUpdate, "sgd")])
def test_every_scheduler(cls: Any, base: str, name: str) -> None:
    """The loss falls, and the step takes what was written: the bits are those of the same numbers set by hand."""
    start = Affine()

    def make(model: Affine) -> Any:
        return cls(groups_of(model), base=base, compile=False)

    def replay(keys: set[str]) -> list[Parameter]:
        model = deepcopy(start)
        optimizer = make(model)
        for values in seen:
            for group, entries in zip(optimizer.param_groups, values, strict=True):
                group |= {key: entries[key] for key in keys}
            model.run(optimizer, 1)
        return model.params

    model = deepcopy(start)
    rise, seen = run_scheduled(model, make(model), [MORE_SCHEDULERS[name]])
    assert rise < 0
    changed = {key for key in seen[0][0] if any(values[0][key] != seen[0][0][key] for values in seen)}
    assert changed == {"lr"} | ({"betas" if base == "adamw" else "momentum"} if name in CYCLING else set())
    every = set(seen[0][0])
    assert_same(replay(every), model.params)
    for key in changed:
        assert not torch.equal(replay(every - {key})[0], model.weight), key


@pytest.mark.parametrize("makers", INFOS[0].scheduler_inputs, ids=lambda makers: f"{len(makers)}")
@eager_cases
def test_tensor_lr_with_scheduler(case: Case, makers: Any) -> None:
    """Schedulers write into a tensor in place."""
    model, rate = Affine(), torch.tensor(0.01)
    optimizer = case.make(groups_of(model, torch.tensor(0.02)), lr=rate)
    rise, seen = run_scheduled(model, optimizer, makers)
    assert rise < 0
    assert optimizer.param_groups[0]["lr"] is rate
    assert seen[0][1]["lr"] == 2 * seen[0][0]["lr"]


@every_eager_case
def test_param_groups_weight_decay(case: Case) -> None:
    model = Affine()
    without = {"weight_decay": 0.0}
    if case.kwargs.get("base") == "adam":
        without = {}  # it has none
    optimizer = case.info.optim_cls(
        [{"params": [model.weight], **case.kwargs}, {"params": [model.bias], **case.kwargs, **without}]
    )
    assert model.run(optimizer) < 0


@eager_cases
def test_weight_decay_of_groups(case: Case) -> None:
    """What each group has is what it gets, whatever the others have."""
    model, alone = Affine(), Affine()
    alone.weight, alone.bias, alone.input = *deepcopy(model.params), model.input
    both = case.make([{"params": [model.weight], "weight_decay": 0.5}, {"params": [model.bias], "weight_decay": 0.0}])
    first = case.make([("0.0", alone.weight)], weight_decay=0.5)
    second = case.make([("1.0", alone.bias)], weight_decay=0.0)
    model.run(both)
    for _ in range(20):
        alone.closure()
        first.step()
        second.step()
    assert_same(model.params, alone.params)


@every_case
def test_param_groups_lr(case: Case) -> None:
    model, irrelevant = Affine(), parameter(2)
    before = irrelevant.detach().clone()
    kwargs = {"lr": 1e-3} | case.kwargs
    optimizer = case.info.optim_cls(
        [{"params": model.params, **kwargs}, {"params": [irrelevant]}], lr=1e-28, compile=kwargs["compile"]
    )
    irrelevant.grad = torch.rand_like(irrelevant)
    assert model.run(optimizer) < 0
    assert_same(irrelevant, before)


@pytest.mark.parametrize("num_dim", [0, 1, 2])
@few_cases
def test_tensor_lr(case: Case, num_dim: int) -> None:
    """The same bits as a number; what is written into the tensor is the rate of the next step."""
    model = Affine()
    other = deepcopy(model)
    model.run(case.make(model.params, lr=1e-3), 5)
    lr = torch.tensor(1e-3).reshape([1] * num_dim)
    optimizer = case.make(other.params, lr=lr)
    other.run(optimizer, 5)
    assert_same(other.params, model.params)
    lr.fill_(0.0)
    before = deepcopy(other.params)
    other.run(optimizer, 1)
    assert_same(other.params, before)


# One step


@few_cases
def test_step_is_noop_when_params_have_no_grad(case: Case) -> None:
    params = [torch.randn(2, 3) for _ in range(2)]
    before = deepcopy(params)
    optimizer = case.make(params)
    assert optimizer.step(lambda: torch.tensor([1])) == torch.tensor([1])
    assert_same(params, before)
    assert not any(optimizer.state.values())


@every_eager_case
def test_step_is_noop_for_zero_grads(case: Case) -> None:
    if case.kwargs.get("weight_decay", 0) != 0:
        return  # as in torch's suite: it decays
    param = parameter(5, 1)
    before = param.detach().clone()
    changes = {} if case.kwargs.get("base", "adamw") != "adamw" else {"weight_decay": 0.0}
    optimizer = case.make([param], **changes)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_same(param, before)
    assert optimizer.state[param]["step"] == 1


@few_cases
def test_empty_grad(case: Case) -> None:
    """A parameter without elements has a step, next to one with elements that moves as if it were alone."""
    empty, param = parameter(0, 3), parameter(4, 3)
    alone = deepcopy(param)
    optimizer = case.make([("empty", empty), ("w", param)])
    reference = case.make([("w", alone)])
    for p in (empty, param, alone):
        p.grad = torch.ones_like(p)
    for _ in range(3):
        optimizer.step()
        reference.step()
    assert_same(param, alone)
    assert optimizer.state[empty]["step"] == 3


@few_cases
def test_params_without_grad(case: Case) -> None:
    """Some have a gradient in some steps: the others keep their bits, their state and their step."""
    model = Affine()
    optimizer = case.make(model.params)
    for step in range(6):
        model.closure()
        if step in (2, 3):
            model.bias.grad = None
            before = deepcopy([model.bias.detach(), optimizer.state[model.bias]])
        optimizer.step()
        if step in (2, 3):
            assert_same([model.bias.detach(), optimizer.state[model.bias]], before)
    assert optimizer.state[model.weight]["step"] == 6
    assert optimizer.state[model.bias]["step"] == 4


@few_cases
def test_grad_that_requires_grad(case: Case) -> None:
    model = Affine()
    other = deepcopy(model)
    optimizer = case.make(model.params)
    for _ in range(2):
        loss = model.loss()
        for param, grad in zip(model.params, torch.autograd.grad(loss, model.params, create_graph=True), strict=True):
            param.grad = grad
        optimizer.step()
    other.run(case.make(other.params), 2)
    assert_same(model.params, other.params)
    for param in model.params:
        assert param.is_leaf
        assert param.requires_grad
        assert not any(x.requires_grad for x in optimizer.state[param].values())


@pytest.mark.parametrize("set_to_none", [True, False])
@few_cases
def test_zero_grad(case: Case, set_to_none: bool) -> None:
    model = Affine()
    optimizer = case.make(model.params)
    model.closure()
    model.bias.grad.requires_grad_(True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)
    for param in model.params:
        if set_to_none:
            assert param.grad is None
        else:
            assert not param.grad.requires_grad
            assert_same(param.grad, torch.zeros_like(param))
    optimizer.step()
    assert optimizer.state[model.weight]["step"] == (1 if set_to_none else 2)


@few_cases
def test_closure(case: Case) -> None:
    """Called once, with gradients enabled, before any is read; its value is returned."""
    model = Affine()
    other = deepcopy(model)
    optimizer, calls = case.make(model.params), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return model.closure()

    returned = []
    for _ in range(3):
        with torch.no_grad():
            returned.append(optimizer.step(closure))
    reference, losses = case.make(other.params), []
    for _ in range(3):
        losses.append(other.closure())
        assert reference.step() is None
    assert calls == [True] * 3
    assert_same(returned, losses)
    assert_same(model.params, other.params)


@few_cases
def test_non_empty_state(case: Case) -> None:
    model = torch.nn.Linear(5, 5)
    optimizer = case.make(model.parameters())
    optimizer.zero_grad()
    model(torch.rand(2, 5)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 2
    for state in optimizer.state.values():
        assert len(state) > 0


# Implementations


def walk(
    case: Case, see: Callable[[Tensor], None], *, compile: bool, default_dtype: torch.dtype = torch.float32
) -> None:
    """torch's seven steps for comparisons: one without gradients, a layer frozen for two; shows all there is to see."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()]
    model = torch.nn.Sequential(*layers)
    inputs = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).reshape(3, 2)
    scalar = torch.rand((), requires_grad=True)
    scalar_grad = torch.rand(())
    torch.set_default_dtype(default_dtype)
    try:
        groups = [{"params": model.parameters()}, {"params": [scalar], "block_axes": ()}]
        optimizer = case.make(groups, compile=compile)
        for i in range(7):
            optimizer.zero_grad()
            if i in (3, 5):
                model[2].requires_grad_(i == 5)
            if i != 2:
                model(inputs).sum().backward()
                scalar.grad = scalar_grad
            optimizer.step()
            for param in (*model.parameters(), scalar):
                see(param)
                for key, value in optimizer.state[param].items():
                    assert value.dtype == (torch.int64 if key == "step" else torch.float32)
                    see(value)
    finally:
        torch.set_default_dtype(torch.float32)


@eager_cases
def test_foreach_matches_forloop(case: Case) -> None:
    tracker = TensorTracker()
    walk(case, tracker.add, compile=False)
    walk(case, lambda x: tracker.pop_check_set(x, Bits()), compile=True)
    assert tracker.all_popped()


@pytest.mark.parametrize("default_dtype", [torch.float64, torch.float16], ids=str)
@eager_cases
def test_set_default_dtype_works_with_foreach(case: Case, default_dtype: torch.dtype) -> None:
    """The state is float32, and its bits are those that it has under any other default."""
    tracker = TensorTracker()
    walk(case, tracker.add, compile=False)
    walk(case, lambda x: tracker.pop_check_set(x, Bits()), compile=False, default_dtype=default_dtype)
    assert tracker.all_popped()


@every_eager_case
def test_mixed_dtype(case: Case) -> None:
    """Parameters of several formats in one optimizer move as they do with one optimizer each."""
    params = [
        (f"{dtype}", Parameter(torch.randn(4, 3).to(dtype))) for dtype in (torch.bfloat16, torch.half, torch.float)
    ]
    alone = deepcopy(params)
    together, each = case.make(params), [case.make([pair]) for pair in alone]
    for _ in range(5):
        for (_, p), (_, q) in zip(params, alone, strict=True):
            p.grad = torch.randn(p.shape).to(p.dtype)
            q.grad = p.grad.clone()
        for optimizer in (together, *each):
            optimizer.step()
    assert_same(params, alone)
    for (_, p), (_, q), optimizer in zip(params, alone, each, strict=True):
        assert_same(together.state[p], optimizer.state[q])


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last", "expanded gradient"])
@few_cases
def test_memory_formats(case: Case, layout: str) -> None:
    """Where elements lie in memory changes no bit."""
    start = torch.randn(4, 3, 5, 2)
    param, plain = Parameter(_laid_out(start, layout)), Parameter(start.clone())
    assert layout == "expanded gradient" or not param.is_contiguous()
    optimizer, reference = case.make([param]), case.make([plain])
    for _ in range(3):
        grad = torch.randn(4, 3, 5, 2)
        if layout == "expanded gradient":
            grad = grad[..., :1].expand(4, 3, 5, 2)
        param.grad = _laid_out(grad, layout)
        plain.grad = grad.contiguous()
        optimizer.step()
        reference.step()
    assert_same(param, plain)
    assert_same(optimizer.state[param], reference.state[plain])


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    return torch.stack([x, x], -1)[..., 0] if layout == "strided" else x


# Checkpoints


def named(params: Iterable[Any], is_named: bool) -> list[Any]:
    """With the names that parameters without names are called by."""
    return [(f"0.{i}", param) for i, param in enumerate(params)] if is_named else list(params)


both_kinds = pytest.mark.parametrize("is_named", [False, True], ids=["unnamed", "named"])


@every_case
def test_state_dict_deterministic(case: Case) -> None:
    model = Affine()
    optimizer = case.make(model.params)
    model.run(optimizer, 10)
    other = deepcopy(model)
    restored = case.make(other.params)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    for _ in range(10):
        for m, o in ((model, optimizer), (other, restored)):
            m.run(o, 1)
        assert_same(other.params, model.params)
    assert_same(restored.state_dict(), optimizer.state_dict())
    restored.param_groups.extend(restored.param_groups)  # torch saves repeated parameters alike
    with pytest.raises(ValueError, match="are the same parameter"):
        restored.state_dict()


@pytest.mark.parametrize("to_named", [False, True], ids=["to_unnamed", "to_named"])
@both_kinds
@few_cases
def test_can_load_from_to_named_state_dict(case: Case, is_named: bool, to_named: bool) -> None:
    model = Affine()
    optimizer = case.make(named(model.params, is_named))
    model.run(optimizer, 3)
    other = deepcopy(model)
    restored = case.make(named(other.params, to_named))
    restored.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (other, restored)):
        m.run(o, 3)
    assert_same(other.params, model.params)
    assert ("param_names" in restored.state_dict()["param_groups"][0]) == (is_named or to_named)


@eager_cases
def test_param_names(case: Case) -> None:
    """Names stand in the groups and in the state_dict in the order of the parameters, and a loaded name replaces."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    pairs = list(model.named_parameters())
    optimizer = case.make([{"params": pairs[2:]}, {"params": iter(pairs[:2]), "masked": False}])
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["1.weight", "1.bias"],
        ["0.weight", "0.bias"],
    ]
    saved = optimizer.state_dict()
    assert [group["param_names"] for group in saved["param_groups"]] == [["1.weight", "1.bias"], ["0.weight", "0.bias"]]
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert list(optimizer.alignment()) == ["1.weight", "1.bias"]
    saved["param_groups"][0]["param_names"] = ["a", "b"]
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["a", "b"]
    assert list(optimizer.alignment()) == ["a", "b"]


@few_cases
def test_names_and_order(case: Case) -> None:
    """The order of named parameters does not matter."""
    model = Affine()
    other = deepcopy(model)
    model.run(case.make([("w", model.weight), ("b", model.bias)]), 5)
    other.run(case.make([("b", other.bias), ("w", other.weight)]), 5)
    assert_same(other.params, model.params)


@eager_cases
def test_can_load_older_state_dict(case: Case) -> None:
    """There is no older version: what lacks an entry of a group is refused, and nothing changes."""
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1, stride=2), torch.nn.BatchNorm2d(2, eps=1e-05, momentum=0.1))
    inputs = torch.rand(1, 4, 16, 16)
    optimizer = case.make(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
    old = deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in case.info.not_og_supported_flags:
            del group[flag]
    optimizer.load_state_dict(old)
    step()
    before = deepcopy(optimizer.state_dict())
    for key in before["param_groups"][0].keys() - {"params", "block_axes"}:
        lacking = deepcopy(before)
        del lacking["param_groups"][0][key]
        with pytest.raises(ValueError, match=r"has no entry '.*': it was saved by another optimizer"):
            optimizer.load_state_dict(lacking)
        assert_same(optimizer.state_dict(), before)
    step()


@both_kinds
@few_cases
def test_save_load_equality_with_weights_only(case: Case, is_named: bool) -> None:
    model = Affine()
    optimizer = case.make(named(model.params, is_named))
    model.run(optimizer, 3)
    saved = optimizer.state_dict()
    for weights_only in (False, True):
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        assert_same(torch.load(file, weights_only=weights_only), saved)


@few_cases
def test_load_nontensor_step(case: Case) -> None:
    model = Affine()
    optimizer = case.make(model.params)
    model.run(optimizer, 3)
    other, saved = deepcopy(model), deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    restored = case.make(other.params)
    restored.load_state_dict(saved)
    for m, o in ((model, optimizer), (other, restored)):
        m.run(o, 2)
    assert_same(other.params, model.params)
    assert_same(restored.state_dict(), optimizer.state_dict())


@few_cases
def test_deepcopy_copies_all_public_attrs(case: Case) -> None:
    model = Affine()
    optimizer = case.make(model.params)
    model.run(optimizer, 3)

    def public(x: Any) -> set[str]:
        return {key for key in x.__dict__ if not key.startswith("_")}

    assert public(optimizer) == public(deepcopy(optimizer))


@pytest.mark.parametrize("copy", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@few_cases
def test_copies_go_on(case: Case, copy: Any) -> None:
    """A copy of model and optimizer takes the steps of the original, and takes a new group."""
    model = Affine()
    optimizer = case.make(model.params)
    model.run(optimizer, 3)
    other, copied = copy((model, optimizer))
    before = deepcopy(other.params)
    model.run(optimizer, 3)
    assert_same(other.params, before)
    other.run(copied, 3)
    assert_same(other.params, model.params)
    assert_same(copied.state_dict(), optimizer.state_dict())
    copied.add_param_group({"params": [parameter(2)]})
    other.run(copied, 1)


# Hooks


@few_cases
def test_step_pre_hook(case: Case) -> None:
    optimizer, data = case.make([torch.tensor([[1.0, 1.0]])]), [5]
    handle = optimizer.register_step_pre_hook(lambda opt, args, kwargs: data.append(2))
    optimizer.step()
    optimizer.step()
    assert data == [5, 2, 2]
    handle.remove()
    optimizer.step()
    assert data == [5, 2, 2]


@few_cases
def test_step_post_hook(case: Case) -> None:
    """Called with the optimizer and the arguments of step, after parameters and state have changed."""
    model = Affine()
    optimizer = case.make(model.params)
    seen: list[Any] = []

    def hook(opt: Optimizer, args: Any, kwargs: Any) -> None:
        assert opt is optimizer
        seen.append((args[1:], kwargs, int(opt.state[model.weight]["step"])))

    handle = optimizer.register_step_post_hook(hook)
    optimizer.step(model.closure)
    optimizer.step(closure=model.closure)
    handle.remove()
    optimizer.step()
    assert seen == [((model.closure,), {}, 1), ((), {"closure": model.closure}, 2)]


@few_cases
def test_step_all_hooks(case: Case) -> None:
    optimizer = case.make([torch.tensor([[1.0, 1.0]])])
    data: list[int] = []

    def note(i: int) -> Callable[..., None]:
        return lambda opt, args, kwargs: data.append(i)

    handles = [
        optimizer.register_step_pre_hook(note(1)),
        optimizer.register_step_post_hook(note(2)),
        register_optimizer_step_pre_hook(note(0)),
        register_optimizer_step_post_hook(note(5)),
    ]
    try:
        optimizer.step()
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert data == [0, 1, 2, 5] * 2


@eager_cases
def test_step_pre_hook_that_replaces_the_closure(case: Case) -> None:
    model = Affine()
    optimizer = case.make(model.params)
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, model.closure), {}))
    assert optimizer.step() > 0
    assert optimizer.state[model.weight]["step"] == 1


def state_dict_pre_hook(optimizer: Any) -> None:
    optimizer.state["test"] = 1


def state_dict_post_hook(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    return {**state_dict, "ran_state_dict_pre_hook": state_dict["state"].pop("test", None) is not None}


def load_pre_hook_1(optimizer: Any, state_dict: dict[str, Any]) -> None:
    state_dict["param_groups"][0]["lr"] = 0.002


def load_pre_hook_2(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    replaced = deepcopy(state_dict)
    replaced["param_groups"][0]["lr"] = 0.003
    return replaced


def load_post_hook(optimizer: Any) -> None:
    optimizer.state["ran_load_state_dict_pre_hook2"] = optimizer.param_groups[0]["lr"] == 0.003
    optimizer.state["ran_load_state_dict_post_hook"] = True


@few_cases
def test_state_dict_pre_hook(case: Case) -> None:
    optimizer = case.make([parameter(2, 3)])
    optimizer.register_state_dict_pre_hook(state_dict_pre_hook)
    assert optimizer.state_dict()["state"]["test"] == 1


@few_cases
def test_state_dict_post_hook(case: Case) -> None:
    optimizer = case.make([parameter(2, 3)])
    optimizer.register_state_dict_post_hook(state_dict_post_hook)
    assert not optimizer.state_dict()["ran_state_dict_pre_hook"]


@few_cases
def test_state_dict_pre_post_hook(case: Case) -> None:
    optimizer = case.make([parameter(2, 3)])
    optimizer.register_state_dict_pre_hook(state_dict_pre_hook)
    optimizer.register_state_dict_post_hook(state_dict_post_hook)
    saved = optimizer.state_dict()
    assert "test" not in saved["state"]
    assert saved["ran_state_dict_pre_hook"]


def stepped(case: Case) -> tuple[Any, Parameter]:
    param = parameter(2, 3)
    optimizer = case.make([param])
    param.grad = torch.rand_like(param)
    optimizer.step()
    return optimizer, param


@few_cases
def test_load_state_dict_pre_hook_and_prepend(case: Case) -> None:
    optimizer, param = stepped(case)
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(load_pre_hook_1)
    optimizer.load_state_dict(deepcopy(saved))
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(load_pre_hook_2, prepend=True)
    optimizer.load_state_dict(deepcopy(saved))
    assert optimizer.param_groups[0]["lr"] == 0.002  # that of the hook that ran last
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


@few_cases
def test_load_state_dict_post_hook(case: Case) -> None:
    optimizer, _ = stepped(case)
    optimizer.register_load_state_dict_post_hook(load_post_hook)
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer.state["ran_load_state_dict_pre_hook2"]
    assert optimizer.state["ran_load_state_dict_post_hook"]


@few_cases
def test_load_state_dict_pre_post_hook(case: Case) -> None:
    optimizer, param = stepped(case)
    optimizer.register_load_state_dict_pre_hook(load_pre_hook_2)
    optimizer.register_load_state_dict_post_hook(load_post_hook)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["ran_load_state_dict_pre_hook2"]
    assert optimizer.state["ran_load_state_dict_post_hook"]
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())  # what hooks left in the state is saved and loaded with it
    assert optimizer.state["ran_load_state_dict_post_hook"]
    assert optimizer.state[param]["step"] == 2


@eager_cases
def test_load_state_dict_pre_hook_that_replaces_the_state(case: Case) -> None:
    """Of a bfloat16 parameter the state that a hook returned is loaded, without rounding, and not the given one."""
    param = Parameter(torch.randn(2, 3).bfloat16())
    optimizer = case.make([param])
    param.grad = torch.rand_like(param)
    optimizer.step()
    saved = deepcopy(optimizer.state_dict())
    precise = torch.full((2, 3), 1 + 2.0**-20)

    def hook(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "state": {0: {**state_dict["state"][0], "mu": precise}}}

    handle = optimizer.register_load_state_dict_pre_hook(hook)
    optimizer.load_state_dict(saved)
    assert_same(optimizer.state[param]["mu"], precise)
    handle.remove()
    optimizer.load_state_dict(saved)
    assert_same(optimizer.state_dict(), saved)
    assert optimizer.state[param]["mu"] is not saved["state"][0]["mu"]


# Signatures


CLASSES: list[Any] = [MaskedOptimizer, Magma, SkipUpdate]


def _overridden() -> Iterator[Any]:
    for cls in (*CLASSES, Wrapped):
        for owner in cls.__mro__[: cls.__mro__.index(Optimizer)]:
            for name in sorted(vars(owner).keys() & vars(Optimizer).keys()):
                if inspect.isfunction(vars(Optimizer)[name]) and name != "__init__":
                    yield pytest.param(cls, name, id=f"{cls.__name__}-{name}")


@pytest.mark.parametrize(("cls", "name"), list(_overridden()))
def test_signature_is_that_of_the_base(cls: type, name: str) -> None:
    ours, base = (inspect.signature(getattr(owner, name)).parameters.values() for owner in (cls, Optimizer))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in base]


@pytest.mark.parametrize("cls", CLASSES)
def test_overridden_methods_are_found(cls: type) -> None:
    """The constructor has options of its own, but is called with the parameters first, as every optimizer of torch."""
    found = {name for owner, name in (p.values for p in _overridden()) if owner is cls}
    assert found == {"__setstate__", "add_param_group", "load_state_dict", "state_dict", "step"}
    first, second = list(inspect.signature(cls).parameters.values())[:2]
    assert (first.name, second.name) == ("params", "lr")
    assert first.kind is second.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


OWN = {**dict.fromkeys(["params", "optimizer", "rule"], REQUIRED), "masked": True, "compile": True}
"""Arguments that the core does not know."""

MAKERS = [*CLASSES, *(cls.wrap for cls in CLASSES), Wrapped]
every_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__qualname__)


@every_maker
def test_defaults_are_those_of_the_core(make: Any) -> None:
    check_defaults(make, OWN)
    assert {"seed", "masked", "block_axes", "compile"} <= inspect.signature(make).parameters.keys()


@every_maker
def test_arguments_are_documented_in_order(make: Any) -> None:
    check_documented(make)


@every_maker
def test_misspelt_arguments_are_refused(make: Any) -> None:
    examples = {"params": [torch.ones(2)], "optimizer": torch.optim.SGD([torch.ones(2)])}
    parameters = inspect.signature(make).parameters
    rule = {"rule": magma()} if "rule" in parameters else {}
    check_refused(functools.partial(make, **rule), *(examples[name] for name in parameters if name in examples))


@every_maker
def test_defaults_live_once(make: Any) -> None:
    """A signature refers to the core's defaults: no number stands in it."""
    source = inspect.getsource(make.__init__ if isinstance(make, type) else make)
    (tree,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(tree, ast.FunctionDef)
    constants = {x.value for x in (*tree.args.defaults, *tree.args.kw_defaults) if isinstance(x, ast.Constant)}
    assert constants <= {None, True, "adamw"}


@pytest.mark.parametrize("base", [SGD(), RMSProp(), Adam(), AdamW(), LaProp()], ids=lambda base: type(base).__name__)
@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (functools.partial(MaskedOptimizer, rule=dense()), dense()),
        (Magma, magma()),
        (SkipUpdate, skip_update()),
    ],
    ids=["dense", "Magma", "SkipUpdate"],
)
def test_groups_have_the_defaults_of_the_core(make: Any, rule: Rule, base: Any) -> None:
    """By its name or as a configuration a base has its own numbers, whoever made the group."""
    expected = asdict(base) | {
        "cosine_momentum" if key == "momentum" else key: value for key, value in asdict(rule).items()
    }
    if "beta1" in expected:
        expected["betas"] = (expected.pop("beta1"), expected.pop("beta2"))
    expected |= {"lr": LEARNING_RATE, "lr_scale": LR_SCALE, "seed": SEED}
    expected |= {"masked": True, "block_axes": (), "compile": False}
    name = type(base).__name__.lower()
    for given in (base, name):
        optimizer = make([parameter(2)], base=given, compile=False)
        assert optimizer.defaults == {**expected, "base": name}
        optimizer = make([{"params": [parameter(2)], "base": given}], compile=False)
        group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        assert {key: group[key] for key in expected} == expected
