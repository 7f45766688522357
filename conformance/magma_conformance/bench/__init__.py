"""Seconds and bytes of a step, beside the optimizers that people have."""
