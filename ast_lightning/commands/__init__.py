"""The three commands: ``train_experts``, ``distill`` and ``evaluate``."""
