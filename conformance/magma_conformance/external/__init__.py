"""External implementations: a factory in Python, or a program."""
