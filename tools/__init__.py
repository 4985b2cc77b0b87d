"""Programs for those who work on vlmeter: locks, pages, samples, servers for tests."""
