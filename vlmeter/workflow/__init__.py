"""What the workflow's rules call."""
