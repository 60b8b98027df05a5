"""Files that are whole or not there, checksums, and what an artifact records of its making."""
