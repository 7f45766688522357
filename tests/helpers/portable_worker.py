"""The processes of test_jax_portable.py, with eight virtual devices in all.

``python portable_worker.py FOLDER ADDRESS PROCESSES NUMBER``
"""

import os
import sys
from pathlib import Path

FOLDER, ADDRESS, PROCESSES, NUMBER = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

os.environ |= {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // PROCESSES}",
    "JAX_PLATFORMS": "cpu",
}  # before JAX looks for devices

import jax  # noqa: E402

if PROCESSES > 1:
    jax.distributed.initialize(ADDRESS, PROCESSES, NUMBER)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from magma_conformance.bits import assert_bits_equal  # noqa: E402
from magma_jax import by_rule, load_state, save_state  # noqa: E402
from magma_numpy import namespace as xp  # noqa: E402

import magma_core  # noqa: E402
from magma_core import AdamW, Saved, magma, write_state  # noqa: E402

LEAVES = {"rows": ((8, 4), (0,), P("x", "y")), "columns": ((4, 8), (1,), P(None, "x")), "bias": ((16,), None, P("y"))}
RATE, SEED, STEPS = 0.1, 3, 2


def value(name: str, step: int) -> np.ndarray:
    return np.random.default_rng((step, len(name))).normal(size=LEAVES[name][0]).astype(np.float32)


def reference(path: Path) -> bytes:
    """The file of two steps by the core, on this process alone."""
    saved = {}
    for name, (shape, axes, _) in LEAVES.items():
        options = {"base": AdamW(), "rule": magma(), "block_axes": axes, "xp": xp}
        param = value(name, 0)
        state = magma_core.init(param, **options)
        for step in range(1, STEPS + 1):
            param, state, _ = magma_core.update(
                param, value(name, step), state, name=name, step=step, lr=RATE, seed=SEED, **options
            )
        saved[name] = Saved(shape, axes, STEPS, SEED, AdamW(), magma(), state)
    write_state(path, saved)
    return path.read_bytes()


mesh = jax.make_mesh((4, 2), ("x", "y"))
shardings = {name: NamedSharding(mesh, spec) for name, (_, _, spec) in LEAVES.items()}


def tree(step: int) -> dict[str, jax.Array]:
    return {
        name: jax.make_array_from_callback(LEAVES[name][0], shardings[name], value(name, step).__getitem__)
        for name in LEAVES
    }


optimizer = by_rule(RATE, magma(), AdamW(), seed=SEED, block_axes=lambda name, leaf: LEAVES[name][1])
advance = jax.jit(optimizer.step)
params = tree(0)
start = state = optimizer.init(params)
for step in range(1, STEPS + 1):
    params, state = advance(params, tree(step), state)
file = FOLDER / "state"
save_state(optimizer, params, state, file)
assert file.read_bytes() == reference(FOLDER / f"core.{NUMBER}")

found = load_state(optimizer, params, file)
for loaded, begun, stepped in zip(*map(jax.tree.leaves, (found, start, state)), strict=True):
    assert (loaded.sharding, loaded.committed) == (begun.sharding, begun.committed)
    for ours, theirs in zip(loaded.addressable_shards, stepped.addressable_shards, strict=False):
        if loaded.sharding == stepped.sharding:
            assert_bits_equal(np.asarray(ours.data), np.asarray(theirs.data))
save_state(optimizer, params, found, FOLDER / "again")
assert (FOLDER / "again").read_bytes() == file.read_bytes()

for failing in range(PROCESSES if PROCESSES > 1 else 0):
    kind, match = (FileNotFoundError, "missing") if failing == NUMBER else (RuntimeError, "another process")
    with pytest.raises(kind, match=match):
        load_state(optimizer, params, FOLDER / "missing" if failing == NUMBER else file)
if PROCESSES > 1:
    other = FOLDER / f"not written by {NUMBER}"
    with pytest.raises(FileNotFoundError if NUMBER == 0 else RuntimeError):
        save_state(optimizer, params, state, FOLDER / "missing" / "state" if NUMBER == 0 else other)
    assert not other.exists()  # only the first writes
print("done", flush=True)
