"""The class axes of scores, and where labels point."""
