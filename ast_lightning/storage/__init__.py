"""Atomic file writing, checksums, and the provenance recorded with every artifact."""
