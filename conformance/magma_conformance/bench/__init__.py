"""Times optimizer steps and counts their bytes, ours beside the frameworks' own optimizers."""
