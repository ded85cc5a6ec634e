"""The focal loss as a class, which other libraries have and torch lacks."""

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

    Like all classes here it has torch's layout: the input is (N, C) or (N, C, d1, …, dK). The kind
    of target decides which focal loss it is:

    - class indices, (N) or (N, d1, …, dK): a softmax over the classes, as in
      `jaxloss.softmax_focal_loss_with_integer_labels` and `CrossEntropyLoss`. A target outside
      [0, C) that is not `ignore_index` gives NaN for that example.
    - 1 and 0 (or probabilities) in the shape of the input; if C is 1, the class axis may be left
      out. Each element is a question of its own, as in `jaxloss.sigmoid_focal_loss` and
      `BCEWithLogitsLoss`. For a softmax turn one-hot targets into indices with `argmax(1)`.

    With γ = 0 it is the cross entropy, except that the mean does not divide by the weights. Values
    are right for confident logits; when nothing takes part the mean is NaN, but its gradient is 0.

    Other libraries' losses in these arguments: torchvision's `sigmoid_focal_loss` is alpha=0.25,
    reduction="none". MONAI's `FocalLoss` and Keras's `BinaryFocalCrossentropy` are the defaults
    here, the latter with `apply_class_balancing` alpha=0.25. For a softmax pass class indices:
    Keras's `CategoricalFocalCrossentropy` is weight=jnp.full(C, 0.25). MONAI's with `use_softmax`
    and kornia's `FocalLoss` also average over the classes, which makes a C-th of the mean here;
    kornia's alpha is a weight of 1 - alpha for class 0 and alpha for all others.
    segmentation_models_pytorch's `FocalLoss` takes 1 and 0, one-hot with `mode="multiclass"`, and
    adds up the classes: C times the mean.

    Args:
      alpha: α in [0, 1], the weight of targets of 1, where that of 0 is 1 - α; a number. Not for
        class indices.
      gamma: γ, 0 or more, how fast the weight falls; a number.
      weight: one factor per class, shape (C,), by which the mean does not divide; a buffer, not
        trained.
      ignore_index: the target of what does not take part, for either kind of target.
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
