"""Proof that implementations of SkipUpdate and Magma agree in every bit."""
