"""What every loss stands on, and nothing of any loss."""
