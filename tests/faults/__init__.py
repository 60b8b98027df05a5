"""Kills the three scripts at instants of all kinds, and compares what they end with: ``python -m tests.faults``."""
