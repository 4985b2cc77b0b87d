"""What was measured of each cell, where it lies, and whether it still holds."""
