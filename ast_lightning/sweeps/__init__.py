"""Multiruns: checks before the jobs start, and the table of results."""
