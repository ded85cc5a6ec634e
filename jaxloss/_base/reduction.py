"""From one loss per example to one number: none, mean, sum, batchmean, weighted and masked."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise
from jaxloss._base.call import public

Reduction = Literal["none", "mean", "sum"]
BatchReduction = Literal["none", "mean", "sum", "batchmean"]


@public(static=("reduction", "axis", "axis_name"))
def reduce(
    losses: ArrayLike,
    reduction: BatchReduction = "mean",
    *,
    axis: checks.Axis = None,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Reduces unreduced losses to one right number.

    mean = Σ wᵢ lᵢ / Σ wᵢ over the losses that take part. When nothing takes part, or the weights
    of what does sum to 0, the mean is 0 and so is its gradient. With `axis` that holds for each
    mean separately.

    Args:
      losses: floating-point array of any shape; half precision is summed in float32.
      reduction: "mean", "sum", "none" (masked and weighted, not reduced) or "batchmean" (the sum
        divided by the size of the first dimension).
      axis: the dimension or dimensions to reduce, for "mean" and "sum", such as -1 for one mean
        per sequence. By default all of them.
      weights: one weight per loss, of the rank of `losses` and broadcastable to it. A weight of
        0 silences an infinite loss.
      where: boolean, of the rank of `losses` and broadcastable to it. What it excludes may be NaN
        and has gradient exactly 0 here. But the loss function that made the NaN may still turn this
        gradient into NaN: pass the same `where` to it as well.
      axis_name: the mapped axis or axes (`jax.shard_map`, `jax.vmap`) over which the losses are
        spread. Sums, counts and weights are added up over them first, so that the result is the
        mean of all examples and not a mean of means. A gradient taken inside `jax.pmap` or
        `jax.shard_map(check_vma=False)` needs `jax.lax.pmean` over that axis; `psum` would make it
        too large by a factor of the number of devices. `shard_map` by default needs neither.
      normalizer: for "mean", the number to divide the sum by instead of the sum of the weights, or
        with `axis` one number per result. With gradient accumulation, pass the token count N of the
        whole step; under `optax.MultiSteps`, which averages its k gradients, N / k.

    Returns:
      A scalar; with `axis`, an array of the other dimensions; for "none", an array of the shape of
      `losses`. At least float32.

    Raises:
      TypeError: `losses` is not floating-point or `where` is not boolean.
      ValueError: the shapes do not fit, the reduction is unknown, or `axis` or `normalizer` is
        given for a reduction that has none.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> losses = jnp.array([1.0, 2.0, 6.0])
      >>> print(jaxloss.reduce(losses, where=jnp.array([True, True, False])))
      1.5
      >>> print(jaxloss.reduce(losses, weights=jnp.array([1.0, 1.0, 2.0])))
      3.75
      >>> print(jaxloss.reduce(losses.reshape(1, 3), axis=-1))  # A mean per sequence.
      [3.]

    Source: the weighted mean of https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    checks.one_of("reduction", reduction, ("none", "mean", "sum", "batchmean"))
    if normalizer is not None and reduction != "mean":
        checks.fail(ValueError, "normalizer", "be None unless `reduction` is 'mean'", normalizer)
    if axis is not None and reduction not in ("mean", "sum"):
        checks.fail(ValueError, "axis", "be None unless `reduction` is 'mean' or 'sum'", axis)
    (losses,) = checks.arrays(losses=losses)
    axes = checks.axes(axis, losses, "losses")
    weights = checks.follower("weights", weights, losses)
    where = checks.mask(where, "losses", losses)
    weighted = losses = losses if where is None else jnp.where(where, losses, 0)
    if weights is not None:
        of_each = checks.broadcast("weights", weights, losses, same_rank=True)
        weighted = elementwise.product(of_each, losses)
    if reduction == "none":
        return weighted if where is None else jnp.where(where, weighted, 0)

    def total(x: jax.Array) -> jax.Array:
        x = x if where is None else jnp.where(where, x, 0)
        x = _sum_of_copies(x, losses.shape, axes)
        return x if axis_name is None else lax.psum(x, axis_name)

    summed = total(weighted)
    if reduction == "sum":
        return summed
    if reduction == "batchmean":
        if not losses.ndim:
            checks.fail(ValueError, "losses", "have a batch dimension for 'batchmean'", "a scalar")
        count = jnp.asarray(losses.shape[0], losses.dtype)
        count = count if axis_name is None else lax.psum(count, axis_name)
    elif normalizer is not None:
        one = checks.hyper_parameter if summed.ndim else checks.number
        count = one("normalizer", normalizer, summed)
    else:
        count = total(jnp.ones((), losses.dtype) if weights is None else weights)
    return divide(summed, count)


def _sum_of_copies(x: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    """jnp.sum(jnp.broadcast_to(x, shape), axes), with each entry of x read once.

    That sum itself, where it is a large one, comes out wrong by some percent, each time by others,
    on the CPU with jaxlib 0.10.2.
    """
    x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    total = jnp.sum(x, axes)
    repeated = [jnp.asarray(shape[a], x.dtype) for a in axes if x.shape[a] != shape[a]]
    if not repeated:
        return total
    repeats = math.prod(repeated)
    return jnp.where(repeats == 0, 0, repeats * total)  # No copies of what is infinite are 0.


def divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """total / count, and where nothing was counted 0 with gradient exactly 0."""
    nothing = count == 0
    return jnp.where(nothing, 0, total / jnp.where(nothing, 1, count))
