"""torch's margin losses: hinge embedding, margin ranking, multi-class, multi-label."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks
from jaxloss._base.reduction import Reduction
from jaxloss.core import margin as core
from jaxloss.functional._torch import class_dimension, reduced, torch_function


@torch_function()
def hinge_embedding_loss(
    input: ArrayLike,
    target: ArrayLike,
    margin: ArrayLike = 1.0,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.hinge_embedding_loss, over `jaxloss.hinge_embedding_loss`.

    Differs from torch: shapes must be equal.

    Args:
      input: distances, floating-point, of any shape.
      target: 1 for similar and -1 for dissimilar pairs, in the same shape.
      margin: in the unit of `input`.
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
      >>> print(F.hinge_embedding_loss(jnp.array([0.25, 0.25]), jnp.array([1.0, -1.0])))
      0.5

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.hinge_embedding_loss.html
    """
    return reduced(core.hinge_embedding_loss(input, target, margin=margin), reduction)


@torch_function()
def margin_ranking_loss(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    margin: ArrayLike = 0.0,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.margin_ranking_loss, over `jaxloss.margin_ranking_loss`.

    Differs from torch: shapes must be equal.

    Args:
      input1: scores, floating-point, of any shape.
      input2: the scores to compare with, in the same shape.
      target: 1 to rank `input1` higher and -1 to rank `input2` higher, in the same shape.
      margin: in the unit of the scores.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input1` is not floating-point.
      ValueError: the shapes differ or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> input1, input2 = jnp.array([2.0, 0.5]), jnp.array([1.0, 1.0])
      >>> print(F.margin_ranking_loss(input1, input2, jnp.array([1.0, 1.0]), margin=0.25))
      0.375

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.margin_ranking_loss.html
    """
    return reduced(core.margin_ranking_loss(input1, input2, target, margin=margin), reduction)


@torch_function(static=("p",), labels=("target",))
def multi_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    p: int = 1,
    margin: ArrayLike = 1.0,
    weight: ArrayLike | None = None,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.multi_margin_loss, over `jaxloss.multi_margin_loss`.

    Differs from torch: a target outside [0, C) gives NaN for that example instead of an error.

    Args:
      input: scores, floating-point, (C) or (N, C), or () for a single class.
      target: class indices, integer, () or (N).
      p: 1 or 2.
      margin: in the unit of `input`.
      weight: one weight per class, shape (C,).
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum". The mean divides by the number of examples, even with
        `weight`.

    Returns:
      A scalar, or one loss per example for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point or `target` not integer.
      ValueError: the shapes do not fit, `p` is neither 1 nor 2 or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(F.multi_margin_loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([3])).round(4))
      0.325

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.multi_margin_loss.html
    """
    input = _one_class_at_least(input)
    losses = core.multi_margin_loss(
        input, target, p=p, margin=margin, class_weights=weight, axis=class_dimension(input, most=2)
    )
    return reduced(losses, reduction)


def _one_class_at_least(input: ArrayLike) -> jax.Array:
    """The scores as an array, in which a single one is that of the only class."""
    (scores,) = checks.arrays(input=input)
    return scores if scores.ndim else scores[None]


@torch_function(labels=("target",))
def multilabel_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.multilabel_margin_loss, over `jaxloss.multilabel_margin_loss`.

    Differs from torch: a target of C or more gives NaN for that example instead of an error.

    Args:
      input: scores, floating-point, (C) or (N, C), or () for a single class.
      target: class indices, integer, in the same shape: those before the first negative one are
        the labels.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per example for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point or `target` not integer.
      ValueError: the shapes do not fit or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> input, target = jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([[3, 0, -1, 1]])
      >>> print(f"{F.multilabel_margin_loss(input, target):.4f}")
      0.8500

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.multilabel_margin_loss.html
    """
    if not jnp.ndim(input) and not jnp.ndim(target):
        target = jnp.asarray(target)[None]
    input = _one_class_at_least(input)
    losses = core.multilabel_margin_loss(input, target, axis=class_dimension(input, most=2))
    return reduced(losses, reduction)
