"""The study: typed keys, one loader, the plan."""
