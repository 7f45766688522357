"""The tasks that every implementation runs."""
