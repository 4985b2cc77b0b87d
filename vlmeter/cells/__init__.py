"""What is measured: a cell, what it looks at, how often."""
