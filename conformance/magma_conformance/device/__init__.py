"""Checks of a device beyond the cases, one process each: `python -m magma_conformance.device`."""
