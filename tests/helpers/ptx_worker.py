"""Compiles for an H100 without needing one: base, format, "kernels" or not. XLA_FLAGS sets the folder of the PTX."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from magma_jax import magma

from magma_core import AdamW

# What XLA asks of a device before it compiles for it (openxla/xla, backends/gpu/target_config/specs/h100_sxm.txtpb).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def compiled(function: Callable[..., Any], *arguments: Any, donated: tuple[int, ...] = ()) -> Any:
    """The program of ``function``; of arguments only shapes and dtypes are looked at."""
    topology = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1")
    there = jax.sharding.SingleDeviceSharding(topology.devices[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments)
    return jax.jit(function, donate_argnums=donated).lower(*shapes).compile()


def compile_step(base: str, dtype: str, kernels: str = "") -> None:
    """Three leaves, of several kinds of blocks; the base "factor-1" is AdamW where 1 − β₂ is 1."""
    axes: dict[str, Any] = {"whole": (), "rows": (0,), "dense": None}
    own = AdamW(beta2=1e-8) if base == "factor-1" else base
    optimizer = magma(0.01, own, block_axes=lambda name, leaf: axes[name], kernels=bool(kernels))
    params = {name: jnp.ones((512, 1024), dtype) for name in axes}
    compiled(optimizer.step, params, params, optimizer.init(params))


if __name__ == "__main__":
    compile_step(*sys.argv[1:])
