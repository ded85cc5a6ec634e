"""Losses of a linear layer's outputs, without all logits at once."""
