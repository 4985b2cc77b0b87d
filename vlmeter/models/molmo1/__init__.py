"""Molmo, first generation, natively: its token geometry, its preprocessing and its network.

Importing the package imports nothing heavy: the geometry is plain arithmetic, and torch comes in only with
the modules that run the model.
"""

#: What this generation is called wherever a model is named: its family, and model_type in `config.json`.
NAME = "molmo"
