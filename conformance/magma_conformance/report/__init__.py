"""Reports: written, read, compared, and shown as a page."""
