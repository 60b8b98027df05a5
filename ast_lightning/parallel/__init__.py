"""Several processes: locks on folders, failures of other processes, workers, devices."""
