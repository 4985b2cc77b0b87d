"""`python -m vlmeter` is `vlmeter`."""

from __future__ import annotations

from vlmeter.cli.main import main

main()
