"""Steps on a GPU: the core's functions, traced into a few Triton kernels that each go over all parameters at once."""
