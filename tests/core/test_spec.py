"""The oracle and magma_core give the worked numbers of docs/spec.md, section 10."""

import json

import ml_dtypes
import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_conformance.vectors import oracle
from magma_numpy import namespace as xp
from paths import REPOSITORY

import magma_core

SPEC = REPOSITORY / "docs" / "spec.md"
BLOCK = SPEC.read_text(encoding="utf-8").split("## 10. Worked numbers")[1].split("```json\n")[1].split("```")[0]
EXAMPLES = json.loads(BLOCK)
BASES = {"sgd": magma_core.SGD, "adamw": magma_core.AdamW, "laprop": magma_core.LaProp}
SURVIVAL = {"magma": "p", "skip_update": "p", "score_survival_damped": "score"}
WEIGHT = {"magma": "score", "skip_update": "inverse_p", "score_survival_damped": "score"}


def array(words, shape, format="float32"):
    bits = np.array([int(word, 16) for word in words], "u4" if format == "float32" else "u2")
    return bits.view(ml_dtypes.bfloat16 if format == "bfloat16" else format).reshape(shape)


def test_the_oracle_prints_the_block():
    assert oracle.document() == BLOCK.rstrip("\n")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["title"].split(",")[0])
def test_the_oracle_gives_the_worked_numbers(example):
    """From the words of the document alone, so that a wrong printer cannot hide."""
    format = example["format"]
    options = {key: example[key] for key in ("shape", "block_axes", "base", "rule")}
    theta = array(example["theta"], -1, format).tolist()
    state = oracle.init(**options)
    for t, want in enumerate(example["steps"], 1):
        g = array(want["g"], -1, format).tolist()
        rest = {key: example[key] for key in ("format", "name", "seed", "lr")}
        theta, state, report = oracle.step(theta, g, state, t=t, **options, **rest)
        assert theta == array(want["theta"], -1, format).tolist()
        for key, values in state.items():
            words = want[key] if isinstance(values, list) else [want[key]]
            assert np.ravel(values).tolist() == array(words, -1).tolist(), key
        assert [list(sums) for sums in report["sums"]] == want["sums"]
        assert report["cosine"] == array(want["cosine"], -1).tolist()
        assert report["coins"] == [int(word, 16) for word in want["coins"]]
        assert report["keep"] == want["keep"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["title"].split(",")[0])
def test_the_core_gives_the_worked_numbers(example):
    shape, format, axes = example["shape"], example["format"], tuple(example["block_axes"])
    block_shape = [shape[axis] for axis in axes]
    options, choice = dict(example["base"]), dict(example["rule"])
    base = BASES[options.pop("kind")](**options)
    kind = choice.pop("kind")
    choice["ema"] = choice.pop("a")
    rule = magma_core.Rule(survival=SURVIVAL[kind], weight=WEIGHT[kind], **choice)
    fixed = {"base": base, "rule": rule, "block_axes": axes, "xp": xp}
    param = array(example["theta"], shape, format)
    state = magma_core.init(param, **fixed)
    named = {key: example[key] for key in ("name", "seed", "lr")}
    for t, want in enumerate(example["steps"], 1):
        g = array(want["g"], shape, format)
        param, state, report = magma_core.update(param, g, state, step=t, **named, **fixed)
        assert_bits_equal(param, array(want["theta"], shape, format), "theta")
        for field, key, extent in (
            ("mu", "mu", shape),
            ("nu", "nu", shape),
            ("mu_power", "p1", ()),
            ("nu_power", "p2", ()),
            ("score", "score", block_shape),
        ):
            actual = getattr(state, field)
            assert (actual is None) == (key not in want), field
            if actual is not None:
                words = want[key] if isinstance(want[key], list) else [want[key]]
                assert_bits_equal(actual, array(words, extent), field)
        assert_bits_equal(report.keep, np.array(want["keep"]).reshape(block_shape), "keep")
        if want["sums"]:
            sums = np.array(want["sums"], np.int64).T.reshape(3, *block_shape)
            assert_bits_equal(report.sums, sums, "sums")
            assert_bits_equal(report.cosine, array(want["cosine"], block_shape), "cosine")
