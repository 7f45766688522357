"""Arrays and tasks as text and JSON."""
