"""Host time of a step over many small tensors: `magma_torch` with kernels that are not launched, and fused AdamW.

    python tests/helpers/host_time.py 10000

Milliseconds, medians of interleaved steps. Tensors have one element, so computing takes next to no time.
"""

import os
import sys
import time
from statistics import median

os.environ["TRITON_INTERPRET"] = "1"

import torch
from magma_torch import Magma
from magma_torch.gpu.launcher import Launcher

Launcher._launch = lambda self: None


def main(count: int) -> None:
    """Both in turns."""
    torch.set_num_threads(1)
    params = [[torch.nn.Parameter(torch.zeros(1)) for _ in range(count)] for _ in range(2)]
    for param in (param for side in params for param in side):
        param.grad = torch.zeros(1)
    named = [(f"layers.{i}.weight", param) for i, param in enumerate(params[0])]
    optimizers = {"magma_torch": Magma(named), "AdamW fused": torch.optim.AdamW(params[1], fused=True)}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(16):
        for name, optimizer in optimizers.items():
            started = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - started)
    for name, taken in seconds.items():
        print(f"{name}: {1e3 * median(taken[1:]):.0f} ms for {count} tensors")


if __name__ == "__main__":
    main(int(sys.argv[1]))
