"""Check that this machine computes correctly on each of its devices: ``python -m ast_lightning.check``."""
