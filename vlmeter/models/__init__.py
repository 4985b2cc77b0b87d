"""What is run: families, the Molmo port, checkpoints, tokens."""
