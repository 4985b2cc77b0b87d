"""Two sides set against each other: faster, slower, the same, or noise."""
