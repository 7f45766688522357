"""Translates the oracle's terms to the core's."""

import ml_dtypes
import numpy as np

import magma_core

DTYPES = {"float32": np.dtype("f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("f2")}

BASES = {
    "sgd": magma_core.SGD,
    "rmsprop": magma_core.RMSProp,
    "adam": magma_core.Adam,
    "adamw": magma_core.AdamW,
    "laprop": magma_core.LaProp,
}

RULES = {
    "dense": magma_core.dense,
    "skip_update": magma_core.skip_update,
    "magma": magma_core.magma,
    "damping": magma_core.damping,
    "score_survival": magma_core.score_survival,
    "score_survival_damped": lambda **options: magma_core.score_survival(damped=True, **options),
}

FIELDS = {"mu": "mu", "nu": "nu", "mu_power": "p1", "nu_power": "p2", "score": "score"}


def core_settings(base, rule):
    """The dataclasses for the oracle's dictionaries."""
    base, rule = dict(base), {{"a": "ema"}.get(key, key): value for key, value in rule.items()}
    return BASES[base.pop("kind")](**base), RULES[rule.pop("kind")](**rule)


def array(values, shape, dtype):
    """The list as an array, which must not round."""
    with np.errstate(all="ignore"):
        x = np.array(values, np.float64).reshape(shape).astype(np.float32).astype(dtype)
        assert np.array_equal(x.astype(np.float64).ravel(), np.array(values, np.float64).ravel(), equal_nan=True)
    return x
