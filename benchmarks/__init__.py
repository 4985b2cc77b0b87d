"""How well vlmeter itself measures, checked on the machine at hand."""
