"""Wrong calls, as users of other optimizers make them: each raises, says the remedy, and changes nothing.

A row is one line: the call, the type of the error, and a part of its text. Names in calls are those of `namespace`.
"""

import re
import warnings
from typing import Any

import magma_torch
import pytest
import torch
from torch.nn import Linear, Parameter

import magma_core

CALLS = [
    # Not parameters
    ("Magma(model)", TypeError, "params must be a list of tensors, of (name, tensor) pairs or of groups, got an"),
    ("Magma(model)", TypeError, "of type Linear: pass its named_parameters(), or attention_and_mlp(model)"),
    ("Magma(model.named_parameters)", TypeError, "got an object of type method: call it"),
    ("Magma(adamw)", TypeError, "of type AdamW: wrap(optimizer) masks the steps of another optimizer, as in"),
    ("Magma(torch.optim.AdamW)", TypeError, "got the class AdamW: base= chooses one of ours, as in base='adamw'"),
    ("Magma(optimizer)", TypeError, "got an object of type Magma: wrap(optimizer) masks"),
    ("Magma(None)", TypeError, "got an object of type NoneType: pass model.named_parameters()"),
    ("Magma(0.1)", TypeError, "got an object of type float: pass model.named_parameters()"),
    ("Magma('weight')", TypeError, "got an object of type str: pass model.named_parameters()"),
    ("Magma(model.state_dict())", TypeError, "got an object of type OrderedDict: pass its items()"),
    ("Magma(dict(model.named_parameters()))", TypeError, "got an object of type dict: pass its items()"),
    ("Magma({'params': [w]})", TypeError, "got an object of type dict: pass its items(), or put a group into a list"),
    ("Magma({w})", TypeError, "got an object of type set: sets have another order in every run, so pass a list"),
    ("Magma(tensor)", TypeError, "params argument given to the optimizer should be an iterable"),
    ("Magma([])", ValueError, "optimizer got an empty parameter list"),
    ("Magma(consumed)", ValueError, "optimizer got an empty parameter list"),
    ("Magma([('a', model)])", TypeError, "optimizer can only optimize Tensors, but one of the params is torch.nn."),
    ("Magma([('a', tensor * 2)])", ValueError, "can't optimize a non-leaf Tensor"),
    ("Magma([w, ('a', tensor)])", ValueError, "two parameters are called 'a': names key the masks"),
    (
        "Magma([('a', tensor.double())])",
        TypeError,
        "parameter 'a' must be float32, bfloat16 or float16, got torch.float64",
    ),
    # Keywords that other optimizers have
    ("Magma([w], fused=True)", TypeError, "Magma() got an unexpected keyword argument 'fused': compile=True fuses"),
    ("Magma([w], foreach=True)", TypeError, "'foreach': compile=True steps all parameters in one call"),
    ("Magma([w], maximize=True)", TypeError, "'maximize': negate the loss instead"),
    ("Magma([w], capturable=True)", TypeError, "'capturable': with compile=True every step on CUDA can be captured"),
    ("Magma([w], differentiable=True)", TypeError, "'differentiable': keep masks have no derivative"),
    ("Magma([w], amsgrad=True)", TypeError, "'amsgrad': no base here keeps a maximum"),
    ("Magma([w], base='sgd', momentum=0.9)", TypeError, "'momentum': it belongs to the base, as in"),
    ("Magma([w], base='sgd', nesterov=True)", TypeError, "'nesterov': it belongs to the base, as in base=magma_core"),
    ("Magma([w], base='sgd', dampening=0.1)", TypeError, "'dampening': SGD has none here"),
    ("Magma([w], base='rmsprop', alpha=0.9)", TypeError, "'alpha': it belongs to the base, as in"),
    ("Magma([w], base='rmsprop', centered=True)", TypeError, "'centered': RMSProp is not centered here"),
    ("Magma([w], learning_rate=0.1)", TypeError, "Magma() got an unexpected keyword argument 'learning_rate'. Did you"),
    ("Magma([w], learning_rate=0.1)", TypeError, "Did you mean 'lr'?"),
    ("Magma([w], beta1=0.9)", TypeError, "'beta1'. Did you mean 'betas'?"),
    ("Magma([w], epsilon=1e-8)", TypeError, "'epsilon'. Did you mean 'eps'?"),
    ("Magma([w], mask_prob=0.5)", TypeError, "'mask_prob'. Did you mean 'p'?"),
    ("Magma([w], survival_prob=0.5)", TypeError, "'survival_prob'. Did you mean 'p'?"),
    ("Magma([w], temperature=2.0)", TypeError, "'temperature'. Did you mean 'tau'?"),
    ("Magma([w], alignment_ema=0.9)", TypeError, "'alignment_ema'. Did you mean 'ema'?"),
    ("Magma([w], momentum_beta=0.9)", TypeError, "'momentum_beta': the score uses the first moment of the base"),
    ("Magma([w], moment_key='exp_avg')", TypeError, "'moment_key': wrap() finds the first moment itself"),
    ("Magma([w], exclude={v})", TypeError, "'exclude': put those parameters into a group of their own, with masked="),
    # Misspelt keywords: the message names the class
    ("Magma([w], weight_deacy=0.1)", TypeError, "Magma() got an unexpected keyword argument 'weight_deacy'. Did you"),
    ("Magma([w], weight_deacy=0.1)", TypeError, "Did you mean 'weight_decay'?"),
    ("Magma([w], block_axis=())", TypeError, "Did you mean 'block_axes'?"),
    ("Magma([w], mask=False)", TypeError, "Did you mean 'masked'?"),
    ("Magma([w], what=1)", TypeError, "'what': its arguments are params, lr, p, tau, ema"),
    ("SkipUpdate([w], sed=1)", TypeError, "SkipUpdate() got an unexpected keyword argument 'sed'. Did you mean"),
    ("SkipUpdate([w], tau=2.0)", TypeError, "'tau': it belongs to rules with scores: Magma, or MaskedOptimizer with"),
    ("Magma([w], rule=rule)", TypeError, "Magma() got an unexpected keyword argument 'rule': MaskedOptimizer takes a"),
    ("Magma([w], survival='score')", TypeError, "'survival': it belongs to the rule, as in MaskedOptimizer(params,"),
    ("MaskedOptimizer([w], rule=rule, p=0.3)", TypeError, "'p': it belongs to the rule, as in"),
    ("MaskedOptimizer([w], rule=rule, decay='dense')", TypeError, "'decay': it belongs to the rule, as in"),
    ("MaskedOptimizer([w])", TypeError, "missing 1 required keyword-only argument: 'rule'"),
    ("MaskedOptimizer([w], rule='magma')", TypeError, "rule must be a magma_core.Rule such as magma() or"),
    ("save_state(optimizer, 'none', nmes={})", TypeError, "save_state() got an unexpected keyword argument 'nmes'."),
    ("load_state(optimizer, 'none', strct=False)", TypeError, "load_state() got an unexpected keyword argument"),
    # Values
    ("Magma([w], 'adamw')", TypeError, "lr must be a real number, got 'adamw' of type str"),
    ("Magma([w], 0.1, 0.5)", TypeError, "takes from 2 to 3 positional arguments but 4 were given"),
    ("Magma([w], lr=-1.0)", ValueError, "lr must be at least 0 and finite in float32, got -1.0"),
    ("Magma([w], lr_scale=0)", ValueError, "lr_scale must be positive, got 0: to freeze parameters, leave them out"),
    ("Magma([w], lr_scale=None)", TypeError, "lr_scale must be a real number, got None of type NoneType"),
    ("Magma([w], cosine_momentum='x')", ValueError, "cosine_momentum must be one of 'after', 'before', got 'x'"),
    ("Magma([w], cosine_momentum=0.9)", ValueError, "cosine_momentum must be one of 'after', 'before', got 0.9"),
    ("Magma([w], decay='x')", ValueError, "decay must be one of 'masked', 'dense', got 'x'"),
    ("Magma([w], base='AdamW')", ValueError, "base must be one of 'sgd', 'rmsprop', 'adam', 'adamw', 'laprop' or a"),
    ("Magma([w], base=torch.optim.AdamW)", TypeError, "to mask the steps of another optimizer, wrap it"),
    ("Magma([w], base=adamw)", TypeError, "to mask the steps of another optimizer, wrap it"),
    ("Magma([w], base='sgd', betas=(0.9, 0.9))", ValueError, "betas does not belong to base 'sgd', which has"),
    ("Magma([w], betas=0.9)", ValueError, "betas must be two numbers, got 0.9"),
    ("Magma([w], betas=(0.9, 1.0))", ValueError, "beta2 must lie in [0, 0.99999994], got 1.0"),
    ("Magma([w], eps=0)", ValueError, "eps must be at least 7.88861e-31 and finite in float32, got 0"),
    ("Magma([w], p=1.5)", ValueError, "p must lie in [0, 1], got 1.5"),
    ("Magma([w], seed=None)", TypeError, "seed must be an integer, got None of type NoneType"),
    ("Magma([w], masked=1)", TypeError, "masked must be True or False, got 1"),
    ("Magma([w], block_axes=0)", TypeError, "block_axes must be a sequence of integers such as () or (0,), got 0"),
    ("Magma([w], block_axes=(5,))", ValueError, "has axis 5, out of range for shape (3, 2): use axes from -2 to 1"),
    ("Magma([w], compile='yes')", TypeError, "compile must be True or False, got 'yes'"),
    # Entries of new groups
    ("Magma([{'param': [w]}])", ValueError, "parameter group 0 has an entry 'param', which is not read. Did you mean"),
    ("Magma([{'lr': 0.1}])", ValueError, "parameter group 0 has no entry 'params', got ['lr']"),
    ("Magma([group(params=model)])", TypeError, "params of group 0 must be a list of tensors"),
    ("Magma([group(params=None)])", TypeError, "params of group 0 must be a list of tensors"),
    ("Magma([group(weight_deacy=0.1)])", ValueError, "'weight_deacy', which is not read. Did you mean 'weight_decay'?"),
    ("Magma([group(block_axis=())])", ValueError, "'block_axis', which is not read. Did you mean 'block_axes'?"),
    ("Magma([group(mask=False)])", ValueError, "'mask', which is not read. Did you mean 'masked'?"),
    ("Magma([group(maskd=False)])", ValueError, "'maskd', which is not read. Did you mean 'masked'?"),
    ("Magma([group(), group(v, sed=1)])", ValueError, "parameter group 1 has an entry 'sed', which is not read. Did"),
    ("Magma([group(learning_rate=0.1)])", ValueError, "'learning_rate', which is not read. Did you mean 'lr'?"),
    ("Magma([group(mask_prob=0.5)])", ValueError, "'mask_prob', which is not read. Did you mean 'p'?"),
    ("Magma([group(exclude=True)])", ValueError, "'exclude', which is not read: put those parameters into a group of"),
    ("Magma([group(rule=rule)])", ValueError, "'rule', which is not read: give its fields, as in {'survival': 'p',"),
    ("Magma([group(foreach=True)])", ValueError, "foreach=True is not supported: compile=True steps all parameters"),
    ("Magma([group(fused=True)])", ValueError, "fused=True is not supported: compile=True fuses"),
    ("Magma([group(momentum=0.5)])", ValueError, "momentum does not belong to base 'adamw', which has betas, eps,"),
    ("Magma([group(base='sgd', eps=1e-6)])", ValueError, "eps does not belong to base 'sgd', which has momentum,"),
    ("optimizer.add_param_group([v])", TypeError, "param_group must be a dict, but got <class 'list'>"),
    ("optimizer.add_param_group(group(v, maskd=False))", ValueError, "parameter group 1 has an entry 'maskd'"),
    ("optimizer.add_param_group(group(tensor))", ValueError, "all optimizer param groups should be with/without names"),
    ("wrapped.add_param_group(group(v, seeds=1))", ValueError, "'seeds', which is not read. Did you mean"),
    # Wrapping
    ("Magma.wrap(model)", TypeError, "optimizer must be one of torch such as torch.optim.AdamW(params), got an object"),
    ("Magma.wrap([w])", TypeError, "got an object of type list: for parameters, leave out wrap, as in Magma(params)"),
    ("Magma.wrap(torch.optim.AdamW)", TypeError, "got the class AdamW: give it parameters, as in AdamW(params)"),
    ("Magma.wrap(optimizer)", TypeError, "optimizer is a Magma, which masks its steps already: use it as it is, or"),
    ("SkipUpdate.wrap(wrapped)", TypeError, "optimizer is a Wrapped, which masks its steps already: use it as it is"),
    ("Magma.wrap(wrapped.optimizer)", ValueError, "AdamW has an option 'survival' already: it is wrapped"),
    ("Magma.wrap(adamw, lr=0.1)", TypeError, "Magma.wrap() got an unexpected keyword argument 'lr': give it to the"),
    ("Magma.wrap(adamw, betas=(0.9, 0.9))", TypeError, "'betas': give it to the optimizer that is wrapped"),
    ("Magma.wrap(adamw, foreach=True)", TypeError, "'foreach': give it to the optimizer that is wrapped"),
    ("Magma.wrap(adamw, base='sgd')", TypeError, "'base': give it to the optimizer that is wrapped"),
    ("Magma.wrap(adamw, decay='dense')", TypeError, "'decay': weight decay is part of the wrapped optimizer's update"),
    ("Magma.wrap(adamw, mask_prob=0.5)", TypeError, "'mask_prob'. Did you mean 'p'?"),
    ("Magma.wrap(adamw, cosine_momentum='x')", ValueError, "cosine_momentum must be one of 'after', 'before', got 'x'"),
    ("Magma.wrap(torch.optim.SGD([group(block_axis=())]))", ValueError, "Did you mean 'block_axes'?"),
    ("Wrapped(adamw, rule=rule, p=0.5)", TypeError, "Wrapped() got an unexpected keyword argument 'p': it belongs to"),
    # Steps
    ("optimizer.step(loss)", TypeError, "closure must be a function that computes the loss anew, got an object of"),
    ("optimizer.step(loss)", TypeError, "after loss.backward(), call step()"),
    ("optimizer.step(0.5)", TypeError, "got an object of type float: after loss.backward(), call step()"),
    ("wrapped.step(loss)", TypeError, "closure must be a function that computes the loss anew"),
    ("edited(base='sgd')", ValueError, "a parameter group has no entry 'momentum', which base 'sgd' needs: to change"),
    ("edited(base='rmsprop')", ValueError, "has no entry 'beta2', which base 'rmsprop' needs"),
    ("edited(base='lion')", ValueError, "base of a group must be one of 'sgd', 'rmsprop', 'adam', 'adamw', 'laprop',"),
    ("edited(foreach=True)", ValueError, "foreach=True is not supported: compile=True steps all parameters in one"),
    ("edited(lr='x')", TypeError, "lr must be a real number, got 'x' of type str"),
    ("edited(betas=0.9)", ValueError, "betas must be two numbers, got 0.9"),
    ("edited(p=2)", ValueError, "p must lie in [0, 1], got 2"),
    ("edited(cosine_momentum=0.9)", ValueError, "cosine_momentum must be one of 'after', 'before', got 0.9"),
    ("edited(masked='no')", TypeError, "masked must be True or False, got 'no'"),
    ("edited_state('score', torch.ones(2))", ValueError, "state['score'] of 'a' has shape (2,), its blocks (3,):"),
    ("edited_state('mu', torch.ones(2))", ValueError, "state['mu'] of 'a' has shape (2,), the parameter (3, 2): clear"),
    # Checkpoints
    ("optimizer.load_state_dict('file.pt')", TypeError, "the state_dict must be a dict, got 'file.pt' of type str"),
    ("optimizer.load_state_dict(model.state_dict())", ValueError, "the state_dict has no entry 'param_groups', only"),
    ("optimizer.load_state_dict(adamw.state_dict())", ValueError, "group 0 of the loaded state has no entry 'base':"),
    ("optimizer.load_state_dict(skipping.state_dict())", ValueError, "group 0 of the loaded state has weight"),
    ("optimizer.load_state_dict(skipping.state_dict())", ValueError, "(Magma has 'score', SkipUpdate 'inverse_p'):"),
    ("skipping.load_state_dict(optimizer.state_dict())", ValueError, "has weight 'score', the optimizer 'inverse_p'"),
    ("optimizer.load_state_dict(of_sgd.state_dict())", ValueError, "has base 'sgd', the optimizer 'adamw': load it"),
    ("of_sgd.load_state_dict(optimizer.state_dict())", ValueError, "has base 'adamw', the optimizer 'sgd'"),
    ("wrapped.load_state_dict(wrapped_skipping.state_dict())", ValueError, "has weight 'inverse_p', the optimizer"),
    ("optimizer.load_state_dict(without('score'))", ValueError, "the loaded state of 'a' lacks 'score': it was saved"),
    ("optimizer.load_state_dict(emptied('score'))", ValueError, "the loaded state of 'a' lacks 'score'"),
    ("optimizer.load_state_dict(emptied('step'))", ValueError, "the loaded state of 'a' lacks 'step'"),
    ("wrapped.load_state_dict(emptied('exp_avg', wrapped))", ValueError, "the loaded state of 'a' lacks 'exp_avg'"),
    ("wrapped.load_state_dict(emptied('magma_score', wrapped))", ValueError, "state of 'a' lacks 'magma_score'"),
    ("save_state(adamw, 'none')", TypeError, "optimizer must be a Magma, SkipUpdate or MaskedOptimizer, got AdamW"),
    ("save_state(wrapped, 'none')", TypeError, "got Wrapped: the state of another optimizer, wrapped or not, is its"),
    ("load_state('none', optimizer)", TypeError, "optimizer must be a Magma, SkipUpdate or MaskedOptimizer, got str"),
]

WARNINGS = [
    (
        "Magma([group(tensor, masked=False), group(params=consumed)])",
        "parameter group 1 has no parameters: its iterator gave none",
    ),
    ("edited(weight_deacy=0.1)", "parameter group 0 has an entry 'weight_deacy', which is not read. Did you mean"),
    ("edited(maskd=False)", "parameter group 0 has an entry 'maskd', which is not read. Did you mean 'masked'?"),
    ("edited_wrapped(block_axis=())", "parameter group 0 has an entry 'block_axis', which is not read. Did you mean"),
]

RIGHT = [
    "Magma([group(initial_lr=0.1, swa_lr=0.1, max_lr=1.0, min_lr=0.0, max_momentum=0.9, base_momentum=0.8)])",
    "Magma([group(name='head', lr_mult=0.1, decay_mult=0.0, wd_mult=1.0, layer=3, scale=2, rank=8, use_muon=True)])",
    "Magma([group(fused=None, foreach=None, maximize=False, amsgrad=False, capturable=False, differentiable=False)])",
    "Magma(torch.nn.ParameterList([tensor]), masked=False)",
    "Magma(dict(model.named_parameters()).items())",
    "Magma(torch.optim.AdamW([w]).param_groups)",
    "Magma(torch.optim.Adam([w]).param_groups, base='adam')",
    "Magma(torch.optim.SGD([w], momentum=0.8).param_groups, base='sgd')",
    "Magma([group(weight_decay=0.0)], base='adam')",
    "Magma([group(params=[]), group(tensor, masked=False)])",
    "Magma([group(params=iter([w]))])",
    "Magma.wrap(torch.optim.SGD([group(name='head', initial_lr=0.1, momentum=0.5)]))",
    "edited(name='head', initial_lr=0.1, weight_decay=0.0, step=3)",
    "edited_wrapped(foreach=True, name='head')",
    "edited(base='laprop')",
]


def namespace() -> dict[str, Any]:
    """What the calls are made of; each gets its own."""
    w, v = ("a", Parameter(torch.ones(3, 2))), ("b", Parameter(torch.ones(4)))
    tensor, model = Parameter(torch.ones(2)), Linear(2, 2)

    def stepped(make: Any, **options: Any) -> Any:
        param = Parameter(torch.ones(3, 2))
        optimizer = make([{"params": [("a", param)], "block_axes": (0,)}], **options)
        param.grad = torch.full((3, 2), 0.5)
        optimizer.step()
        return optimizer

    def wrap(kind: Any) -> Any:
        return lambda params: kind.wrap(torch.optim.AdamW(params), compile=False)

    optimizer, wrapped = stepped(magma_torch.Magma, compile=False), stepped(wrap(magma_torch.Magma))

    def group(*params: Any, **entries: Any) -> dict[str, Any]:
        return {"params": list(params or [w]), **entries}

    def edited(**entries: Any) -> None:
        optimizer.param_groups[0].update(entries)
        optimizer.step()

    def edited_wrapped(**entries: Any) -> None:
        wrapped.param_groups[0].update(entries)
        wrapped.step()

    def edited_state(field: str, value: Any) -> None:
        optimizer.state[optimizer.param_groups[0]["params"][0]][field] = value
        optimizer.step()

    def emptied(field: str, of: Any = optimizer) -> dict[str, Any]:
        saved = of.state_dict()
        saved["state"][0] = {**saved["state"][0], field: {}}
        return saved

    def without(field: str) -> dict[str, Any]:
        saved = emptied(field)
        del saved["state"][0][field]
        return saved

    return {
        **{name: getattr(magma_torch, name) for name in magma_torch.__all__},
        **locals(),
        "torch": torch,
        "adamw": torch.optim.AdamW([w]),
        "skipping": stepped(magma_torch.SkipUpdate, compile=False),
        "of_sgd": stepped(magma_torch.Magma, base="sgd", compile=False),
        "wrapped_skipping": stepped(wrap(magma_torch.SkipUpdate)),
        "rule": magma_core.damping(),
        "consumed": iter(()),
        "loss": model(torch.ones(2)).sum(),
    }


def contents(names: dict[str, Any]) -> Any:
    """All that the optimizers hold, except options that a call edits."""
    found: list[Any] = []
    for optimizer in (names["optimizer"], names["wrapped"]):
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            state = {key: value.tolist() for key, value in optimizer.state[param].items()}
            found.append((param.tolist(), state))
    return found


@pytest.mark.parametrize(("call", "error", "text"), CALLS, ids=[f"{i} {row[0]}" for i, row in enumerate(CALLS)])
def test_wrong_call(call, error, text):
    names = namespace()
    before = contents(names)
    with pytest.raises(error) as raised:
        eval(call, names)
    assert text in str(raised.value)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)
    if "edited_state" not in call:
        assert contents(names) == before


def test_the_table_is_long_enough():
    assert len({call for call, _, _ in CALLS}) >= 60


@pytest.mark.parametrize(("call", "text"), WARNINGS, ids=[row[0] for row in WARNINGS])
def test_call_that_warns(call, text):
    names = namespace()
    with pytest.warns(UserWarning, match=re.escape(text)) as warned:
        eval(call, names)
    assert {one.filename for one in warned} <= {"<string>", __file__}  # where the user called


@pytest.mark.parametrize("call", RIGHT)
def test_call_that_is_right(call):
    """Entries of groups that are others', or say nothing, neither raise nor warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eval(call, namespace())
