"""The legs, one per framework, each in its own process."""
