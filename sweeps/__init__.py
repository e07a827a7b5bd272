"""Grid in, table and report out."""
