"""Contrast over a batch, whose similarities exist a block of columns at a time."""
