"""Steps on a GPU: a few Triton kernels trace the core's functions; each runs over all parameters at once."""
