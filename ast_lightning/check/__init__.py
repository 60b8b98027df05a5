"""Whether this machine computes what it should, on each of its devices: ``python -m ast_lightning.check``."""
