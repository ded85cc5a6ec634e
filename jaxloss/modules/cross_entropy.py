"""torch.nn's loss classes: cross entropy of logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base.reduction import Reduction
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class CrossEntropyLoss(Loss):
    """Cross entropy of logits, as torch.nn.CrossEntropyLoss; see
    `jaxloss.functional.cross_entropy`.

    Args:
      weight: one weight per class, shape (C,); a buffer, not trained.
      size_average: deprecated, see `reduction`.
      ignore_index: the class index of examples that do not take part.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".
      label_smoothing: share of the target spread evenly over the classes, in [0, 1].

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.CrossEntropyLoss(label_smoothing=0.1)
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> print(f"{loss(logits, jnp.array([0, -100])):.4f}")
      0.3995

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.cross_entropy(
            input,
            target,
            weight=value_of(self.weight),
            ignore_index=value_of(self.ignore_index),
            reduction=self.reduction,
            label_smoothing=value_of(self.label_smoothing),
        )
