"""Many parameters in one step: batches, memory, shards."""
