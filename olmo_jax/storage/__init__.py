"""Files of a working directory: names, locks, checksums, records of its runs and their status."""
