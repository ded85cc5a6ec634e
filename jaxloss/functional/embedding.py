"""torch's embedding losses and distances: cosine, pairwise distance, triplets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxloss._base import checks
from jaxloss._base.call import public
from jaxloss._base.reduction import Reduction
from jaxloss.core import embedding as core
from jaxloss.functional._torch import NAMES, reduced, torch_function


@public(static=("dim",), domain={"eps": checks.NON_NEGATIVE}, names=NAMES)
def cosine_similarity(
    x1: ArrayLike, x2: ArrayLike, dim: int = 1, eps: ArrayLike = 1e-8
) -> jax.Array:
    """As torch.nn.functional.cosine_similarity, over `jaxloss.cosine_similarity`.

    Differs from torch: with a zero vector both gradients are 0; large vectors do not overflow, nor
    do small ones vanish.

    Args:
      x1: floating-point array.
      x2: array that broadcasts with it.
      dim: the dimension of the vectors, counted in the broadcast shape.
      eps: the least norm to divide by.

    Returns:
      One similarity in [-1, 1] for each pair, in the broadcast shape without `dim`; at least
      float32.

    Raises:
      TypeError: `x1` is not floating-point.
      ValueError: the shapes or `dim` do not fit, or `eps` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> x1, x2 = jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([[4.0, 3.0], [0.0, 2.0]])
      >>> print(F.cosine_similarity(x1, x2).round(4))
      [0.96 0.  ]

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cosine_similarity.html
    """
    return core.cosine_similarity(x1, x2, axis=dim, eps=eps)


@public(static=("p", "keepdim"), names=NAMES)
def pairwise_distance(
    x1: ArrayLike, x2: ArrayLike, p: float = 2.0, eps: ArrayLike = 1e-6, keepdim: bool = False
) -> jax.Array:
    """As torch.nn.functional.pairwise_distance, over `jaxloss.pairwise_distance`.

    Differs from torch: shapes must be equal.

    Args:
      x1: floating-point array, (D) or (N, D).
      x2: array of the same shape.
      p: the degree of the norm, a Python or numpy number.
      eps: added to every difference.
      keepdim: whether the last dimension stays with size 1.

    Returns:
      One distance per pair, () or (N), with a last dimension of 1 for `keepdim`; at least float32.

    Raises:
      TypeError: `x1` is not floating-point, or `p` is traced.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> x1, x2 = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[3.0, 4.0], [1.0, 3.0]])
      >>> print(F.pairwise_distance(x1, x2, p=1.0, eps=0.0))
      [7. 2.]

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.pairwise_distance.html
    """
    return core.pairwise_distance(x1, x2, p=p, eps=eps, keepdims=keepdim)


@torch_function(names={"x1": "input1", "x2": "input2"})
def cosine_embedding_loss(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    margin: ArrayLike = 0.0,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.cosine_embedding_loss, over `jaxloss.cosine_embedding_loss`.

    Differs from torch, which adds 1e-12 to the squared norms and so shrinks the cosines of small
    vectors: here these keep their cosine, and a zero vector has cosine 0.

    Args:
      input1: floating-point array, (D) or (N, D).
      input2: array of the same shape.
      target: 1 for similar and -1 for dissimilar pairs, () or (N).
      margin: the largest cosine that a dissimilar pair may have for free.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per pair for "none"; at least float32.

    Raises:
      TypeError: `input1` is not floating-point.
      ValueError: the shapes do not fit or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> x1, x2 = jnp.array([[3.0, 4.0], [3.0, 4.0]]), jnp.array([[4.0, 3.0], [4.0, 3.0]])
      >>> print(F.cosine_embedding_loss(x1, x2, jnp.array([1.0, -1.0]), margin=0.5).round(4))
      0.25

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cosine_embedding_loss.html
    """
    return reduced(core.cosine_embedding_loss(input1, input2, target, margin=margin), reduction)


@torch_function(static=("p", "swap"), domain={"margin": checks.POSITIVE})
def triplet_margin_loss(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    margin: ArrayLike = 1.0,
    p: float = 2,
    eps: ArrayLike = 1e-6,
    swap: bool = False,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.triplet_margin_loss, over `jaxloss.triplet_margin_loss`.

    Differs from torch: shapes must be equal.

    Args:
      anchor: floating-point array, (D) or (N, D).
      positive: what should be close to the anchor, in the same shape.
      negative: what should be far from it, in the same shape.
      margin: above 0, in the unit of the distance.
      p: the degree of the norm, a Python or numpy number.
      eps: added to every difference.
      swap: whether to measure a negative from the positive where that is closer than the anchor.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per triplet for "none"; at least float32.

    Raises:
      TypeError: `anchor` is not floating-point, or `p` is traced.
      ValueError: the shapes differ, `margin` is not positive or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> anchor, positive = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> print(F.triplet_margin_loss(anchor, positive, jnp.array([[1.5, 0.0]])).round(4))
      0.5

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.triplet_margin_loss.html
    """
    losses = core.triplet_margin_loss(
        anchor, positive, negative, margin=margin, p=p, eps=eps, swap=swap
    )
    return reduced(losses, reduction)


def triplet_margin_with_distance_loss(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    distance_function: Callable[[Any, Any], jax.Array] | None = None,
    margin: ArrayLike = 1.0,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.triplet_margin_with_distance_loss, over
    `jaxloss.triplet_margin_with_distance_loss`.

    Args:
      anchor: whatever `distance_function` takes, as are the other two; arrays (N, D) by default.
      positive: what should be close to the anchor.
      negative: what should be far from it.
      distance_function: maps two batches to one distance per pair; `pairwise_distance` if None.
      margin: above 0, in the unit of the distance.
      swap: whether to measure a negative from the positive where that is closer than the anchor.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per triplet for "none"; at least float32.

    Raises:
      TypeError: the distances are not floating-point.
      ValueError: the distances differ in shape, `margin` is not positive or the reduction is
        unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> anchor, positive = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> def manhattan(x, y):
      ...     return jnp.sum(jnp.abs(x - y), axis=-1)
      >>> print(F.triplet_margin_with_distance_loss(
      ...     anchor, positive, jnp.array([[1.5, 0.5]]), distance_function=manhattan, margin=2.0))
      1.0

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.triplet_margin_with_distance_loss.html
    """
    if distance_function is None:
        return _by_pairwise_distance(
            anchor, positive, negative, margin=margin, swap=swap, reduction=reduction
        )
    losses = core.triplet_margin_with_distance_loss(
        anchor, positive, negative, distance_function=distance_function, margin=margin, swap=swap
    )
    return _reduced_triplets(losses, reduction=reduction)


@torch_function(
    static=("swap",),
    domain={"margin": checks.POSITIVE},
    name="triplet_margin_with_distance_loss",
)
def _by_pairwise_distance(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    margin: ArrayLike,
    swap: bool,
    reduction: Reduction,
) -> jax.Array:
    losses = core.triplet_margin_loss(anchor, positive, negative, margin=margin, swap=swap)
    return reduced(losses, reduction)


@torch_function(name="triplet_margin_with_distance_loss")
def _reduced_triplets(losses: ArrayLike, *, reduction: Reduction) -> jax.Array:
    return reduced(checks.array("losses", losses), reduction)
