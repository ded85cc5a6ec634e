"""Losses of sequences that are not aligned in time."""
