"""The three commands: from a configuration to files on disk."""
