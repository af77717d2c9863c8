"""Protocol logic without I/O: no await, clock, randomness, files or environment variables."""
