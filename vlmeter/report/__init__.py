"""The report: everything that a study found on one page."""
