"""Steps of `magma_jax` over a mesh of two devices, in a process that has them; used by tests/jax/test_native.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from magma_jax import magma
from magma_jax.native import primitive

ENVIRONMENT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
SHAPES = {"a": (8, 16), "b": (4,)}


def arrays(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: jnp.asarray(generator.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


def twice(x: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), x)


def _mesh(kind: AxisType) -> Any:
    return jax.make_mesh((2,), ("x",), axis_types=(kind,))


def sharded(kernels: bool | None) -> Any:
    optimizer, (params, grads) = magma(0.1, kernels=kernels), (arrays(0), arrays(1))
    params, grads = jax.device_put((params, grads), NamedSharding(_mesh(AxisType.Auto), PartitionSpec("x")))
    return jax.jit(optimizer.step)(params, grads, optimizer.init(arrays(0)))


def explicit(kernels: bool | None) -> Any:
    optimizer = magma(0.1, kernels=kernels)
    with jax.set_mesh(_mesh(AxisType.Explicit)):
        return jax.jit(optimizer.step)(arrays(0), arrays(1), optimizer.init(arrays(0)))


def alike(kernels: bool | None, check_vma: bool) -> Any:
    """Parameters are whole on each device."""
    optimizer, whole, part = magma(0.1, kernels=kernels), PartitionSpec(), PartitionSpec("x")

    def step(params: Any, grads: Any, state: Any) -> Any:
        return optimizer.step(params, jax.tree.map(lambda x: jax.lax.pmean(x[0], "x"), grads), state)

    mapped = jax.shard_map(
        step, mesh=_mesh(AxisType.Auto), in_specs=(whole, part, whole), out_specs=whole, check_vma=check_vma
    )
    return jax.jit(mapped)(arrays(0), twice(arrays(1)), optimizer.init(arrays(0)))


def apart(kernels: bool | None, check_vma: bool) -> Any:
    """Each device has parameters of its own; the result is the second one's."""
    optimizer, part = magma(0.1, kernels=kernels), PartitionSpec("x")

    def step(*arguments: Any) -> Any:
        after = optimizer.step(*(jax.tree.map(lambda x: x[0], tree) for tree in arguments))
        return jax.tree.map(lambda leaf: leaf[None], after)

    mapped = jax.shard_map(step, mesh=_mesh(AxisType.Auto), in_specs=(part,) * 3, out_specs=part, check_vma=check_vma)
    found = jax.jit(mapped)(*map(twice, (arrays(0), arrays(1), optimizer.init(arrays(0)))))
    return jax.tree.map(lambda x: x[1], found)


def run(name: str, kernels: bool | None, *options: Any) -> tuple[list[np.ndarray], set[str]]:
    """The leaves of a result, and which ways steps went."""
    ways = set()
    originals = {way: getattr(primitive.Step, way) for way in ("by_calls", "by_xla")}
    for way, original in originals.items():

        def watched(self: Any, *inputs: Any, way: str = way, original: Any = original) -> Any:
            ways.add(way)
            return original(self, *inputs)

        setattr(primitive.Step, way, watched)
    found = jax.tree.leaves(globals()[name](kernels, *options))
    for way, original in originals.items():
        setattr(primitive.Step, way, original)
    return [np.asarray(x) for x in found], ways
