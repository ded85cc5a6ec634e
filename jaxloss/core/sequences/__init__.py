"""Losses for sequences that are not aligned in time."""
