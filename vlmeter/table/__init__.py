"""One tidy table of everything that was measured."""
