"""Tasks that every implementation is given."""
