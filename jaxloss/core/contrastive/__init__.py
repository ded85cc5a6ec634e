"""Contrast over a batch, whose similarities exist only a block of columns at a time."""
