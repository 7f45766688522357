"""The portable state: one file that every framework reads and writes (docs/state.md)."""
