"""The same model in each framework."""
