"""torch.nn's loss classes: cosines and triplets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base import checks
from jaxloss._base.reduction import Reduction
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class CosineEmbeddingLoss(Loss):
    """Cosine embedding loss, as torch.nn.CosineEmbeddingLoss; see
    `jaxloss.functional.cosine_embedding_loss`.

    Args:
      margin: the largest cosine that a dissimilar pair may have for free.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.CosineEmbeddingLoss(margin=0.5)
      >>> x1, x2 = jnp.array([[3.0, 4.0], [3.0, 4.0]]), jnp.array([[4.0, 3.0], [4.0, 3.0]])
      >>> print(f"{loss(x1, x2, jnp.array([1.0, -1.0])):.4f}")
      0.2500

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CosineEmbeddingLoss.html
    """

    margin: float = 0.0
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input1: ArrayLike, input2: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.cosine_embedding_loss(
            input1, input2, target, margin=value_of(self.margin), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class TripletMarginLoss(Loss):
    """Triplet margin loss, as torch.nn.TripletMarginLoss; see
    `jaxloss.functional.triplet_margin_loss`.

    Args:
      margin: above 0, in the unit of the distance.
      p: the degree of the norm.
      eps: added to every difference.
      swap: whether to measure a negative from the positive where that is closer than the anchor.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown or `margin` is not positive. A call raises what the
        function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.TripletMarginLoss()
      >>> anchor, positive = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> print(f"{loss(anchor, positive, jnp.array([[1.5, 0.0]])):.4f}")
      0.5000

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.TripletMarginLoss.html
    """

    margin: float = 1.0
    p: float = 2.0
    eps: float = 1e-6
    swap: bool = False
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def _check(self) -> None:
        super()._check()
        checks.POSITIVE.check_concrete("margin", value_of(self.margin))

    def __call__(self, anchor: ArrayLike, positive: ArrayLike, negative: ArrayLike) -> jax.Array:
        return F.triplet_margin_loss(
            anchor,
            positive,
            negative,
            margin=value_of(self.margin),
            p=self.p,
            eps=value_of(self.eps),
            swap=self.swap,
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class TripletMarginWithDistanceLoss(Loss):
    """Triplet margin loss with a distance function of your own, as
    torch.nn.TripletMarginWithDistanceLoss; see
    `jaxloss.functional.triplet_margin_with_distance_loss`.

    Args:
      distance_function: maps two batches to one distance per pair, and may be a Flax module;
        `pairwise_distance` if None.
      margin: above 0, in the unit of the distance.
      swap: whether to measure a negative from the positive where that is closer than the anchor.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown or `margin` is not positive. A call raises what the
        function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> def manhattan(x, y):
      ...     return jnp.sum(jnp.abs(x - y), axis=-1)
      >>> loss = nnx.TripletMarginWithDistanceLoss(distance_function=manhattan, margin=2.0)
      >>> anchor, positive = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> print(loss(anchor, positive, jnp.array([[1.5, 0.5]])))
      1.0

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.TripletMarginWithDistanceLoss.html
    """

    distance_function: Callable[[Any, Any], jax.Array] | None = dataclasses.field(
        default=None, kw_only=True
    )
    margin: float = dataclasses.field(default=1.0, kw_only=True)
    swap: bool = dataclasses.field(default=False, kw_only=True)
    reduction: Reduction = dataclasses.field(default="mean", kw_only=True)

    def _check(self) -> None:
        super()._check()
        checks.POSITIVE.check_concrete("margin", value_of(self.margin))

    def __call__(self, anchor: ArrayLike, positive: ArrayLike, negative: ArrayLike) -> jax.Array:
        return F.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=value_of(self.margin),
            swap=self.swap,
            reduction=self.reduction,
        )
