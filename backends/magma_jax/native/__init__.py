"""The step in C on the CPU, as one custom call of XLA."""
