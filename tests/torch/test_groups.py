"""The parameter groups that `attention_and_mlp` makes; which tensors it selects: tests/core, tests/trainers."""

import pytest
import torch
from magma_torch import Magma, attention_and_mlp
from torch import nn


def model(names: str, shape: tuple[int, ...] = (4, 4)) -> nn.Module:
    """A module with parameters of these names."""
    root = nn.Module()
    for name in names.split():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        small = leaf == "bias" or "norm" in name or "ln_" in name
        module.register_parameter(leaf, nn.Parameter(torch.ones(4) if small else torch.ones(shape)))
    return root


LLAMA = "layers.0.self_attn.q_proj.weight layers.0.mlp.gate_proj.weight layers.0.norm.weight lm_head.weight"


def selected(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The block axes of the masked parameters."""
    groups = attention_and_mlp(model, quiet=True)
    return {name: group["block_axes"] for group in groups if group["masked"] for name, _ in group["params"]}


def test_groups():
    masked, plain = attention_and_mlp(model(LLAMA), quiet=True)
    assert [name for name, _ in masked["params"]] == LLAMA.split()[:2]
    assert [name for name, _ in plain["params"]] == LLAMA.split()[2:]
    assert (masked["masked"], masked["block_axes"], plain["masked"]) == (True, (), False)


@pytest.mark.parametrize("layer", [nn.TransformerDecoderLayer(8, 2, 16), nn.MultiheadAttention(8, 2)])
def test_layers_of_torch(layer):
    matrices = [name for name, p in layer.named_parameters() if p.ndim == 2]
    assert selected(layer) == dict.fromkeys(matrices, ())


def test_classes_of_modules_count():
    class CausalSelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.positions = nn.Linear(8, 24), nn.Embedding(8, 8)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.y, self.mix = CausalSelfAttention(), nn.Linear(8, 8), nn.Conv1d(8, 8, 3)

    assert selected(nn.ModuleDict({"h": nn.ModuleList([Block()]), "top": nn.Linear(8, 8)})) == {
        "h.0.x.a.weight": (),
        "h.0.y.weight": (),
    }


def test_modules_that_wrap_others_do_not_count():
    wrapped = nn.Module()
    wrapped.add_module("module", nn.TransformerEncoderLayer(8, 2, 16))
    assert selected(wrapped) == selected(wrapped.module)


def test_no_parameter_is_lost_where_a_module_is_called_module():
    assert list(selected(model("mlp.fc1.weight mlp.module.fc1.weight"))) == ["mlp.fc1.weight", "mlp.module.fc1.weight"]


def test_weight_norm_and_convolutions():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    nn.utils.parametrizations.weight_norm(layer.linear1)
    layer.self_attn.conv = nn.Conv1d(8, 8, 3)
    with pytest.warns(UserWarning, match=r"not masked: self_attn.conv.weight\. To mask"):
        names = selected(layer)
    assert "linear1.parametrizations.weight.original1" in names
    assert "linear1.parametrizations.weight.original0" not in names


def test_stacked_experts_are_a_block_each():
    stacked = model("layers.0.mlp.experts.gate_up_proj", (3, 4, 4))
    (group,) = attention_and_mlp(stacked, quiet=True)
    assert group["block_axes"] == (0,)
    optimizer = Magma([group], compile=False)
    for p in stacked.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.alignment()["layers.0.mlp.experts.gate_up_proj"].keep.shape == (3,)


def test_frozen_parameters_are_left_out():
    frozen = model(LLAMA)
    frozen.get_parameter("lm_head.weight").requires_grad_(False)
    groups = attention_and_mlp(frozen, quiet=True)
    assert "lm_head.weight" not in [name for group in groups for name, _ in group["params"]]


def test_what_was_found_is_printed(capsys):
    attention_and_mlp(model("layers.0.mlp.fc1.weight layers.1.mlp.fc1.weight layers.1.norm.weight lm_head.weight"))
    assert capsys.readouterr().out.splitlines() == [
        "matrices, one block each: 2 tensors, 32 elements",
        "  layers.*.mlp.fc1.weight",
        "not masked: 2 tensors, 20 elements",
        "  layers.*.norm.weight",
        "  lm_head.weight",
    ]


def test_names_are_never_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    names = [f"{'decoder.' * 30}layers.0.{name}" for name in ("mlp.fc1.weight", "mlp.fc2.weight", "norm.weight")]
    attention_and_mlp(model(" ".join(names)))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "decoder" in line] == [f"  {name.replace('.0.', '.*.')}" for name in names]


def test_a_layer_that_is_masked_in_part_is_warned_of():
    jamba = model("layers.0.mamba.in_proj.weight layers.1.mamba.in_proj.weight layers.1.mlp.up_proj.weight")
    with pytest.warns(
        UserWarning, match=r"masked in part.*not masked: layers\.\*\.mamba\.in_proj\.weight\. "
    ) as warned:
        attention_and_mlp(jamba, quiet=True)
    assert warned[0].filename == __file__


def test_quiet_prints_nothing(capsys):
    attention_and_mlp(model("layers.0.mlp.fc1.weight"), quiet=True)
    assert not capsys.readouterr().out


def test_a_model_without_any_is_refused():
    with pytest.raises(ValueError, match=r"no attention or MLP matrix .* 'weight'"):
        attention_and_mlp(nn.Linear(2, 2), quiet=True)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda: nn.Linear(2, 2).parameters(), TypeError, r"give the model itself, got <generator"),
        (lambda: dict(nn.Linear(2, 2).named_parameters()), TypeError, r"model must be a torch.nn.Module"),
        (
            lambda: nn.Linear(2, 2).requires_grad_(False),
            ValueError,
            r"no parameter that requires a gradient, and 2 that are frozen",
        ),
    ],
)
def test_wrong_calls(wrong, error, said):
    with pytest.raises(error, match=said):
        attention_and_mlp(wrong())
