"""Files of a working directory: names, locks, checksums, the runs in it and how far they are."""
