"""Pallas kernels for CUDA that trace the core's functions."""
