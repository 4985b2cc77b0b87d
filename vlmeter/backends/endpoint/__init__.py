"""Models that a serving engine runs, measured through its HTTP API and, where it lets us in, from inside."""
