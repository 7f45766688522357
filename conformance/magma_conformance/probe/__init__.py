"""Measures the arithmetic of each backend and device, operation by operation."""
