"""`magma_torch.save_state` and `load_state`: the core's file, bit for bit, and resumed runs."""

import copy
import doctest
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import magma_torch
import numpy as np
import pytest
import torch
from magma_conformance.bits import assert_bits_equal
from magma_torch import Magma, MaskedOptimizer, SkipUpdate, load_state, save_state, state_file
from mutated_state import check_mutated_files
from portable_problem import (
    FORMATS,
    LAYOUTS,
    LR,
    PERMUTATIONS,
    SAVED,
    SEED,
    STEPS,
    Core,
    every_case,
    gradient,
    no_tensor_may_be_read,
    own,
    start,
    write_claim,
)
from torch.nn import Parameter

from magma_core import SGD, Adam, AdamW, RMSProp, magma, read_state, skip_update, write_state

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tensor(x: np.ndarray) -> torch.Tensor:
    bits = {2: np.int16, 4: np.int32}[x.dtype.itemsize]
    kind = next(kind for kind, dtype in FORMATS.items() if x.dtype == dtype)
    return torch.from_numpy(np.array(x).view(bits)).view(DTYPES[kind])


def to_numpy(x: torch.Tensor) -> np.ndarray:
    kind = next(kind for kind, dtype in DTYPES.items() if x.dtype == dtype)
    bits = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return x.detach().clone().view(bits).numpy().view(FORMATS[kind])


class Run:
    """An optimizer over all parameters in its own layout, each in a group of its own."""

    def __init__(self, base: Any, rule: Any, kind: str = "float32", **options: Any) -> None:
        self.kind = kind
        self.params = {name: Parameter(tensor(own(name, start(name, kind)))) for name in LAYOUTS}
        groups = [
            {"params": [(name, p)], "masked": axes is not None, "block_axes": axes or ()}
            for name, p in self.params.items()
            for axes in [LAYOUTS[name].own_axes]
        ]
        self.optimizer = MaskedOptimizer(groups, LR, rule=rule, base=base, seed=SEED, compile=False, **options)
        self.done = 0

    def step(self, steps: int = 1, but: tuple[str, ...] = ()) -> "Run":
        for _ in range(steps):
            self.done += 1
            for name, param in self.params.items():
                param.grad = None if name in but else tensor(own(name, gradient(name, self.done, self.kind)))
            self.optimizer.step()
        return self

    def take_over(self, core: Core) -> "Run":
        """The parameters, which are in no state file."""
        self.done = core.done
        with torch.no_grad():
            for name, param in self.params.items():
                param.copy_(tensor(own(name, core.params[name])))
        return self

    def save(self, path: Path, **options: Any) -> bytes:
        save_state(self.optimizer, path, axes=PERMUTATIONS, **options)
        return path.read_bytes()

    def load(self, path: Path, **options: Any) -> "Run":
        load_state(self.optimizer, path, axes=PERMUTATIONS, **options)
        return self

    def check(self, core: Core, path: Path) -> None:
        """The same parameters, and the same file."""
        for name, param in self.params.items():
            assert_bits_equal(to_numpy(param), own(name, core.params[name]), name)
        assert self.save(path / "own") == core.write(path / "core")


def in_bytes(optimizer: Any) -> list[tuple[str, bytes]]:
    states = [optimizer.state[param] for group in optimizer.param_groups for param in group["params"]]
    return [(field, x.numpy().tobytes()) for state in states for field, x in state.items()]


def snapshot(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer.state_dict())


def assert_unchanged(optimizer: Any, before: Any) -> None:
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for key, values in before["state"].items():
        assert after["state"][key].keys() == values.keys()
        for field, value in values.items():
            assert_bits_equal(after["state"][key][field].numpy(), value.numpy(), f"{field} of {key}")


@every_case
def test_file_is_the_core_s_and_runs_go_on_from_it(tmp_path, base, rule):
    core, run = Core(base, rule), Run(base, rule)
    core.step(SAVED)
    run.step(SAVED).check(core, tmp_path)
    fresh = Run(base, rule).take_over(core).load(tmp_path / "core")
    fresh.check(core, tmp_path)
    core.step(STEPS - SAVED)
    fresh.step(STEPS - SAVED).check(core, tmp_path)
    run.step(STEPS - SAVED).check(core, tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_state_is_float32_whatever_the_parameters_are(tmp_path, kind):
    core, run = Core(AdamW(), magma(), kind), Run(AdamW(), magma(), kind)
    core.step(SAVED)
    run.step(SAVED).check(core, tmp_path)
    Run(AdamW(), magma(), kind).take_over(core).load(tmp_path / "own").step(2).check(core.step(2), tmp_path)


def test_an_optimizer_in_the_middle_of_a_run_goes_back(tmp_path):
    """What it has stacked for its next step, and seen in its last, is of the state that it had."""
    core, run = Core(AdamW(), magma()), Run(AdamW(), magma())
    core.step(SAVED).write(tmp_path / "core")
    run.step(STEPS).take_over(core).load(tmp_path / "core").check(core, tmp_path)
    assert run.optimizer.alignment() == {}
    run.step().check(core.step(), tmp_path)


def test_state_has_the_shapes_and_types_that_it_had(tmp_path):
    run, other = Run(AdamW(), magma()).step(2), Run(AdamW(), magma())
    run.save(tmp_path / "state")
    other.load(tmp_path / "state")
    for (name, a), b in zip(run.params.items(), other.params.values(), strict=True):
        ours, theirs = other.optimizer.state[b], run.optimizer.state[a]
        assert ours.keys() == theirs.keys()
        for field, x in theirs.items():
            assert_bits_equal(ours[field].numpy(), x.numpy(), f"{field} of {name}")
            assert ours[field].device == x.device


def test_parameters_keep_their_own_steps(tmp_path):
    """One that was left out of a step, and one that has never been stepped."""
    run = Run(AdamW(), magma())
    run.step(1, but=("bias", "rows")).step(2, but=("bias",)).save(tmp_path / "state")
    found = read_state(tmp_path / "state")
    assert {name: one.step for name, one in found.items()} == dict.fromkeys(LAYOUTS, 3) | {"bias": 0, "rows": 2}
    begun = found["bias"].started().state
    for field in found["bias"].fields:
        assert_bits_equal(getattr(found["bias"].state, field), getattr(begun, field), field)
    other = Run(AdamW(), magma())
    other.done = run.done
    with torch.no_grad():
        for name, param in other.params.items():
            param.copy_(run.params[name])
    other.load(tmp_path / "state")
    for each in (run, other):
        each.step(2)
    assert run.save(tmp_path / "a") == other.save(tmp_path / "b")
    for name, param in run.params.items():
        assert_bits_equal(to_numpy(other.params[name]), to_numpy(param), name)


def test_before_the_first_step(tmp_path):
    run = Run(SGD(), magma(initial_score=0.25))
    assert run.save(tmp_path / "own") == Core(SGD(), magma(initial_score=0.25)).write(tmp_path / "core")
    assert not run.optimizer.state


def test_a_file_in_the_optimizer_s_own_layout(tmp_path):
    """Without ``axes``, and under other names."""
    run = Run(AdamW(), magma()).step(2)
    names = {"rows": "model/rows"}
    save_state(run.optimizer, tmp_path / "state", names=names)
    found = read_state(tmp_path / "state")
    assert found.keys() == LAYOUTS.keys() - {"rows"} | {"model/rows"}
    assert (found["model/rows"].shape, found["model/rows"].block_axes) == ((3, 4), (1,))
    other = Run(AdamW(), magma())
    load_state(other.optimizer, tmp_path / "state", names=lambda name: names.get(name, name))
    assert run.save(tmp_path / "a") == other.save(tmp_path / "b")


def groups(**changes: Any) -> Magma:
    """Three groups that ask for different things."""
    p = [Parameter(torch.ones(2, 3)) for _ in range(4)]
    made = [
        {"params": [("a", p[0])], "base": "sgd", "momentum": 0.5, "seed": 1, "p": 0.25, **changes},
        {"params": [("b", p[1]), ("c", p[2])], "weight_decay": 0.5, "block_axes": (-1,)},
        {"params": [("d", p[3])], "masked": False, "cosine_momentum": "before"},
    ]
    optimizer = Magma(made, base="laprop", seed=2, compile=False)
    for param in p:
        param.grad = torch.full((2, 3), 0.5)
    return optimizer


def test_groups_keep_what_they_ask_for(tmp_path):
    optimizer = groups()
    optimizer.step()
    save_state(optimizer, tmp_path / "state")
    found = read_state(tmp_path / "state")
    assert found["a"].base == SGD(momentum=0.5)
    assert (found["a"].seed, found["a"].rule, found["a"].block_axes) == (1, magma(p=0.25), ())
    assert found["b"].base.weight_decay == found["c"].base.weight_decay == 0.5
    assert (found["b"].seed, found["b"].block_axes) == (2, (1,))
    assert (found["d"].rule, found["d"].block_axes) == (magma(momentum="before"), None)
    other = groups()
    load_state(other, tmp_path / "state")
    for each in (optimizer, other):
        each.step()
        save_state(each, tmp_path / each.defaults["base"])
    assert_unchanged(other, snapshot(optimizer))


@pytest.mark.filterwarnings("ignore:parameters without names:UserWarning")
def test_parameters_without_names(tmp_path):
    weight = Parameter(torch.ones(2))
    save_state(SkipUpdate([weight], compile=False), tmp_path / "state")
    assert list(read_state(tmp_path / "state")) == ["0.0"]


def test_a_tensor_that_takes_another_s_place_takes_its_state(tmp_path):
    run = Run(AdamW(), magma()).step(2)
    before = run.save(tmp_path / "a")
    run.params["rows"] = Parameter(run.params["rows"].detach().clone())
    run.optimizer.param_groups[0]["params"][0] = run.params["rows"]
    assert run.save(tmp_path / "b") == before
    run.load(tmp_path / "b").step()
    core = Core(AdamW(), magma()).step(3)
    run.check(core, tmp_path)


def test_rates_as_tensors_and_options_as_tensors(tmp_path):
    weight = Parameter(torch.ones(2))
    optimizer = Magma([("w", weight)], lr=torch.tensor(0.1), weight_decay=torch.tensor(0.5), compile=False)
    optimizer.param_groups[0]["p"] = torch.tensor(0.25)
    save_state(optimizer, tmp_path / "state")
    found = read_state(tmp_path / "state")["w"]
    assert (found.base.weight_decay, found.rule.p) == (0.5, 0.25)


def test_an_option_that_changed_after_the_last_step(tmp_path):
    """State is what the next step would make of it: a score that is not there yet begins."""
    weight = Parameter(torch.ones(2))
    optimizer = SkipUpdate([("w", weight)], base="sgd", compile=False)
    weight.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["weight"] = "score"
    save_state(optimizer, tmp_path / "state")
    state = read_state(tmp_path / "state")["w"].state
    assert_bits_equal(state.score, np.full((), 0.5, np.float32))
    assert_bits_equal(state.mu, np.ones(2, np.float32))


# Errors


def changed(path: Path, name: str, **changes: Any) -> Path:
    found = read_state(path)
    write_state(path, found | {name: replace(found[name], **changes)})
    return path


ERRORS: dict[str, tuple[Any, str]] = {
    "seed": (lambda path: changed(path, "rows", seed=3), "'rows' was saved with seed 3, the optimizer has"),
    "base": (lambda path: changed(path, "rows", base=AdamW(eps=1e-6)), "base eps 1e-06, the optimizer has 1e-08"),
    "rule": (lambda path: changed(path, "rows", rule=magma(p=0.25)), "rule p 0.25, the optimizer has 0.5"),
    "not masked": (
        lambda path: changed(path, "scalar", block_axes=None, state=read_state(path)["bias"].state._replace(
            mu=np.zeros((), np.float32), nu=np.zeros((), np.float32))),
        r"block_axes None, the optimizer has \(\)",
    ),
    "a name less": (
        lambda path: write_state(path, {k: x for k, x in read_state(path).items() if k != "bias"}),
        "'bias' is no parameter of the file",
    ),
    "a name more": (
        lambda path: write_state(path, {"x": read_state(path)["bias"], **read_state(path)}),
        "'x' is no parameter of the optimizer",
    ),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cut off or added to"),
    "a score of NaN": (
        lambda path: path.write_bytes(path.read_bytes()[:-4] + b"\0\0\xc0\x7f"),
        "'whole' of which score must lie in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_leave_optimizer_and_file_alone(tmp_path, name):
    change, match = ERRORS[name]
    path = tmp_path / "state"
    run = Run(AdamW(), magma()).step(2)
    run.save(path)
    change(path)
    file, before = path.read_bytes(), snapshot(run.step().optimizer)
    with pytest.raises(ValueError, match=match):
        run.load(path)
    assert_unchanged(run.optimizer, before)
    assert path.read_bytes() == file


def test_a_file_that_is_not_there(tmp_path):
    run = Run(AdamW(), magma()).step(2)
    before = snapshot(run.optimizer)
    with pytest.raises(FileNotFoundError, match="missing"):
        run.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        run.load(tmp_path)
    assert_unchanged(run.optimizer, before)


def test_layouts_must_be_explained(tmp_path):
    run = Run(AdamW(), magma()).step(2)
    run.save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"'rows' has shape \(4, 3\), of which .*'rows', \(3, 4\): say with axes="):
        load_state(run.optimizer, tmp_path / "state")


def test_without_strict_the_optimizer_s_options_stay(tmp_path):
    Run(AdamW(beta1=0.5), magma(p=0.25)).step(2).save(tmp_path / "state")
    run = Run(Adam(), magma())
    with pytest.raises(ValueError, match="load with strict=False"):
        run.load(tmp_path / "state")
    before = snapshot(run.optimizer)["param_groups"]
    run.load(tmp_path / "state", strict=False)
    assert run.optimizer.state_dict()["param_groups"] == before
    run.save(tmp_path / "again")
    found = read_state(tmp_path / "again")["rows"]
    assert (found.base, found.rule, found.step) == (Adam(), magma(), 2)
    with pytest.raises(ValueError, match="the state of 'rows' has"):
        Run(RMSProp(), magma()).load(tmp_path / "state", strict=False)
    with pytest.raises(ValueError, match="the state of 'rows' has"):
        Run(Adam(), skip_update()).load(tmp_path / "state", strict=False)


@pytest.mark.parametrize(
    "make", [torch.optim.AdamW, lambda params: Magma.wrap(torch.optim.NAdam(params), compile=False)]
)
def test_the_state_of_other_optimizers_is_their_own(tmp_path, make):
    optimizer = make([("w", Parameter(torch.ones(2)))])
    for use in (save_state, load_state):
        with pytest.raises(TypeError, match="the state of another optimizer, wrapped or not, is its own"):
            use(optimizer, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_state_that_is_not_the_optimizer_s_is_not_saved(tmp_path):
    run = Run(AdamW(), magma()).step()
    run.optimizer.state[run.params["rows"]]["mu"] = torch.zeros(3)
    with pytest.raises(ValueError, match="'rows' cannot be saved: mu must be float32"):
        run.save(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_mutated_files_are_loaded_or_refused(tmp_path):
    file = tmp_path / "state"
    valid, run = Core(AdamW(), magma()).step(3).write(file), Run(AdamW(), magma())
    check_mutated_files(file, valid, lambda: run.load(file), lambda: in_bytes(run.optimizer), 600)


def test_a_file_that_claims_gigabytes_is_not_read(monkeypatch, tmp_path):
    run = Run(AdamW(), magma())
    no_tensor_may_be_read(monkeypatch)
    with pytest.raises(ValueError, match="is no parameter of the file, which has 'w'"):
        run.load(write_claim(tmp_path / "state"))
    with pytest.raises(ValueError, match=r"'w' has shape \(32768, 32768\)"):
        load_state(Magma([("w", Parameter(torch.ones(2, 3)))], compile=False), tmp_path / "state")


# What users see


def test_docstring_examples_run():
    outcome = doctest.testmod(state_file, verbose=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("function", [save_state, load_state])
def test_arguments_are_documented_in_order(function):
    section = inspect.getdoc(function).split("Args:")[1].split("Raises:")[0]
    documented = [
        line.split(":")[0].strip() for line in section.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert documented == list(inspect.signature(function).parameters)
    assert function.__name__ in magma_torch.__all__
