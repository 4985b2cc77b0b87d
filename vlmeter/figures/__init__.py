"""Figures of the report: one file and one line in the registry each; they read the table and the answers."""

from __future__ import annotations
