"""torch's losses for yes-or-no labels: BCE of probabilities and logits, soft margin losses."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise
from jaxloss._base.reduction import Reduction
from jaxloss.core import binary as core
from jaxloss.functional._torch import reduced, torch_function


def _weighted(losses: jax.Array, weight: ArrayLike | None) -> jax.Array:
    """The losses times weights that broadcast to them."""
    weight = checks.follower("weight", weight, losses)
    if weight is None:
        return losses
    return elementwise.product(checks.broadcast("weight", weight, losses), losses)


@torch_function()
def binary_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.binary_cross_entropy, over `jaxloss.binary_cross_entropy`.

    Differs from torch: at an input of 0 or 1 that agrees with the target the gradient is ±1, which
    is the derivative, where torch has 0; an input outside [0, 1] gives NaN instead of an error.

    Args:
      input: probabilities, floating-point, of any shape.
      target: the probability of yes, in the same shape.
      weight: broadcastable to the shape of `input`.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum". The mean divides by the number of elements, even with
        `weight`.

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes do not fit or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(f"{F.binary_cross_entropy(jnp.array([0.5, 0.9]), jnp.array([1.0, 1.0])):.4f}")
      0.3993

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy.html
    """
    return reduced(_weighted(core.binary_cross_entropy(input, target), weight), reduction)


@torch_function()
def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: ArrayLike | None = None,
) -> jax.Array:
    """As torch.nn.functional.binary_cross_entropy_with_logits, over
    `jaxloss.sigmoid_binary_cross_entropy`.

    Args:
      input: logits, floating-point, of any shape.
      target: the probability of yes, in the same shape.
      weight: broadcastable to the shape of `input`.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum". The mean divides by the number of elements, even with
        `weight`.
      pos_weight: weight of the positive targets, broadcastable to the shape of `input`.

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes do not fit or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> input, target = jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0])
      >>> print(F.binary_cross_entropy_with_logits(input, target).round(4))
      1.41

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy_with_logits.html
    """
    losses = core.sigmoid_binary_cross_entropy(input, target, pos_weight=pos_weight)
    return reduced(_weighted(losses, weight), reduction)


@torch_function()
def soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.soft_margin_loss, over `jaxloss.soft_margin_loss`.

    Differs from torch: large scores do not overflow; shapes must be equal.

    Args:
      input: scores, floating-point, of any shape.
      target: 1 or -1, in the same shape.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes differ or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(F.soft_margin_loss(jnp.array([0.0, 2.0]), jnp.array([1.0, -1.0])).round(4))
      1.41

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.soft_margin_loss.html
    """
    return reduced(core.soft_margin_loss(input, target), reduction)


@torch_function()
def multilabel_soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.multilabel_soft_margin_loss, over
    `jaxloss.multilabel_soft_margin_loss`.

    Differs from torch: shapes must be equal.

    Args:
      input: logits, floating-point, (C), (N, C) or any (…, C).
      target: 1 for each class that applies and 0 for the others, in the same shape.
      weight: one weight per class, shape (C,).
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per example for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes do not fit or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> input, target = jnp.array([[1.0, -2.0, 0.0]]), jnp.array([[1.0, 0.0, 1.0]])
      >>> print(F.multilabel_soft_margin_loss(input, target).round(4))
      0.3778

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.multilabel_soft_margin_loss.html
    """
    return reduced(core.multilabel_soft_margin_loss(input, target, class_weights=weight), reduction)
