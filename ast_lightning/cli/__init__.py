"""The command lines of an installed package: ``ast-lightning COMMAND …``, or ``python -m ast_lightning COMMAND …``."""
