"""What a finished or interrupted run is: Trainer, checkpoints, results, machine."""
