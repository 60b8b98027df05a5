"""Several processes: locks on folders, failures of peers, workers, devices."""
