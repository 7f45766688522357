"""magma_core on NumPy: the reference that every other backend is compared with."""
