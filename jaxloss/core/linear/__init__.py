"""Losses of a linear layer's outputs, without holding all logits at once."""
