"""The oracle's answers to questions of every kind, in the form of docs/porting.md."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from magma_conformance.vectors import oracle
from magma_conformance.wire import hex_arrays
from magma_conformance.wire.task_json import describe_records, number_from_json

Json: TypeAlias = Mapping[str, Any]

STATE_NAMES = {"mu": "mu", "nu": "nu", "mu_power": "p1", "nu_power": "p2", "score": "score"}
"""Fields of a state, and the oracle's names for them."""

_KINDS = {
    ("p", "one"): "unscaled",  # and dense, with p = 1
    ("p", "inverse_p"): "skip_update",
    ("p", "score"): "magma",
    ("score", "one"): "score_survival",
    ("score", "score"): "score_survival_damped",
    ("score", "inverse_p"): "score_survival_inverse",
}


def answer(kind: str, inputs: Json, /) -> dict[str, Any]:
    """The specification's answer: arrays by name, or for "steps" the description of the records."""
    if kind == "steps":
        return _steps(inputs)
    given = {name: hex_arrays.from_json(array) for name, array in inputs.items()}
    return {name: hex_arrays.to_json(array) for name, array in _PARTS[kind](given).items()}


def oracle_rule(rule: Json, /) -> dict[str, Any]:
    """A rule with the oracle's names."""
    options = {name: x for name, x in rule.items() if name not in ("survival", "weight", "ema")}
    return {"kind": _KINDS[rule["survival"], rule["weight"]], "a": rule["ema"], **options}


def _threefry(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"words": np.array(oracle.threefry(*given["key"].tolist(), *given["counter"].tolist()), np.uint32)}


def _coins(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    name, seed, t = bytes(given["name"]).decode("utf-8"), int(given["seed"]), int(given["step"])
    coins = [oracle.coin(seed, name, t, b) for b in given["block"].tolist()]
    if "p" in given:
        limits = [oracle.threshold(float(given["p"]))] * len(coins)
    else:
        limits = [oracle.score_threshold(s) for s in given["score"].tolist()]
    keep = [oracle.kept(*pair) for pair in zip(coins, limits, strict=True)]
    return {"coins": np.array(coins, np.uint32), "keep": np.array(keep, bool)}


def _sums(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    m, g = (given[name].reshape(-1).tolist() for name in ("mu", "gradient"))
    shape = given["mu"].shape
    return {
        "x": np.array(oracle.quantised(m), np.int32).reshape(shape),
        "y": np.array(oracle.quantised(g), np.int32).reshape(shape),
        "sums": np.array(oracle.sums(m, g), np.int64),
    }


def _score(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tau, a = float(given["tau"]), float(given["ema"])
    cosines = [oracle.cosine(*column) for column in zip(*given["sums"].tolist(), strict=True)]
    scores = [oracle.score(s, c, tau, a) for s, c in zip(given["score"].tolist(), cosines, strict=True)]
    return {
        "cosine": np.array(cosines, np.float32),
        "sigmoid": np.array([oracle.sigmoid(c, tau) for c in cosines], np.float32),
        "score": np.array(scores, np.float32),
    }


_PARTS: dict[str, Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "threefry": _threefry,
    "coins": _coins,
    "sums": _sums,
    "score": _score,
}


def _steps(inputs: Json) -> dict[str, Any]:
    parameters = [_Parameter(inputs, entry) for entry in inputs["parameters"]]
    records = []
    for t, step in enumerate(inputs["steps"], inputs["first_step"]):
        record: dict[str, np.ndarray] = {}
        for parameter, gradient in zip(parameters, step["gradients"], strict=True):
            lr = number_from_json(step["lr"])
            record |= parameter.step(hex_arrays.from_json(gradient), t, lr)
        records.append(record)
    return describe_records(records, [parameter.name for parameter in parameters])


class _Parameter:
    """One parameter in the oracle's form: lists of Python floats."""

    def __init__(self, inputs: Json, entry: Json) -> None:
        value = hex_arrays.from_json(entry["param"])
        base = {name: number_from_json(x) for name, x in inputs["base"].items()}
        rule = oracle_rule({name: number_from_json(x) for name, x in inputs["rule"].items()})
        self.name: str = entry["name"]
        self._dtype, self._theta = value.dtype, value.astype(np.float64).reshape(-1).tolist()
        self._options: dict[str, Any] = {
            "shape": value.shape,
            "block_axes": entry["block_axes"],
            "base": base,
            "rule": rule,
        }
        self._rest = {"name": self.name, "seed": int(inputs["seed"]), "format": str(value.dtype)}
        self._state = oracle.init(**self._options)
        for field, own in STATE_NAMES.items():
            if field in entry:
                state = hex_arrays.from_json(entry[field])
                self._state[own] = state.reshape(-1).tolist() if own in ("mu", "nu", "score") else float(state)

    def step(self, gradient: np.ndarray, t: int, lr: float) -> dict[str, np.ndarray]:
        """The arrays of the record after step ``t``."""
        g = gradient.astype(np.float64).reshape(-1).tolist()
        self._theta, self._state, report = oracle.step(
            self._theta, g, self._state, t=t, lr=lr, **self._options, **self._rest
        )
        shape = self._options["shape"]
        block_shape = [shape[axis] for axis in self._options["block_axes"] or ()]
        fields = {"param": np.array(self._theta).astype(np.float32).astype(self._dtype).reshape(shape)}
        for field, own in STATE_NAMES.items():
            if own in self._state:
                extent = () if own in ("p1", "p2") else block_shape if own == "score" else shape
                fields[field] = np.array(self._state[own], np.float32).reshape(extent)
        if "score" in self._state:
            fields["sums"] = np.array(report["sums"], np.int64).reshape(-1, 3).T.reshape(3, *block_shape)
            fields["cosine"] = np.array(report["cosine"], np.float32).reshape(block_shape)
        if self._options["block_axes"] is not None:
            fields["keep"] = np.array(report["keep"], bool).reshape(block_shape)
        return {f"{self.name}/{field}": x for field, x in fields.items()}
