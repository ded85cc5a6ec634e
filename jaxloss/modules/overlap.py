"""The Dice loss as a class, which other libraries have and torch lacks."""

from __future__ import annotations

import dataclasses

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss._base.reduction import Reduction
from jaxloss.functional.overlap import dice_loss
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class DiceLoss(Loss):
    """Dice loss of logits: what predicted and true regions do not have in common.

    loss = 1 - (2 Σ p t + 2 smooth) / (Σ p + Σ t + 2 smooth), with sums over the pixels of each
    example and class, as in `jaxloss.dice_loss`, where classes are the last axis.

    Like all classes here it has torch's layout: the input is (N, C) or (N, C, d1, …, dK). As in
    `FocalLoss`, the kind of target decides what the probabilities p are:

    - class indices, (N) or (N, d1, …, dK): the softmax over the classes. A target outside [0, C)
      that is not `ignore_index` gives NaN for that example, and with `batch` for all.
    - 1 and 0 (or probabilities) in the shape of the input; if C is 1, the class axis may be left
      out: the sigmoid of each element. For a softmax turn one-hot targets into indices with
      `argmax(1)`.

    Small losses keep their digits. With `smooth` 0, a class that is neither present nor predicted
    has loss 0. When nothing takes part the mean is NaN, but its gradient is 0.

    Other libraries' losses in these arguments: MONAI's `DiceLoss` has smooth=5e-6, and its
    `include_background=False` is `ignore_background=True`; segmentation_models_pytorch's has
    smooth=0.0, batch=True (and leaves out the loss of a class that is nowhere); kornia's has
    smooth=5e-9 (and by default also adds up the classes). Keras's `Dice` takes probabilities: see
    `jaxloss.dice_loss`.

    Args:
      smooth: 0 or more, added twice to the numerator and to the denominator; a number.
      batch: whether the pixels of all examples are counted together, so that there is one loss
        per class.
      ignore_background: whether class 0 is left out, unless it is the only one.
      weight: one factor per class, shape (C,), by which the mean does not divide; a buffer, not
        trained.
      ignore_index: the target of pixels that do not take part, for either kind of target.
      reduction: "none" for one loss per example and class, (N, C), or with `batch` per class, (C,),
        one class fewer with `ignore_background`; "mean" or "sum". The mean does not count regions
        in which nothing takes part.

    Raises:
      ValueError: the reduction is unknown. A call also raises it for shapes that do not fit and
        for a negative `smooth`, and a TypeError if the input is not floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> logits = jnp.array([[[2.0, 0.5, -1.0], [-1.0, 0.0, 3.0]]])  # Two classes, three pixels.
      >>> print(f"{nnx.DiceLoss()(logits, jnp.array([[0, 0, 1]])):.4f}")
      0.0899
      >>> print(f"{nnx.DiceLoss(smooth=0.0)(logits[:, :1], jnp.array([[1, 1, 0]])):.4f}")
      0.2030

    Source: Milletari et al., V-Net, arXiv:1606.04797.
    """

    smooth: float = 1.0
    batch: bool = False
    ignore_background: bool = False
    weight: ArrayLike | None = None
    ignore_index: int = -100
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return dice_loss(
            input,
            target,
            smooth=value_of(self.smooth),
            batch=self.batch,
            ignore_background=self.ignore_background,
            weight=value_of(self.weight),
            ignore_index=value_of(self.ignore_index),
            reduction=self.reduction,
        )
