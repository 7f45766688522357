"""One framework's part of the run, each in a process of its own."""
