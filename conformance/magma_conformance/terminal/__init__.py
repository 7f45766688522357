"""Tables and progress, on a terminal and without one."""
