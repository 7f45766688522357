"""Runs cases through implementations and judges the results."""
