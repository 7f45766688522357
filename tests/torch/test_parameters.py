"""What is given to an optimizer as parameters: unnamed, repeated, frozen, overlapping, lazy, and edited later."""

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest
import torch
from magma_conformance.bits import assert_bits_equal
from magma_torch import Magma, attention_and_mlp, load_state, save_state
from torch import Tensor, nn
from torch.nn import Parameter


def magma(params: Iterable[Any], **options: Any) -> Magma:
    return Magma(params, lr=0.1, compile=False, **options)


def wrapped(params: Iterable[Any], **options: Any) -> Any:
    return Magma.wrap(torch.optim.AdamW(params, lr=0.1), compile=False, **options)


MAKERS = [magma, wrapped]
both = pytest.mark.parametrize("make", MAKERS)


def pairs(*names: str) -> list[tuple[str, Parameter]]:
    return [(name, Parameter(torch.ones(2, 3))) for name in names]


def step(optimizer: Any) -> None:
    """With gradients that differ from name to name, wherever the parameter can have one."""
    for i, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            if p.requires_grad:
                p.grad = torch.full_like(p, 1.0 + i + j)
    optimizer.step()


def snapshot(tensors: Iterable[Tensor]) -> list[Any]:
    return [p.detach().clone().numpy() for p in tensors]


def names(optimizer: Any) -> list[str]:
    return [name for name, _ in optimizer._named()]


# Unnamed parameters


@both
def test_unnamed_parameters_warn_once_with_the_remedy(make):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"'0\.0' .*model\.named_parameters\(\)") as caught:
        optimizer = make([{"params": model[0].parameters()}, {"params": [model[1].weight]}])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    optimizer.add_param_group({"params": [model[1].bias]})  # warnings are errors
    step(optimizer)


@both
def test_named_parameters_and_those_that_are_not_masked_do_not_warn(make):
    make(nn.Linear(2, 2).named_parameters())
    optimizer = make([{"params": nn.Linear(2, 2).parameters(), "masked": False}])  # warnings are errors
    with pytest.warns(UserWarning, match=r"'1\.0'"):
        optimizer.add_param_group({"params": Parameter(torch.ones(2))})


@both
def test_a_warning_that_is_an_error_leaves_the_optimizer_as_it_was(make):
    optimizer = make([{"params": [Parameter(torch.ones(2))], "masked": False}])
    with pytest.raises(UserWarning, match=r"'1\.0'"):
        optimizer.add_param_group({"params": Parameter(torch.ones(2))})
    assert len(optimizer.param_groups) == 1


def test_an_optimizer_for_each_parameter_steps_as_one_for_all():
    """The recipe of docs/torch.md, in the backward pass."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    one = magma(models[0].named_parameters())
    many = {p: magma([(name, p)]) for name, p in models[1].named_parameters()}

    def step_and_free(p: Tensor) -> None:
        many[p].step()
        many[p].zero_grad()

    for p in models[1].parameters():
        p.register_post_accumulate_grad_hook(step_and_free)
    for i in range(4):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(i))
        one.zero_grad()
        for model in models:
            model(x).square().sum().backward()
        one.step()
    assert all(p.grad is None for p in models[1].parameters())
    for mine, theirs in zip(*(snapshot(model.parameters()) for model in models), strict=True):
        assert_bits_equal(theirs, mine)


# The same parameter twice, and parameters in the same memory


@both
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate:UserWarning")  # torch's own
def test_the_same_parameter_twice_is_refused(make):
    p = Parameter(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"'a' and 'b' are the same parameter.*pass it once"):
        make([("a", p), ("other", Parameter(torch.ones(2))), ("b", p)])
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight' are the same parameter"):
        make(tied.named_parameters(remove_duplicate=False))
    optimizer = make(tied.named_parameters())
    with pytest.raises(ValueError, match=r"'again' and 'once more' are the same parameter"):
        optimizer.add_param_group({"params": [("again", p), ("once more", p)]})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["params"].append(tied[0].bias)
    before = snapshot(tied.parameters())
    with pytest.raises(ValueError, match=r"'0\.bias' and '0\.bias' are the same parameter"):
        step(optimizer)
    for now, was in zip(snapshot(tied.parameters()), before, strict=True):
        assert_bits_equal(now, was)


def views_of_one_tensor() -> dict[str, list[Tensor]]:
    memory = torch.ones(24)
    square = memory.view(4, 6)
    return {
        "equal": [memory, memory],
        "parts": [memory[:10], memory[8:]],
        "inside": [memory, square[1:2]],
        "crossing": [square[:, 2], square[1]],
        "formats": [memory[:4], memory.view(torch.bfloat16)[6:9]],
    }


@both
@pytest.mark.parametrize("kind", views_of_one_tensor())
def test_overlapping_parameters_are_refused(make, kind):
    apart = Parameter(torch.ones(2))
    a, b = (Parameter(view) for view in views_of_one_tensor()[kind])
    with pytest.raises(ValueError, match=r"'(a|b)' and '(a|b)' share memory.*clone\(\)"):
        make([{"params": [("a", a)]}, {"params": [("apart", apart), ("b", b)], "masked": False}])


@both
def test_memory_that_comes_to_be_shared_is_refused_before_anything_moves(make):
    (_, a), (_, b) = named = pairs("a", "b")
    optimizer = make(named)
    step(optimizer)
    b.data = a.data
    before = snapshot([a, b])
    with pytest.raises(ValueError, match="'a' and 'b' share memory"):
        step(optimizer)
    for now, was in zip(snapshot([a, b]), before, strict=True):
        assert_bits_equal(now, was)
    b.data = b.data.clone()
    step(optimizer)


@both
def test_a_parameter_that_overlaps_itself_is_refused(make):
    for view in (torch.ones(1, 4).expand(3, 4), torch.ones(9).unfold(0, 3, 1)):
        with pytest.raises(ValueError, match=r"elements of 'w' share memory.*clone\(\)"):
            make([("w", Parameter(view))])


@both
def test_views_without_common_elements_are_accepted(make):
    memory = torch.ones(4, 6)
    views = [memory[:2, ::2], memory[:2, 1::2], memory[2:, :3].T, memory[2:, 3:], memory[:0], memory[:1, :0]]
    step(make([(str(i), Parameter(view)) for i, view in enumerate(views)]))


# Parameters that cannot move: frozen ones of any format, and lazy ones before their first forward


@both
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool, torch.float64, torch.float8_e4m3fn], ids=str)
def test_frozen_parameters_may_have_any_format(make, dtype, tmp_path):
    """As in QLoRA, whose frozen weights are packed into uint8."""

    def made() -> tuple[Any, Parameter]:
        frozen = Parameter(torch.ones(6, 1).to(dtype), requires_grad=False)
        return make([("frozen", frozen), *pairs("adapter")], block_axes=(0,)), frozen

    optimizer, frozen = made()
    step(optimizer)
    assert set(optimizer.alignment()) == {"adapter"}
    assert not optimizer.state.get(frozen)
    other, _ = made()
    other.load_state_dict(optimizer.state_dict())
    if make is magma and not dtype.is_floating_point:
        save_state(optimizer, tmp_path / "state")
        load_state(other, tmp_path / "state")
        assert not other.state.get(other.param_groups[0]["params"][0])


@both
def test_a_parameter_is_checked_when_it_has_a_gradient(make):
    """Whether it is no longer frozen, or a plain tensor whose gradient is put there."""
    for wants_gradient in (True, False):
        frozen = torch.ones(2, dtype=torch.float64)
        optimizer = make([("frozen", frozen), *pairs("w")])
        frozen.requires_grad_(wants_gradient).grad = torch.ones_like(frozen)
        with pytest.raises(TypeError, match=r"'frozen' must be float32, bfloat16 or float16, got torch\.float64"):
            optimizer.step()


@both
def test_lazy_parameters_are_accepted_before_their_first_forward(make):
    torch.manual_seed(0)
    lazy, plain = nn.LazyLinear(3), nn.Linear(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are new, says torch 2.x
        optimizer, expected = make(lazy.named_parameters()), make(plain.named_parameters())
    lazy(torch.ones(2, 4))
    lazy.load_state_dict(plain.state_dict())
    for _ in range(3):
        for module, own in ((lazy, optimizer), (plain, expected)):
            own.zero_grad()
            module(torch.ones(2, 4)).square().sum().backward()
            own.step()
    for mine, theirs in zip(snapshot(lazy.parameters()), snapshot(plain.parameters()), strict=True):
        assert_bits_equal(mine, theirs)


@both
def test_state_for_a_lazy_parameter_asks_for_a_forward(make, tmp_path):
    saved = make(nn.Linear(4, 3).named_parameters())
    step(saved)
    optimizer = make(nn.LazyLinear(3).named_parameters())
    wanted = r"'weight' has no shape yet: call the forward"
    with pytest.raises(ValueError, match=wanted):
        optimizer.load_state_dict(saved.state_dict())
    assert not optimizer.state
    if make is magma:
        with pytest.raises(ValueError, match=wanted):
            save_state(optimizer, tmp_path / "state")


def test_the_selection_of_lazy_parameters_asks_for_a_forward():
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.LazyLinear(4), "fc2": nn.Linear(4, 4)})})
    with pytest.raises(ValueError, match=r"'mlp\.fc1\.weight' has no shape yet: call the forward"):
        attention_and_mlp(model, quiet=True)


# Groups edited in place


class Alone:
    """Every parameter also in an optimizer of its own, which edits of groups do not touch."""

    def __init__(self, make: Callable[..., Any], named: Iterable[tuple[str, Parameter]]) -> None:
        self.twins = {p: (name, Parameter(p.detach().clone())) for name, p in named}
        self.optimizers = {p: make([twin]) for p, twin in self.twins.items()}

    def follow(self, optimizer: Any) -> None:
        """A step of both, compared."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for i, p in enumerate(params):
            p.grad, self.twins[p][1].grad = torch.full_like(p, 1.0 + i), torch.full_like(p, 1.0 + i)
            self.optimizers[p].step()
        optimizer.step()
        assert names(optimizer) == [self.twins[p][0] for p in params]
        for p in params:
            assert_bits_equal(*snapshot([p, self.twins[p][1]]))


def edit_filter(group: dict[str, Any]) -> None:
    del group["params"][0]


def edit_reorder(group: dict[str, Any]) -> None:
    group["params"] = group["params"][::-1]


def edit_both(group: dict[str, Any]) -> None:
    group["params"], group["param_names"] = group["params"][1:], group["param_names"][1:]


@both
@pytest.mark.parametrize("edit", [edit_filter, edit_reorder, edit_both])
def test_names_follow_their_tensors(make, edit):
    """Each parameter goes on as it does alone, and so does the run that loads the checkpoint."""
    named = pairs("a", "b", "c")
    optimizer, alone = make(named), Alone(make, named)
    for _ in range(3):
        alone.follow(optimizer)
    edit(optimizer.param_groups[0])
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names(optimizer)
    for _ in range(3):
        alone.follow(optimizer)
    loaded = make([(name, Parameter(p.detach().clone())) for name, p in optimizer._named()])
    loaded.load_state_dict(deepcopy(optimizer.state_dict()))
    for _ in range(2):
        step(optimizer)
        step(loaded)
    for (name, mine), (_, other) in zip(optimizer._named(), loaded._named(), strict=True):
        assert_bits_equal(*snapshot([mine, other]), name)


@both
def test_a_parameter_that_returns_goes_on_where_it_was(make):
    """Frozen for a while by taking it out, and put back into another group."""
    first, second = pairs("a", "b"), pairs("c")
    optimizer, alone = make([{"params": first}, {"params": second}]), Alone(make, first + second)
    alone.follow(optimizer)
    a = optimizer.param_groups[0]["params"].pop(0)
    alone.follow(optimizer)
    assert len(optimizer.state_dict()["state"]) == 2
    optimizer.param_groups[1]["params"].append(a)
    for _ in range(3):
        alone.follow(optimizer)
    assert names(optimizer) == ["b", "c", "a"]
    group, kept = optimizer.param_groups[1], optimizer.param_groups[1]["params"]
    for params in ([], kept):
        group["params"] = params
        alone.follow(optimizer)


@both
def test_an_appended_tensor_gets_a_name_and_a_warning(make):
    named = pairs("a", "0.1")
    optimizer = make(named)
    step(optimizer)
    new = Parameter(torch.ones(4))
    optimizer.param_groups[0]["params"].insert(0, new)
    with pytest.warns(UserWarning, match=r"group 0 has a parameter of shape \(4,\) without a name.*'0\.0'.*add_param_"):
        step(optimizer)
    assert names(optimizer) == ["0.0", "a", "0.1"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["0.0", "a", "0.1"]
    assert int(next(x for key, x in optimizer.state[new].items() if key in ("step", "magma_step"))) == 1
    optimizer.param_groups[0]["params"].pop()
    step(optimizer)
    optimizer.param_groups[0]["params"].append(Parameter(torch.ones(4)))
    with pytest.warns(UserWarning, match=r"'0\.2'"):
        step(optimizer)  # not the name of the one that left
    step(optimizer)


@both
def test_names_may_be_appended_with_the_tensors(make):
    optimizer = make(pairs("a"))
    step(optimizer)
    group = optimizer.param_groups[0]
    group["params"] += [p for _, p in pairs("b")]
    group["param_names"] = [*group["param_names"], "b"]
    step(optimizer)
    assert set(optimizer.alignment()) == {"a", "b"}
    group["param_names"].append("c")
    with pytest.raises(ValueError, match=r"group 0 has 2 params and 3 param_names: edit"):
        step(optimizer)
    group["param_names"][1:] = ["a"]
    with pytest.raises(ValueError, match="two parameters are called 'a'"):
        step(optimizer)


@both
def test_a_group_may_be_added_after_an_edit(make):
    optimizer = make(pairs("a", "b"))
    step(optimizer)
    gone = optimizer.param_groups[0]["params"].pop(0)
    optimizer.add_param_group({"params": [("a", gone)], "lr": 0.01})
    step(optimizer)
    assert names(optimizer) == ["b", "a"]
    del optimizer.param_groups[0]
    step(optimizer)
    assert names(optimizer) == ["a"]


@both
def test_a_tensor_that_replaces_another_is_saved_before_its_first_step(make):
    optimizer = make(pairs("a", "b"))
    step(optimizer)
    group = optimizer.param_groups[0]
    group["params"] = [Parameter(p.detach().clone()) for p in group["params"]]
    assert sorted(optimizer.state_dict()["state"]) == [0, 1]


@both
def test_unnamed_parameters_are_named_by_position_after_an_edit(make: Callable[..., Any]):
    with pytest.warns(UserWarning, match=r"'0\.0'"):
        optimizer = make([p for _, p in pairs("a", "b", "c")])
    step(optimizer)
    del optimizer.param_groups[0]["params"][0]
    step(optimizer)
    assert set(optimizer.alignment()) == {"0.0", "0.1"}
    assert len(optimizer.state_dict()["state"]) == 2
