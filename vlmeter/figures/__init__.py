"""Figures of the report: one file and one line in the registry each; they read nothing but the table."""

from __future__ import annotations
