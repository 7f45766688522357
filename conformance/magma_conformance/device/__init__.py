"""What has to be proven of a device beside the cases: each check is a process, `python -m magma_conformance.device`."""
