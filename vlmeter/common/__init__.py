"""What every stage may use: errors, files, locks, processes."""
