"""The Dice loss as a class, which torch lacks and its neighbours have."""

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

    loss = 1 - (2 Σ p t + 2 smooth) / (Σ p + Σ t + 2 smooth), the sums over the pixels of each
    example and class, as `jaxloss.dice_loss` has it for classes that stand last.

    As all classes here it has torch's layout: the input is (N, C) or (N, C, d1, …, dK). What the
    target is says what the probabilities p are, as in `FocalLoss`:

    - class indices, (N) or (N, d1, …, dK): the softmax over the classes. A target outside [0, C)
      that is not `ignore_index` gives NaN for that example, and with `batch` for all.
    - 1 and 0 (or probabilities) in the shape of the input, which may leave out the class axis where
      C is 1: the sigmoid of each element. One-hot targets of a softmax are indices after
      `argmax(1)`.

    Small losses keep their digits. With `smooth` 0 a class that is neither there nor predicted is
    perfect. When nothing takes part the mean is NaN, but its gradient is 0.

    Others' losses in these arguments: MONAI's `DiceLoss` has smooth=5e-6, and its
    `include_background=False` is `ignore_background=True`; segmentation_models_pytorch's has
    smooth=0.0, batch=True (and leaves out the loss of a class that is nowhere); kornia's has
    smooth=5e-9 (and by default also adds up the classes). Keras's `Dice` takes probabilities: see
    `jaxloss.dice_loss`.

    Args:
      smooth: added to both sides of the quotient, twice, 0 or more; a number.
      batch: whether the pixels of all examples are counted together, so that there is one loss
        per class.
      ignore_background: whether class 0 is left out, where there is another.
      weight: one factor per class, shape (C,), which the mean does not divide by; a buffer, not
        trained.
      ignore_index: the target of pixels that do not take part, of either kind.
      reduction: "none" for one loss per example and class, (N, C), or with `batch` per class, (C,),
        one class fewer with `ignore_background`; "mean" or "sum". The mean does not count regions
        of which nothing takes part.

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
