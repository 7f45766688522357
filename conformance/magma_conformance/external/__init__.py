"""Implementations of others: a factory in Python, or a program."""
