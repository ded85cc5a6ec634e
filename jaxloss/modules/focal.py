"""The focal loss as a class, which torch lacks and its neighbours have."""

from __future__ import annotations

import dataclasses

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss._base.reduction import Reduction
from jaxloss.functional.focal import focal_loss
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class FocalLoss(Loss):
    """Focal loss of logits: cross entropy with less weight on what is already right.

    loss = w (1 - p)^γ nll, with nll = -log p and p the probability of the right answer.

    As all classes here it has torch's layout: the input is (N, C) or (N, C, d1, …, dK). What the
    target is says which loss that is:

    - class indices, (N) or (N, d1, …, dK): the softmax over the classes, as
      `jaxloss.softmax_focal_loss_with_integer_labels` and `CrossEntropyLoss`. A target outside
      [0, C) that is not `ignore_index` gives NaN for that example.
    - 1 and 0 (or probabilities) in the shape of the input, which may leave out the class axis where
      C is 1: each element is a question of its own, as in `jaxloss.sigmoid_focal_loss` and
      `BCEWithLogitsLoss`. One-hot targets of a softmax are indices after `argmax(1)`.

    For γ = 0 it is the cross entropy, whose mean is not divided by weights, though. Values are
    right for confident logits; when nothing takes part the mean is NaN, but its gradient is 0.

    Others' losses in these arguments: torchvision's `sigmoid_focal_loss` has alpha=0.25,
    reduction="none"; MONAI's `FocalLoss` these defaults, and Keras's `BinaryFocalCrossentropy` too,
    or alpha=0.25 with `apply_class_balancing`; theirs with a softmax take indices, Keras's
    `CategoricalFocalCrossentropy` weight=jnp.full(C, 0.25), and so does kornia's `FocalLoss` for
    its alpha. segmentation_models_pytorch's takes 1 and 0, with `mode="multiclass"` one-hot, of
    which it adds the classes up: C times the mean.

    Args:
      alpha: the weight of 1 against that of 0, α and 1 - α, in [0, 1]; a number. Not for class
        indices.
      gamma: γ, 0 or more, how fast the weight falls; a number.
      weight: one factor per class, shape (C,), which the mean does not divide by; a buffer, not
        trained.
      ignore_index: the target that does not take part, of either kind.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call also raises it for shapes that do not fit, for
        `alpha` or `gamma` out of range and for `alpha` with class indices, and a TypeError if the
        input is not floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> print(f"{nnx.FocalLoss()(logits, jnp.array([0, 1])):.4f}")
      1.3337
      >>> is_of_class = jnp.array([[1, 0, 0], [0, 1, 0]])
      >>> print(f"{nnx.FocalLoss(alpha=0.25)(logits, is_of_class):.4f}")
      0.2255

    Source: Lin et al., Focal loss for dense object detection, arXiv:1708.02002.
    """

    alpha: float | None = None
    gamma: float = 2.0
    weight: ArrayLike | None = None
    ignore_index: int = -100
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return focal_loss(
            input,
            target,
            alpha=value_of(self.alpha),
            gamma=value_of(self.gamma),
            weight=value_of(self.weight),
            ignore_index=value_of(self.ignore_index),
            reduction=self.reduction,
        )
