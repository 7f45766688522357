"""Cases through implementations, and a verdict on each."""
