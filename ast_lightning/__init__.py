"""Dataset distillation by matching smooth expert trajectories, on PyTorch Lightning and Hydra."""

__version__ = "0.1.0"
