"""Stand-ins for what the tests cannot have: a network, a hub."""
