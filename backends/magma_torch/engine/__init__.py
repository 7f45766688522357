"""Many parameters in one step: batches, compiled programs, shards."""
