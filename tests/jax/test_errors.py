"""Wrong calls, one per line: each is refused with a message that says what is wrong and what to do, on one line.

In the texts, … stands for anything.
"""

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from magma_jax import (
    MagmaState,
    by_rule,
    load_state,
    magma,
    save_state,
    scale_by_magma,
    skip_update,
    wrap,
    wrap_magma,
    wrap_skip_update,
)
from paths import REPOSITORY

import magma_core
from magma_core import AdamW

Row: TypeAlias = tuple[Callable[[], Any], type[Exception], str]

V, T = ValueError, TypeError
X = np.float32([1.0, 2.0])
P = {"w": np.ones((2, 3), np.float32)}
TENSOR = SimpleNamespace(dtype="torch.float32", shape=(2,))
MATRIX, THREE = P["w"], jnp.ones(3)
LARGE = {"w": jnp.ones((2, 3)), "b": jnp.arange(40.0)}
M = magma(0.1)
NOWHERE = "/nowhere/state"


def start(params: Any = P, /, **options: Any) -> MagmaState:
    return magma(0.1, **options).init(params)


def update(optimizer: Any = M, grads: Any = P, params: Any = P, state: Any = None) -> Any:
    return optimizer.update(grads, optimizer.init(P) if state is None else state, params)


def scheduled(schedule: Callable[[Any], Any]) -> Any:
    return magma(schedule).init(P)


# fmt: off
NUMBERS: list[Row] = [
    (lambda: magma(0.1, b1=1.0), V, "b1 must lie in [0, 0.99999994], got 1.0"),
    (lambda: magma(0.1, b2=-0.1), V, "b2 must lie in [0, 0.99999994], got -0.1"),
    (lambda: magma(0.1, b1=math.nan), V, "b1 must be a number, got nan"),
    (lambda: magma(0.1, b1=np.ones((1, 1))), V, "b1 must be … float array of shape (), got float64 of shape (1, 1)"),
    (lambda: magma(0.1, eps=0), V, "eps must be at least 7.88861e-31 and finite in float32, got 0"),
    (lambda: magma(0.1, weight_decay=-1), V, "weight_decay must be at least 0 and finite in float32, got -1"),
    (lambda: magma(0.1, weight_decay=lambda t: 0.1), T, "weight_decay must be a real number, got <function"),
    (lambda: magma(0.1, weight_decay=P), T, "weight_decay must be a real number, got {'w': array("),
    (lambda: magma(0.1, p=1.5), V, "p must lie in [0, 1], got 1.5"),
    (lambda: skip_update(0.1, p="half"), T, "p must be a real number, got 'half' of type str"),
    (lambda: magma(0.1, p=THREE), V, "p must be … float array of shape (), got float32 of shape (3,)"),
    (lambda: magma(0.1, tau=0), V, "tau must be at least 7.88861e-31 and finite in float32, got 0"),
    (lambda: magma(0.1, tau=jnp.array(2)), V, "tau must be … float array of shape (), got int32 of shape ()"),
    (lambda: magma(0.1, ema=1), V, "ema must lie in [0, 0.99999994], got 1"),
    (lambda: magma(0.1, initial_score=2), V, "initial_score must lie in [0, 1], got 2"),
    (lambda: magma(0.1, cosine_momentum="now"), V, "cosine_momentum must be one of 'after', 'before', got 'now'"),
    (lambda: magma(0.1, decay="no"), V, "decay must be one of 'masked', 'dense', got 'no'"),
    (lambda: magma(0.1, lr_scale=0), V, "lr_scale must be positive, got 0: to freeze parameters, leave them out"),
    (lambda: magma(0.1, lr_scale=P), T, "lr_scale must be a real number, got {'w': array("),
    (lambda: magma(0.1, float32_updates="no"), T, "float32_updates must be True or False, got 'no'"),
    (lambda: magma(0.1, kernels=1), T, "kernels must be True or False, got 1"),
    (lambda: magma(0.1, seed=-1), V, "seed must lie in [0, 18446744073709551615], got -1: take it modulo 2**64"),
    (lambda: magma(0.1, seed=2**64), V, "seed must lie in … got 18446744073709551616: take it modulo 2**64"),
    (lambda: magma(0.1, seed=0.5), T, "seed must be an integer, got 0.5 of type float"),
    (lambda: magma(0.1, seed="0"), T, "seed must be an integer, got '0' of type str"),
    (lambda: magma(0.1, seed=jnp.ones(())), T, "seed must be an integer or an integer array of shape (), got float32"),
    (lambda: magma(0.1, seed=jnp.arange(2)), T, "integer array of shape (), got int32 of shape (2,)"),
    (lambda: magma(0.1, seed=jax.random.key(0)), T, "seed must be … got key<fry> … give jax.random.bits(key)"),
    (lambda: magma(0.1, seed=jax.random.PRNGKey(0)), T, "got uint32 of shape (2,): of keys … jax.random.bits(key)"),
]
RATES: list[Row] = [
    (lambda: magma(-0.1), V, "learning_rate must be at least 0 and finite in float32, got -0.1"),
    (lambda: skip_update(math.nan), V, "learning_rate must be a number, got nan"),
    (lambda: magma("0.1"), T, "learning_rate must be a real number, got '0.1' of type str"),
    (lambda: magma(None), T, "learning_rate must be a real number, got None"),
    (lambda: magma(THREE), V, "learning_rate must be … of shape (), got float32 of shape (3,)"),
    (lambda: magma(LARGE), T, "learning_rate must be a real number, got {'b': "),
    (lambda: magma(optax.adamw(0.1)), T, "learning_rate must be a number or a schedule, got … wrap_magma(optimizer)"),
    (lambda: scheduled(lambda t: -0.1), V, "learning_rate(0) must be at least 0 and finite in float32, got -0.1"),
    (lambda: scheduled(lambda t: -0.1 * jnp.cos(t)), V, "learning_rate(0) must be at least 0 … got -0.1"),
    (lambda: update(magma(lambda t: 1.0 - 2 * t), state=start()._replace(count=jnp.int32(5))), V, "learning_rate(5)"),
    (lambda: scheduled(lambda t: jnp.ones(1)), V, "learning_rate(0) must be … of shape (), got float32 of shape (1,)"),
    (lambda: jax.jit(scheduled, static_argnums=0)(lambda t: t * THREE), V, "learning_rate(count) must be … (3,)"),
    (lambda: scheduled(lambda t: "0.1"), T, "learning_rate(0) must be a real number, got '0.1' of type str"),
    (lambda: scheduled(lambda t: None), T, "learning_rate(0) must be a real number, got None"),
    (lambda: scheduled(lambda t: True), T, "learning_rate(0) must be a real number, got True of type bool"),
    (lambda: scheduled(lambda t: math.inf), V, "learning_rate(0) must be at least 0 and finite in float32, got inf"),
    (lambda: scheduled(lambda t: 1j * jnp.ones(())), V, "learning_rate(0) must be … got complex64 of shape ()"),
]
BASES_AND_RULES: list[Row] = [
    (lambda: magma(0.1, "adamx"), V, "base must be one of 'sgd', … got 'adamx'"),
    (lambda: magma(0.1, 3), T, "base must be a name or a configuration of magma_core such as AdamW(), got 3"),
    (lambda: magma(0.1, AdamW), T, "base must be … such as AdamW(), got <class 'magma_core.config.AdamW'>"),
    (lambda: magma(0.1, optax.adam(0.1)), T, "base must be a name or a configuration … use wrap_magma(optimizer)"),
    (lambda: magma(0.1, "rmsprop", b1=0.9), V, "b1 does not belong to base RMSProp, which has b2, eps, momentum"),
    (lambda: skip_update(0.1, "sgd", b2=0.9), V, "b2 does not belong to base SGD, … base=SGD(...)"),
    (lambda: magma(0.1, "adam", weight_decay=0.1), V, "weight_decay does not belong to base Adam, which has b1, b2"),
    (lambda: by_rule(0.1, "magma"), T, "rule must be a magma_core.Rule such as magma_core.magma(), got 'magma'"),
    (lambda: by_rule(0.1, M), T, "rule must be a magma_core.Rule such as magma_core.magma(), got MagmaTransf"),
    (lambda: by_rule(0.1, magma), T, "rule must be a magma_core.Rule such as magma_core.magma(), got <function magma"),
]
DECAY_MASKS: list[Row] = [
    (lambda: magma(0.1, weight_decay_mask=False), T, "weight_decay_mask must be a tree of bools … got False: None le"),
    (lambda: magma(0.1, weight_decay_mask=jnp.ones(2) > 0), T, "weight_decay_mask must be a tree … got Array("),
    (lambda: magma(0.1, "sgd", weight_decay_mask=P), V, "but base SGD decays none: give weight_decay too"),
    (lambda: scale_by_magma(weight_decay_mask=P), V, 'base Adam decays none: … "adamw" has'),
    (lambda: start(weight_decay_mask={"v": True}), V, "weight_decay_mask must have the structure … but lacks 'w'"),
    (lambda: start(weight_decay_mask={"w": True, "v": True}), V, "weight_decay_mask must have … but also has 'v'"),
    (lambda: start(weight_decay_mask={"w": {"x": True}}), V, "weight_decay_mask must have … but "),
    (lambda: start(weight_decay_mask=lambda p: [True]), V, "weight_decay_mask must have the … but lacks 'w'"),
    (lambda: start(weight_decay_mask={"w": 1}), T, "weight_decay_mask must be True or False for 'w', got 1"),
    (lambda: start(weight_decay_mask={"w": None}), T, "weight_decay_mask must be True or False for 'w', got None"),
    (lambda: start(weight_decay_mask=lambda p: {"w": jnp.all(p["w"] > 0)}), T, "for 'w', got Array(True, dtype=bool)"),
    (lambda: jax.jit(magma(0.1, weight_decay_mask=lambda p: {"w": p["w"].any()}).init)(P), T, "for 'w', got JitTracer"),
]
BLOCKS_AND_NAMES: list[Row] = [
    (lambda: start(block_axes=(2,)), V, "block_axes of 'w' has axis 2, … use axes from -2 to 1, or () for"),
    (lambda: start(block_axes=(1, -1)), V, "block_axes of 'w' names an axis twice: (1, -1); name each once"),
    (lambda: start(block_axes=lambda name, leaf: 0), T, "block_axes of 'w' must be a sequence of integers, got 0"),
    (lambda: start(block_axes="rows"), T, "block_axes of 'w' must be a sequence of integers, got 'rows'"),
    (lambda: magma(0.1, block_axes={"w": ()}), T, "got {'w': ()}: give lambda name, leaf: axes[name]"),
    (lambda: magma(0.1, name="w"), T, "name must be a function of a leaf's path, got 'w'"),
    (lambda: start(name=lambda path: 3), T, "names must be strings, got 3"),
    (lambda: start({"a": X, "b": X}, name=lambda path: "x"), V, "two leaves are called 'x' and would share masks"),
    (lambda: start({"a.b": {"c": X}, "a": {"b.c": X}}), V, "two leaves are called 'a.b.c' … name=, … path.parts"),
    (lambda: magma(0.1, specs=PartitionSpec()), T, "specs must be a function of a leaf's name and the leaf, got P"),
]
LEAVES: list[Row] = [
    (lambda: start({"w": TENSOR}), T, "parameter 'w' must be an array of JAX or NumPy, … of torch.float32: convert it"),
    (lambda: start({"w": X * 1j}), T, "parameter 'w' must be an array of float32, … of complex64: cast it"),
    (lambda: start({"w": jnp.ones(2, jnp.float8_e5m2)}), T, "parameter 'w' must be … got ArrayImpl of float8_e5m2"),
    (lambda: update(grads={"w": MATRIX * 1j}), T, "gradient of 'w' must have … float32, got complex64"),
    (lambda: update(grads={"w": MATRIX.astype(np.float16)}), T, "gradient of 'w' … float32, got float16: cast it"),
    (lambda: update(grads={"w": THREE}), V, "gradient of 'w' must have the parameter's shape (2, 3), got (3,)"),
    (lambda: update(params=None), V, "params must be given because of the learning rate: call update("),
    (lambda: update(scale_by_magma("adamw"), params=None), V, "params must be given because of weight decay"),
    (lambda: M.step(None, P, start()), V, "params must be given: call step(params, grads, state)"),
]
TREES: list[Row] = [
    (lambda: update(grads={"v": MATRIX}), V, "params must have the structure of the gradients (None … but lacks 'v'"),
    (lambda: update(grads=P, params=LARGE), V, "params must have the structure of the gradients … but also has 'b'"),
    (lambda: update(grads=[MATRIX], params=(MATRIX,)), V, "but is 'PyTreeDef((*,))' where that is 'PyTreeDef([*])'"),
    (lambda: update(state=start({"v": X})), V, "state.mu must have the structure of the parameters, as init(params) m"),
    (lambda: update(state=start({"w": {"v": X}})), T, "state.mu of 'w' must be an array, got dict"),
    (lambda: update(state=start({"w": X})), V, "state.mu of 'w' must have shape (2, 3), got (2,): make the state with"),
    (lambda: update(magma(0.1, block_axes=(0,)), state=start()), V, "state.score of 'w' must have shape (2,), got ()"),
    (lambda: update(state=skip_update(0.1).init(P)), V, "state.score of 'w' is missing: make the state with init()"),
    (lambda: update(state=magma(0.1, "sgd").init(P)), V, "state.nu of 'w' is missing: make the state with init()"),
]
STATES: list[Row] = [
    (lambda: M.update(start(LARGE), LARGE, LARGE), T, "got dict: the order is update(grads, state, params)"),
    (lambda: M.update(LARGE, LARGE, start(LARGE)), T, "got dict: the order is update(grads, state, params)"),
    (lambda: M.step(LARGE, start(LARGE), LARGE), T, "got dict: the order is step(params, grads, state)"),
    (lambda: M.alignment(start(LARGE), LARGE), T, "got dict: the order is alignment(grads, state, params)"),
    (lambda: update(state=tuple(start())), T, "got tuple: restore into the result of init(params), which has"),
    (lambda: update(state=start()._asdict()), T, "got dict: restore into the result of init(params), which has"),
    (lambda: update(state=[*start()]), T, "got list: restore into the result of init(params), which has its types"),
    (lambda: M.step(P, P, (start(), optax.EmptyState())), T, "got tuple: … of a chain, give the member that is one"),
    (lambda: M.update(P, None, P), T, "state must be the MagmaState … got NoneType: make it with init(params)"),
    (lambda: wrap_magma(optax.sgd(0.1)).update(P, start(), P), T, "state must be the WrappedState …, got MagmaState"),
    (lambda: update(state=wrap_magma(optax.sgd(0.1)).init(P)), T, "state must be the MagmaState …, got WrappedState"),
]
KEYWORDS: list[Row] = [
    (lambda: magma(0.1, mask=P), T, "keyword argument 'mask': which leaves decay says weight_decay_mask"),
    (lambda: magma(lr=0.1), T, "magma() got an unexpected keyword argument 'lr'. Did you mean 'learning_rate'?"),
    (lambda: magma(0.1, beta1=0.9), T, "'beta1'. Did you mean 'b1'?"),
    (lambda: magma(0.1, weight_deacy=0.1), T, "'weight_deacy'. Did you mean 'weight_decay'?"),
    (lambda: magma(0.1, block_axis=()), T, "'block_axis'. Did you mean 'block_axes'?"),
    (lambda: magma(0.1, "sgd", momentum=0.8), T, "'momentum': it belongs to the base, as in base=magma_core.SGD("),
    (lambda: magma(0.1, mu_dtype=jnp.float16), T, "'mu_dtype': moments are float32 always"),
    (lambda: magma(0.1, temperature=1.0), T, "'temperature'. Did you mean 'tau'?"),
    (lambda: skip_update(0.1, tau=1.0), T, "'tau': it belongs to rules with scores"),
    (lambda: by_rule(0.1, magma_core.magma(), p=0.3), T, "'p': it belongs to the rule, as in rule="),
    (lambda: scale_by_magma(learning_rate=0.1), T, "'learning_rate': scale by it in a chain"),
    (lambda: scale_by_magma(decay="dense"), T, "'decay': it belongs to the rule, as in by_rule("),
    (lambda: wrap_magma(optax.sgd(0.1), weight_decay=0.1), T, "'weight_decay': give it to the optimizer that is"),
    (lambda: wrap_magma(optax.sgd(0.1), weight_decay_mask=P), T, "'weight_decay_mask': give it to the opt"),
]
WRAPPERS: list[Row] = [
    (lambda: wrap_skip_update("sgd"), T, "inner must be an optax transformation such as optax.adamw(1e-3), got 'sgd'"),
    (lambda: wrap_magma(optax.adamw), T, "inner must be … such as optax.adamw(1e-3), got <function adamw"),
    (lambda: wrap_magma(optax.MultiSteps(optax.sgd(0.1), 2)), T, "MultiSteps belongs around the wrapper, not into it"),
    (lambda: wrap_magma(M), T, "inner must be another optimizer, got one that masks already: leave the wrapper out"),
    (lambda: wrap(optax.sgd(0.1), "magma"), T, "rule must be … such as magma_core.magma(), got 'magma'"),
    (lambda: wrap(optax.sgd(0.1), magma_core.magma(decay="dense")), V, "decay must be \"masked\", got 'dense'"),
    (lambda: wrap_magma(optax.sgd(0.1), p=1.5), V, "p must lie in [0, 1], got 1.5"),
    (lambda: wrap_magma(optax.sgd(0.1), cosine_momentum="during"), V, "cosine_momentum must be one of … got 'during'"),
    (lambda: wrap_magma(optax.sgd(0.1), moment="mu"), T, "moment must be a function of the wrapped state, got 'mu'"),
    (lambda: wrap_magma(optax.sgd(0.1), moment=lambda s: s).init(P), V, "moment must find a tree like the parameters'"),
]
FILES: list[Row] = [
    (lambda: save_state(wrap_magma(optax.sgd(0.1)), P, start(), NOWHERE), T, "optimizer must be a transformation that"),
    (lambda: save_state(NOWHERE, M, P, start()), T, "optimizer must be … got str"),
    (lambda: save_state(M, start(), P, NOWHERE), T, "state must be the MagmaState that init or a step made, got dict"),
    (lambda: save_state(M, P, start({"v": X}), NOWHERE), V, "state.mu must have the structure of … but lacks 'w'"),
    (lambda: load_state(NOWHERE, M, P), T, "optimizer must be … got str"),
    (lambda: load_state(optax.chain(M), P, NOWHERE), T, "of a chain, give the member that is one and its own state"),
    (lambda: load_state(M, P, NOWHERE), FileNotFoundError, "'/nowhere/state'"),
]
# fmt: on

ROWS = [*NUMBERS, *RATES, *BASES_AND_RULES, *DECAY_MASKS, *BLOCKS_AND_NAMES, *LEAVES, *TREES, *STATES]
ROWS += [*KEYWORDS, *WRAPPERS, *FILES]


def test_guide_quotes_these_messages() -> None:
    """In the first column of its table, between quotation marks."""
    section = (REPOSITORY / "docs/jax.md").read_text(encoding="utf-8").split("## Troubleshooting")[1].split("\n## ")[0]
    quoted = re.findall(r'"([^"]+)"', "\n".join(line.split("|")[1] for line in section.splitlines() if "|" in line))
    texts = [text for _, _, text in ROWS] + ["params is one vector"]
    assert len(quoted) > 8
    for part in (part for one in quoted for part in one.split("…")):
        assert any(part in text for text in texts), part


@pytest.mark.parametrize(("call", "kind", "text"), ROWS, ids=[text for _, _, text in ROWS])
def test_wrong_call(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=".*".join(map(re.escape, text.split("…")))) as error:
        call()
    assert type(error.value) is kind
    assert "\n" not in str(error.value), "an array is printed"
    assert len(str(error.value)) < 500
