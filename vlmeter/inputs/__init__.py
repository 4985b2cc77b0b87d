"""Pictures: made up, from datasets, from files."""
