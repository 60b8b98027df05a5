"""Tests of the package, laid out like its rooms."""

PATIENCE = 600.0
"""Seconds that a test waits for a process before it gives up. A busy machine takes ten times as long as a quiet one."""
