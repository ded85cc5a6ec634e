"""Scores that should order the items of a list by their relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.cross_entropy import Terms, losses_of_probabilities


def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable[..., Any] | None = jnp.mean,
) -> jax.Array:
    """Softmax loss of lists: relevant items should score above the others of their list.

    loss = -Σ_i w_i y_i log softmax(s)_i for each list, then `reduce_fn` over those that take part.

    An item of score -inf and relevance 0 adds nothing. If no list takes part, all count with loss
    0, so that the mean is 0 instead of NaN, with gradient 0.

    Args:
      logits: floating-point array (..., L), the scores of the items of each list.
      labels: the relevance of each item, 0 or more, in the same shape.
      where: boolean, of the rank of `logits` and broadcastable to it: the items, or with size 1
        in the last dimension the lists, that take part. The rest may hold anything.
      weights: one weight per item, broadcastable to the shape of `logits`.
      reduce_fn: called with the losses, one per list, and with `where=`: which of them take part,
        or None without a mask. If `reduce_fn` is None, the losses are not reduced.

    Returns:
      What `reduce_fn` makes of the losses, or without it one loss per list; at least float32.

    Raises:
      TypeError: `logits` is not floating-point, or `reduce_fn` cannot be called.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> scores, relevance = jnp.array([2.0, 1.0, 3.0]), jnp.array([1.0, 0.0, 0.0])
      >>> print(f"{jaxloss.ranking_softmax_loss(scores, relevance):.4f}")
      1.4076

    Source: Cao et al., Learning to rank: from pairwise approach to listwise approach, ICML 2007.
    """
    losses, present = _of_lists(logits, labels, weights=weights, where=where)
    if reduce_fn is None:
        return losses
    if not callable(reduce_fn):
        with checks.speaking_for(checks.Caller("ranking_softmax_loss", {})):
            checks.fail(TypeError, "reduce_fn", "be callable or None", repr(reduce_fn))
    return reduce_fn(losses, where=present)


@public(name="ranking_softmax_loss")
def _of_lists(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None,
    where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array | None]:
    """One loss per list, and which of them to count."""
    logits, labels = checks.arrays(logits=logits, labels=labels)
    checks.same_shape(logits=logits, labels=labels)
    if not logits.ndim:
        checks.fail(ValueError, "logits", "have shape (..., L)", logits.shape)
    items = ClassAxes((logits.ndim - 1,))
    items.require(logits, "logits")
    where = checks.mask(where, "logits", logits)
    checks.require(labels >= 0, "labels", "be 0 or more", where)
    labels = elementwise.masked(where, labels)
    weights = checks.follower("weights", weights, logits)
    if weights is not None:
        weights = elementwise.masked(where, checks.broadcast("weights", weights, logits))
        labels = weights * labels
    losses = losses_of_probabilities(logits, labels, where, Terms(None, None, None), items)
    if where is None:
        return losses, None
    present = jnp.broadcast_to(jnp.any(where, -1), losses.shape)
    return losses, present | ~jnp.any(present)
