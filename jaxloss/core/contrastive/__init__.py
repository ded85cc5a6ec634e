"""Contrast over a batch, whose similarities exist only a block at a time."""
