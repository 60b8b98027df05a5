"""Trajectory matching: a student follows a window of an expert trajectory."""
