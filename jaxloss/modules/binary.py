"""torch.nn's loss classes: binary cross entropies and soft margins."""

from __future__ import annotations

import dataclasses

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base.reduction import Reduction
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class BCELoss(Loss):
    """Binary cross entropy of probabilities, as torch.nn.BCELoss; see
    `jaxloss.functional.binary_cross_entropy`.

    Args:
      weight: broadcastable to the shape of the input; a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.BCELoss()
      >>> print(f"{loss(jnp.array([0.5, 0.9]), jnp.array([1.0, 1.0])):.4f}")
      0.3993

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.binary_cross_entropy(
            input, target, weight=value_of(self.weight), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class BCEWithLogitsLoss(Loss):
    """Binary cross entropy of logits, as torch.nn.BCEWithLogitsLoss; see
    `jaxloss.functional.binary_cross_entropy_with_logits`.

    Args:
      weight: broadcastable to the shape of the input; a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".
      pos_weight: weight of the positive targets, broadcastable to the shape of the input; a
        buffer, not trained.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.BCEWithLogitsLoss(pos_weight=jnp.array([2.0]))
      >>> print(f"{loss(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0])):.4f}")
      1.7566

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"
    pos_weight: ArrayLike | None = None

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            weight=value_of(self.weight),
            pos_weight=value_of(self.pos_weight),
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class SoftMarginLoss(Loss):
    """Soft margin loss, as torch.nn.SoftMarginLoss; see `jaxloss.functional.soft_margin_loss`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.SoftMarginLoss()
      >>> print(f"{loss(jnp.array([0.0, 2.0]), jnp.array([1.0, -1.0])):.4f}")
      1.4100

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.SoftMarginLoss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.soft_margin_loss(input, target, reduction=self.reduction)


@dataclasses.dataclass(eq=False)
class MultiLabelSoftMarginLoss(Loss):
    """Multi-label soft margin loss, as torch.nn.MultiLabelSoftMarginLoss; see
    `jaxloss.functional.multilabel_soft_margin_loss`.

    Args:
      weight: one weight per class, shape (C,); a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MultiLabelSoftMarginLoss()
      >>> input, target = jnp.array([[1.0, -2.0, 0.0]]), jnp.array([[1.0, 0.0, 1.0]])
      >>> print(f"{loss(input, target):.4f}")
      0.3778

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelSoftMarginLoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.multilabel_soft_margin_loss(
            input, target, weight=value_of(self.weight), reduction=self.reduction
        )
