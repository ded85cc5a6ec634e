"""The mathematics of the losses: unreduced, class axis last."""
