"""The three commands: configuration, objects, Trainer."""
