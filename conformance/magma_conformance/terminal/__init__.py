"""Tables and progress, with or without a terminal."""
