"""torch.nn's loss classes: scores that must win by a margin."""

from __future__ import annotations

import dataclasses

import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base import checks
from jaxloss._base.reduction import Reduction
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class HingeEmbeddingLoss(Loss):
    """Hinge embedding loss, as torch.nn.HingeEmbeddingLoss; see
    `jaxloss.functional.hinge_embedding_loss`.

    Args:
      margin: in the unit of the input.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.HingeEmbeddingLoss()
      >>> print(loss(jnp.array([0.25, 0.25]), jnp.array([1.0, -1.0])))
      0.5

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.HingeEmbeddingLoss.html
    """

    margin: float = 1.0
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.hinge_embedding_loss(
            input, target, margin=value_of(self.margin), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class MultiLabelMarginLoss(Loss):
    """Multi-label margin loss, as torch.nn.MultiLabelMarginLoss; see
    `jaxloss.functional.multilabel_margin_loss`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MultiLabelMarginLoss()
      >>> input, target = jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([[3, 0, -1, 1]])
      >>> print(f"{loss(input, target):.4f}")
      0.8500

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelMarginLoss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.multilabel_margin_loss(input, target, reduction=self.reduction)


@dataclasses.dataclass(eq=False)
class MarginRankingLoss(Loss):
    """Margin ranking loss, as torch.nn.MarginRankingLoss; see
    `jaxloss.functional.margin_ranking_loss`.

    Args:
      margin: in the unit of the scores.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MarginRankingLoss(margin=0.25)
      >>> print(loss(jnp.array([2.0, 0.5]), jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0])))
      0.375

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MarginRankingLoss.html
    """

    margin: float = 0.0
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input1: ArrayLike, input2: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.margin_ranking_loss(
            input1, input2, target, margin=value_of(self.margin), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class MultiMarginLoss(Loss):
    """Multi-class margin loss, as torch.nn.MultiMarginLoss; see
    `jaxloss.functional.multi_margin_loss`.

    Args:
      p: 1 or 2.
      margin: in the unit of the input.
      weight: one weight per class, shape (C,); a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown, `p` is neither 1 nor 2, or `weight` is no vector. A call
        raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MultiMarginLoss()
      >>> print(f"{loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([3])):.4f}")
      0.3250

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiMarginLoss.html
    """

    p: int = 1
    margin: float = 1.0
    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def _check(self) -> None:
        super()._check()
        checks.one_of("p", self.p, (1, 2))
        weight = value_of(self.weight)
        if weight is not None and jnp.ndim(weight) != 1:
            checks.fail(ValueError, "weight", "have shape (C,)", jnp.shape(weight))

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.multi_margin_loss(
            input,
            target,
            p=self.p,
            margin=value_of(self.margin),
            weight=value_of(self.weight),
            reduction=self.reduction,
        )
