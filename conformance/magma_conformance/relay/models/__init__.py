"""One model in each framework."""
