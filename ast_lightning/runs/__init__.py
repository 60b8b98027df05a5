"""Running, resuming and recording a run: Trainer, checkpoints, results, loggers, locks."""
