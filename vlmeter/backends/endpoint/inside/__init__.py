"""What runs inside a server, in an environment that does not have vlmeter: no file here imports anything of it."""
