"""Multiruns: the table of results, and the checks of searches."""
