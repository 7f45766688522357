"""Wrong calls: the exception and the text of each, on every backend of Keras."""

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras_reference import check_same, host, weights
from magma_keras import Magma, MaskedOptimizer, ScoreLogger, SkipUpdate, Wrapped, load_state, save_state

from magma_core import Rule, damping, magma

SGD, Adam, LossScale = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.LossScaleOptimizer
DECAY = keras.optimizers.schedules.ExponentialDecay


def w(name: str = "w", dtype: str = "float32", shape: Any = (2,), **options: Any) -> Any:
    return keras.Variable(np.ones(shape), dtype=dtype, name=name, **options)


def g(dtype: str = "float32", shape: Any = (2,)) -> Any:
    return keras.ops.convert_to_tensor(np.ones(shape, dtype))


def built(*of: Any, optimizer: Any = None, **options: Any) -> Any:
    """An optimizer that has been built, and its variables."""
    optimizer = Magma(0.1, **options) if optimizer is None else optimizer
    optimizer.build(list(of) or [w()])
    return optimizer


def excluding(how: str, **selection: Any) -> None:
    getattr(Magma(), how)(**selection)


def model() -> Any:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def apply(*grads: Any, of: Any, optimizer: Any = None) -> None:
    (Magma() if optimizer is None else optimizer).apply(list(grads), of)


def in_file(path: Any, *of: Any, **mapping: Any) -> None:
    save_state(built(*of), path)
    load_state(built(**mapping), path)


# fmt: off
CONSTRUCTORS: list[tuple[Any, Any, str]] = [
    (lambda: Magma(-0.1), ValueError, "learning_rate must be at least 0 and finite in float32, got -0.1"),
    (lambda: Magma(float("nan")), ValueError, "learning_rate must be a number, got nan"),
    (lambda: Magma(float("inf")), ValueError, "learning_rate must be at least 0 and finite in float32, got inf"),
    (lambda: Magma(True), TypeError, "learning_rate must be a real number, got True"),
    (lambda: Magma("fast"), TypeError, "learning_rate must be a number, a schedule or a function, got 'fast'"),
    (lambda: Magma(None), TypeError, "learning_rate must be a number, a schedule or a function, got None"),
    (lambda: Magma(DECAY), TypeError, "learning_rate must be a number, a schedule or a function, got <class"),
    (lambda: Magma([w()]), TypeError, "variables come from the model, or from optimizer.build(variables)"),
    (lambda: Magma(model()), TypeError, "variables come from the model, or from optimizer.build(variables)"),
    (lambda: Magma(Adam()), TypeError, "got an optimizer: to put a rule around it, use Wrapped(optimizer, magma_core"),
    (lambda: Magma(base=Adam()), TypeError, "base must be a name such as 'adamw', got an optimizer of Keras: to put"),
    (lambda: Magma(base=Adam), TypeError, "base must be a name or a configuration of magma_core such as AdamW(), got"),
    (lambda: Magma(base="adan"), ValueError, "got 'adan'"),
    (lambda: Magma(base="adam", weight_decay=0.1), ValueError, "weight_decay does not belong to base Adam, which has"),
    (lambda: Magma(base="adamw", momentum=0.9), ValueError, "momentum does not belong to base AdamW, which has beta_1"),
    (lambda: Magma(base="sgd", beta_2=0.9), ValueError, "beta_2 does not belong to base SGD, which has momentum, nest"),
    (lambda: Magma(beta_1=1.0), ValueError, "beta_1 must lie in [0, "),
    (lambda: Magma(epsilon=0.0), ValueError, "epsilon must"),
    (lambda: Magma(weight_decay=-0.1), ValueError, "weight_decay must be at least 0 and finite in float32, got -0.1"),
    (lambda: Magma(p=1.5), ValueError, "p must lie in [0, 1], got 1.5"),
    (lambda: Magma(p="half"), TypeError, "p must be a real number, got 'half' of type str"),
    (lambda: SkipUpdate(p=-0.5), ValueError, "p must lie in [0, 1], got -0.5"),
    (lambda: Magma(tau=0.0), ValueError, "tau must"),
    (lambda: Magma(score_ema=1.0), ValueError, "ema must lie in [0, "),
    (lambda: Magma(initial_score=2.0), ValueError, "initial_score must lie in [0, 1], got 2.0"),
    (lambda: Magma(cosine_momentum="x"), ValueError, "momentum must be one of 'after', 'before', got 'x'"),
    (lambda: Magma(decay="sparse"), ValueError, "decay must be one of 'masked', 'dense', got 'sparse'"),
    (lambda: Magma(lr_scale=0.0), ValueError, "lr_scale must"),
    (lambda: Magma(seed=-1), ValueError, "seed must lie in [0, 18446744073709551615], got -1: take it modulo 2**64"),
    (lambda: Magma(seed=0.5), TypeError, "seed must be an integer, got 0.5 of type float"),
    (lambda: Magma(block_axes=0), TypeError, "block_axes must be a sequence of integers such as () or (0,), or map"),
    (lambda: Magma(block_axes=None), TypeError, "or to None for variables that are not masked; got None"),
    (lambda: Magma(block_axes="rows"), TypeError, "got 'rows'"),
    (lambda: Magma(block_axes=lambda path: ()), TypeError, "or map parts of paths of variables to such sequences"),
    (lambda: Magma(block_axes={"w": 0}), TypeError, "got {'w': 0}"),
    (lambda: Magma(block_axes={0: ()}), TypeError, "block_axes must have strings to look for in variables' paths, got"),
    (lambda: Magma(block_axes={"(": ()}), ValueError, "block_axes has '(', which is no regular expression"),
    (lambda: Magma(mask_names=["w"]), TypeError, "mask_names must map paths of variables to names, or be a function"),
    (lambda: Magma(alpha=1.0), (TypeError, ValueError), "alpha"),
    (lambda: Magma(clipnorm=1.0, clipvalue=1.0), ValueError, "Only one of `clipnorm`, `clipvalue` and `global_clip"),
    (lambda: Magma(gradient_accumulation_steps=1), ValueError, "`gradient_accumulation_steps` must be an integer >= 2"),
    (lambda: Magma(use_ema=True, ema_momentum=2.0), ValueError, "`ema_momentum` must be in the range [0, 1]"),
    (lambda: MaskedOptimizer(0.1, "magma"), TypeError, "rule must be a magma_core.Rule such as magma() or skip_update"),
    (lambda: MaskedOptimizer(0.1, magma), TypeError, "rule must be a magma_core.Rule such as magma() or skip_update()"),
    (lambda: MaskedOptimizer(magma(), 0.1), TypeError, "rule must be a magma_core.Rule such as magma() or skip_update"),
    (lambda: MaskedOptimizer(0.1, {"q": 1}), ValueError, "rule has an unknown 'q', which is no field of magma_core.Ru"),
    (lambda: MaskedOptimizer(0.1, Rule(), decay="dense"), ValueError, "decay='dense' is part of the rule here: give r"),
    (lambda: Wrapped("adam", magma()), TypeError, "optimizer must be a Keras optimizer such as keras.optimizers.Adam("),
    (lambda: Wrapped(magma(), Adam()), TypeError, "optimizer must be a Keras optimizer such as keras.optimizers.Adam("),
    (lambda: Wrapped(SGD(), "magma"), TypeError, "rule must be a magma_core.Rule such as magma() or skip_update(), go"),
    (lambda: Wrapped(SGD(), Rule(decay="dense")), ValueError, "decay must be \"masked\", got 'dense': weight decay is"),
    (lambda: Wrapped(Magma(), magma()), TypeError, "optimizer is masked already, got "),
    (lambda: Wrapped(LossScale(SGD()), magma()), TypeError, "must not scale the loss: put LossScaleOptimizer around t"),
    (lambda: Wrapped(SGD(use_ema=True), magma()), ValueError, "optimizer has use_ema=True: set it on the wrapper inst"),
    (lambda: Wrapped(SGD(gradient_accumulation_steps=2), magma()), ValueError, "set it on the wrapper instead"),
    (lambda: Wrapped(SGD(loss_scale_factor=2.0), magma()), ValueError, "optimizer has loss_scale_factor=2.0: set it o"),
    (lambda: Wrapped(SGD(), magma(), learning_rate=0.1), ValueError, "learning_rate is the wrapped optimizer's own: g"),
    (lambda: Wrapped(SGD(), magma(), weight_decay=0.1), ValueError, "weight_decay is the wrapped optimizer's own: giv"),
    (lambda: Wrapped(SGD(), magma(), moment=3), TypeError, "moment must be the name of an attribute, got 3"),
    (lambda: Wrapped.from_config({"rule": {}}), ValueError, "the configuration has no entry 'optimizer': give what"),
    (lambda: Magma.from_config({"variables": 3}), TypeError, "variables of a configuration must be a list, got 3"),
    (lambda: ScoreLogger(), ValueError, "filename or log_dir must be given: the scores have to go somewhere"),
    (lambda: ScoreLogger("x", every=1.5), TypeError, "every must be an integer, got 1.5 of type float"),
    (lambda: ScoreLogger("x", every=0), ValueError, "got 0: leave it out for an entry at each epoch's end"),
]

SELECTIONS: list[tuple[Any, Any, str]] = [
    (lambda: excluding("exclude_from_masking", var_names="bias"), TypeError, "got the string 'bias': write ['bias']"),
    (lambda: excluding("exclude_from_masking", var_names=["("]), ValueError, "var_names has '(', which is no regular"),
    (lambda: excluding("exclude_from_masking", var_list=["w"]), TypeError, "got 'w': var_names= is for names"),
    (lambda: excluding("exclude_from_masking", var_list=w()), TypeError, "var_list must be a list such as model.train"),
    (lambda: excluding("exclude_from_masking", var_list=model().layers), TypeError, "must have variables of Keras, go"),
    (lambda: excluding("exclude_from_weight_decay", var_names="bias"), TypeError, "got the string 'bias': write ['bia"),
    (lambda: excluding("exclude_from_weight_decay", var_names=[3]), TypeError, "var_names must have strings to look f"),
    (lambda: excluding("exclude_from_weight_decay", var_list=["w"]), TypeError, "got 'w': var_names= is for names"),
    (lambda: Wrapped(SGD(), magma()).exclude_from_weight_decay(var_names="b"), TypeError, "got the string 'b': write"),
    (lambda: built().exclude_from_masking(var_names=["w"]), ValueError, "must be called before the optimizer is built"),
    (lambda: built().exclude_from_weight_decay(var_names=["w"]), ValueError, "must be called before the optimizer is"),
]

VARIABLES: list[tuple[Any, Any, str]] = [
    (lambda: apply(w(), of=[g()]), TypeError, "trainable_variables must have variables of Keras, got "),
    (lambda: apply(w(), of=[g()]), TypeError, ": give apply(gradients, variables), in this order"),
    (lambda: apply(w(), of=[g()], optimizer=built()), TypeError, ": give apply(gradients, variables), in this order"),
    (lambda: Magma().apply_gradients([(w(), g())]), TypeError, ": give apply(gradients, variables), in this order"),
    (lambda: Magma().alignment([w()], [g()]), TypeError, ": give apply(gradients, variables), in this order"),
    (lambda: built(g()), TypeError, "variables must have variables of Keras, got "),
    (lambda: Magma().build(w()), TypeError, "variables must be a list such as model.trainable_variables, got "),
    (lambda: Magma().build(model()), TypeError, "variables must be a list such as model.trainable_variables, got Sequ"),
    (lambda: apply(g(), of=model()), TypeError, "must be a list such as model.trainable_variables, got Sequential"),
    (lambda: apply(g(), of=[w(), w("v")]), ValueError, "None for those that have none: got 1 gradients for 2 variable"),
    (lambda: apply(g(), g(), of=[w()]), ValueError, "None for those that have none: got 2 gradients for 1 variables"),
    (lambda: apply(g(), of=None), ValueError, "must already be built on a list of variables"),
    (lambda: apply(None, of=[w()]), ValueError, "No gradients provided for any variable"),
    (lambda: apply(g(), of=[w()], optimizer=built()), ValueError, "Unknown variable"),
    (lambda: apply(g(shape=(3,)), of=[w()]), ValueError, "gradient of 'w' must have its shape (2,), got (3,): give on"),
    (lambda: apply(g(shape=()), of=[w()]), ValueError, "gradient of 'w' must have its shape (2,), got (): give one"),
    (lambda: apply(g("complex64"), of=[w()]), TypeError, "gradient of 'w' must have real numbers, got complex64: cast"),
    (lambda: apply(g("int32"), of=[w()]), TypeError, "gradient of 'w' must have real numbers, got int32: cast it"),
    (lambda: built(w(dtype="complex64")), TypeError, "variable 'w' must be float32, bfloat16 or float16, got complex6"),
    (lambda: built(w(dtype="float8_e4m3fn")), TypeError, "must be float32, bfloat16 or float16, got float8_e4m3fn: ma"),
    (lambda: built(w(dtype="float8_e5m2")), TypeError, "or leave it to another optimizer, see keras.optimizers.Multi"),
    (lambda: built(w(dtype="int32", trainable=False)), TypeError, "must be float32, bfloat16 or float16, got int32: "),
    (lambda: built(w(), w()), ValueError, "two variables are called 'w': names key the masks, so name the layers, or"),
    (lambda: built(w(), w("v"), mask_names={"v": "w"}), ValueError, "two variables are called 'w': names key the mask"),
    (lambda: built(w(), w("v"), mask_names=lambda path: "x"), ValueError, "two variables are called 'x'"),
    (lambda: built(mask_names={"w": 1}), TypeError, "mask_names must give strings, got 1 for 'w'"),
    (lambda: built(mask_names=lambda path: None), TypeError, "mask_names must give strings, got None for 'w'"),
    (lambda: built(block_axes=(2,)), ValueError, "block_axes of 'w' has axis 2, out of range for shape (2,): use axes"),
    (lambda: built(block_axes=(0, 0)), ValueError, "'w'"),
    (lambda: built(block_axes=(0.5,)), TypeError, "block_axes of 'w' must be a sequence of integers, got (0.5,)"),
    (lambda: built(optimizer=Wrapped(SGD(), magma(), moment="foo")), ValueError, "moment='foo' is no list of SGD with"),
    (lambda: built(optimizer=Wrapped(SGD(name=""), magma(), moment="name")), ValueError, "moment='name' is no list of"),
    (lambda: built(optimizer=Wrapped(built(optimizer=Adam()), magma())), ValueError, "optimizer was built for other"),
    (lambda: built(w(), w(), optimizer=Wrapped(Adam(), magma())), ValueError, "two variables are called 'w'"),
]

LATER: list[tuple[Any, Any, str]] = [
    (lambda: Magma().set_weights([]), ValueError, "Please call `optimizer.build(trainable_variables)`"),
    (lambda: built().set_weights([]), ValueError, "weights must have one entry for each of "),
    (lambda: Magma().alignment([g()]), ValueError, "grads must have one entry for each variable, got 1 for 0: build t"),
    (lambda: built().alignment([]), ValueError, "grads must have one entry for each variable, got 0 for 1"),
    (lambda: setattr(Magma(), "learning_rate", -1.0), ValueError, "learning_rate must be at least 0"),
    (lambda: setattr(Magma(), "learning_rate", "x"), TypeError, "learning_rate must be a number, a schedule or a"),
    (lambda: setattr(Magma(DECAY(0.1, 1, 0.5)), "learning_rate", 0.1), TypeError, "its learning rate is not settable"),
    (lambda: setattr(Magma(), "weight_decay", 0.1), AttributeError, "weight_decay cannot be set to 0.1: give it to th"),
    (lambda: keras.optimizers.get("mgma"), ValueError, "mgma"),
]

FILES: list[tuple[Any, Any, str]] = [
    (lambda path: save_state(Magma(), path), ValueError, "must be built before: call optimizer.build(model.trainable_"),
    (lambda path: load_state(Magma(), path), ValueError, "must be built before: call optimizer.build(model.trainable_"),
    (lambda path: save_state(built(optimizer=Adam()), path), TypeError, "must be a Magma, SkipUpdate or MaskedOptimiz"),
    (lambda path: save_state(model(), path), TypeError, "must be a Magma, SkipUpdate or MaskedOptimizer, got Sequenti"),
    (lambda path: load_state(built(), path), FileNotFoundError, "No such file"),
    (lambda path: save_state(built(), path, names={"w": 3}), TypeError, "names must give strings, got 3 for 'w'"),
    (lambda path: save_state(built(), path, names={"v": "x"}), ValueError, "'v'"),
    (lambda path: save_state(built(), path, axes={"w": (1,)}), ValueError, "a permutation of its 1 axes such as (0,),"),
    (lambda path: in_file(path, w("v")), ValueError, "'w' is no parameter of the file, which has 'v'"),
    (lambda path: in_file(path, w(shape=(3,))), ValueError, "'w' has shape (3,)"),
    (lambda path: in_file(path, seed=1), ValueError, "'w' was saved with seed 0, the optimizer has 1"),
    (lambda path: in_file(path, p=0.25), ValueError, "rule p 0.5, the optimizer has 0.25"),
    (lambda path: in_file(path, block_axes=(0,)), ValueError, "block"),
]
# fmt: on


def ids(rows: Any) -> Any:
    """The number and the text of each."""
    return {"argvalues": rows, "ids": [f"{i} {message}" for i, (*_, message) in enumerate(rows)]}


@pytest.mark.parametrize(("call", "error", "message"), **ids([*CONSTRUCTORS, *SELECTIONS, *VARIABLES, *LATER]))
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("call", "error", "message"), **ids(FILES))
def test_wrong_calls_of_files(call, error, message, tmp_path):
    with pytest.raises(error, match=re.escape(message)):
        call(tmp_path / "state")


@pytest.mark.backends("tensorflow", "torch")
def test_double_precision():
    """JAX has none here."""
    with pytest.raises(TypeError, match="'w' must be float32, bfloat16 or float16, got float64: make it with one of"):
        built(w(dtype="float64"))


@pytest.mark.backends("tensorflow")
def test_variables_of_tensorflow_without_names():
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    with pytest.raises(ValueError, match="two variables are called 'Variable': names key the masks"):
        built(tf.Variable([1.0]), tf.Variable([2.0]))


@pytest.mark.parametrize("make", [Magma, lambda: Wrapped(Adam(), damping())], ids=["Magma", "Wrapped"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda own: ([own], [g()]),
        lambda own: ([g("int32")], [own]),
        lambda own: ([g(shape=(1,))], [own]),
        lambda own: ([g(), g()], [own]),
        lambda own: ([g()], [w(dtype="complex64")]),
    ],
    ids=["order", "dtype", "shape", "number", "another"],
)
def test_nothing_has_moved_after_an_error(make, wrong):
    optimizer, own = make(), w()
    for _ in range(2):
        before = [own, *weights(optimizer)] if optimizer.built else [own, 0]
        before = [host(x) for x in before]
        with pytest.raises((TypeError, ValueError)):
            optimizer.apply(*wrong(own))
        check_same([own, *weights(optimizer)] if len(before) > 2 else [own, int(optimizer.iterations)], before)
        optimizer.apply([g()], [own])
