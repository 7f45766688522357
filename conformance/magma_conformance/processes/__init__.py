"""Processes of our own: how they start, work and end."""
