"""Reports: write, read, compare, and render as a page."""
