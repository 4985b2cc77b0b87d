"""Statements of the analysis, judged by the data."""
