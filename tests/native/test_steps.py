"""A compiled step gives the bits of `magma_core.update_planned` on NumPy: bases × rules × formats × layouts."""

import os
import subprocess
import sys

import numpy as np
import pytest
from magma_native import update_planned
from magma_native.library import library
from magma_native.source import TENSOR
from magma_native.step import formula_of
from native_steps import LAYOUTS, SPECIAL, UNMASKED, Parameters, gradients, special

from magma_core import SGD, Adam, AdamW, LaProp, RMSProp, damping, magma, score_survival, skip_update

BASES = [
    SGD(momentum=0.9, weight_decay=0.01),
    SGD(momentum=0.9, nesterov=True),
    RMSProp(),
    Adam(),
    AdamW(weight_decay=0.1),
    LaProp(weight_decay=0.1),
]
RULES = [
    magma(),
    magma(momentum="before", decay="dense"),
    skip_update(p=0.3),
    skip_update(decay="dense"),
    damping(momentum="before"),
    score_survival(),
    score_survival(damped=True, decay="dense"),
]
FORMATS = ("float32", "bfloat16", "float16")
PAIRS = [(i, j) for i in range(len(BASES)) for j in range(len(RULES))]
"""Each base with each rule; formats take turns, so that each meets every base and every rule."""


@pytest.mark.parametrize(("base", "rule"), PAIRS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where formats overflow
def test_steps_are_those_of_numpy(base, rule):
    """Three ordinary steps; then steps with special gradients, and with special momenta."""
    generator = np.random.default_rng([base, rule])
    layouts = LAYOUTS if rule else LAYOUTS | UNMASKED
    held = Parameters.of(BASES[base], RULES[rule], FORMATS[(base + rule) % 3], layouts, generator)
    for step in range(1, 4):
        held.step(gradients(held.params, generator), step)
    ordinary = gradients(held.params, generator)
    for kind in SPECIAL:
        held.compare(held.states, special(kind, ordinary, generator), 4)
        states = [
            state if state.mu is None else state._replace(mu=special(kind, [state.mu], generator)[0])
            for state in held.states
        ]
        held.compare(states, ordinary, 4)


LARGE = {"large": ((2**20 + 777,), ()), "two": ((2, 2**20 + 1), (0,)), "small": ((600,), ()), "dense": ((1000,), None)}
"""Blocks that threads share, beside one that they do not, and an unmasked parameter."""


@pytest.mark.parametrize(("base", "rule", "kind"), [(4, 0, "float32"), (3, 1, "bfloat16"), (2, 2, "bfloat16")])
@pytest.mark.parametrize("given", ["ordinary", "growing", "nan", "top"])
def test_threads_share_large_blocks(base, rule, kind, given):
    generator = np.random.default_rng(8)
    held = Parameters.of(BASES[base], RULES[rule], kind, LARGE, generator)
    for step in range(1, 3):
        grads = [generator.normal(size=x.shape).astype(x.dtype) for x in held.params]
        if given == "growing":
            grads = [(g * np.exp2(np.linspace(-40, 0, g.size)).reshape(g.shape)).astype(g.dtype) for g in grads]
        elif given != "ordinary":
            grads = special(given, grads, generator)
        held.step(grads, step, threads=(1, 2, 3))


def test_threads_take_many_small_blocks_at_a_time():
    """They begin and end inside of a tensor; tensors without blocks and large ones lie between."""
    layouts = {"rows": ((300, 500), (0,)), "none": ((0, 5), (0,)), "large": LARGE["large"], "more": ((70, 600), (0,))}
    layouts |= {f"small {i}": ((30 + i, 16), ()) for i in range(20)} | {"empty": ((3, 0), (0,))}
    generator = np.random.default_rng(7)
    held = Parameters.of(AdamW(weight_decay=0.1), magma(), "float32", layouts, generator)
    for step in range(1, 3):
        held.step(gradients(held.params, generator), step, threads=(1, 2, 3))


def test_integers_of_two_to_the_fifteenth():
    """They do not fit 16 bits, and `special` does make them."""
    generator = np.random.default_rng(2)
    held = Parameters.of(SGD(momentum=0.9), magma(), "float32", {"tiles": LAYOUTS["tiles"]}, generator)
    held.step(special("top", gradients(held.params, generator), generator), 1)
    assert (held.reports[0].sums >= 2**30).all()


def test_one_group_has_many_formulas():
    """Formats, and numbers that differ: each parameter has those of its plan."""
    generator = np.random.default_rng(4)
    parts = [
        Parameters.of(AdamW(weight_decay=decay), magma(), kind, {name: LAYOUTS[name]}, generator)
        for decay, kind, name in [(0.1, "float32", "rows"), (0.2, "float32", "whole"), (0.1, "bfloat16", "leading")]
    ]
    held = Parameters([x.plans[0] for x in parts], [x.params[0] for x in parts], [x.states[0] for x in parts])
    for step in range(1, 4):
        held.step(gradients(held.params, generator), step)


def test_nothing_to_step():
    assert update_planned([], [], [], [], step=1, lr=0.1) == ([], [], [])


def test_parts_of_parameters_are_refused():
    held = Parameters.of(SGD(), magma(), "float32", {"rows": LAYOUTS["rows"]}, np.random.default_rng(1))
    plans = [held.plans[0]._replace(shard=object())]
    with pytest.raises(NotImplementedError, match="needs a reduction"):
        update_planned(plans, held.params, held.params, held.states, step=1, lr=0.1)


def test_without_memory_nothing_is_changed():
    """A table that asks for 2⁶⁰ rows: what threads share would take more memory than there are addresses."""
    held = Parameters.of(SGD(), magma(), "float32", {"rows": LAYOUTS["rows"]}, np.random.default_rng(1))
    compiled = library(formula_of(held.plans[0], "float32", "float32"))
    table = np.zeros(1, TENSOR)
    table["rows"], table["columns"] = 2**60, 1
    with pytest.raises(MemoryError, match="no memory to begin the step"):
        compiled.step(table, 1)


def test_the_order_of_scores_in_memory_does_not_show():
    """Two axes of blocks; the scores lie in memory column after column."""
    held = Parameters.of(AdamW(), magma(), "float32", {"leading": LAYOUTS["leading"]}, np.random.default_rng(3))
    scores = np.asfortranarray(np.linspace(0.4, 0.6, 12, dtype=np.float32).reshape(3, 4))
    held.states = [held.states[0]._replace(score=scores)]
    held.step(gradients(held.params, np.random.default_rng(4)), 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x._replace(score=None), "state.score of 'rows' is missing"),
        (lambda x: x._replace(mu=x.mu.astype(np.float64)), "state.mu of 'rows' must have dtype"),
        (lambda x: x._replace(mu=x.mu[:5]), "state.mu of 'rows' must have shape"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, said):
    """The loops would read past its end."""
    held = Parameters.of(AdamW(), magma(), "float32", {"rows": LAYOUTS["rows"]}, np.random.default_rng(1))
    with pytest.raises((TypeError, ValueError), match=said):
        update_planned(held.plans, held.params, held.params, [change(held.states[0])], step=1, lr=0.1)


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_a_bad_number_of_threads_is_refused(threads):
    held = Parameters.of(AdamW(), magma(), "float32", {"rows": LAYOUTS["rows"]}, np.random.default_rng(1))
    with pytest.raises((TypeError, ValueError), match="threads must"):
        update_planned(held.plans, held.params, held.params, held.states, step=1, lr=0.1, threads=threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_from_one_with_threads_steps():
    """OpenMP waits for threads that only the parent has."""
    code = """
import os, sys
import numpy as np
from native_steps import LAYOUTS, Parameters
from magma_core import AdamW, magma
held = Parameters.of(AdamW(), magma(), "float32", {"whole": LAYOUTS["whole"]}, np.random.default_rng(1))
held.step(held.params, 1, threads=(2,))
child = os.fork()
held.step(held.params, 2, threads=(2,))
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""
    paths = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=120)
