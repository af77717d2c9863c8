"""What can be decided without waiting: no await, no clock, no chance, no file, no environment."""
