"""Numbers: medians, intervals, units, and how they are said."""
