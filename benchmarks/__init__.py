"""Benchmarks that reproduce the numbers in the documentation."""
