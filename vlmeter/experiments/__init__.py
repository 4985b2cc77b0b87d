"""The questions of a study: one file each, its keys and its cells."""
