"""Divergences of distributions that need not sum to 1."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, norms, xla
from jaxloss._base.call import public


@public(static=("axis",))
def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of positive numbers that need not sum to 1.

    loss = Σ_c t_c (log t_c - log_predictions_c) + exp(log_predictions_c) - t_c.

    No term is negative, and each is accurate where predictions and targets nearly agree. A target
    of 0 adds exp(log_predictions_c), with gradient 0 for the target. A positive target against -inf
    gives +inf.

    Args:
      log_predictions: floating-point array (..., C), logarithms.
      targets: numbers of 0 or more, in the same shape.
      axis: the dimension or dimensions to sum over; None for all.
      where: boolean, of the rank of `log_predictions` and broadcastable to it: what takes part.

    Returns:
      One divergence per example, in the shape of `log_predictions` without `axis`; at least
      float32.

    Raises:
      TypeError: `log_predictions` is not floating-point.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> log_predictions = jnp.log(jnp.array([[0.5, 0.5], [2.0, 3.0]]))
      >>> targets = jnp.array([[1.0, 0.0], [2.0, 4.0]])
      >>> print(jaxloss.generalized_kl_divergence(log_predictions, targets).round(4))
      [0.6931 0.1507]

    Source: Bregman, The relaxation method of finding the common point of convex sets (1967).
    """
    log_predictions, targets = checks.arrays(log_predictions=log_predictions, targets=targets)
    checks.same_shape(log_predictions=log_predictions, targets=targets)
    axes = checks.axes(axis, log_predictions, "log_predictions")
    where = checks.mask(where, "log_predictions", log_predictions)
    checks.require(targets >= 0, "targets", "be 0 or more", where)
    log_predictions, targets = (elementwise.masked(where, x) for x in (log_predictions, targets))
    return jnp.sum(elementwise.masked(where, _bregman(log_predictions, targets)), axes)


@public(static=("axis",))
def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The older name of `generalized_kl_divergence`.

    loss = Σ_c t_c (log t_c - log_predictions_c) + exp(log_predictions_c) - t_c, with the same edge
    cases.

    Args:
      log_predictions: as in `generalized_kl_divergence`.
      targets: as in `generalized_kl_divergence`.
      axis: as in `generalized_kl_divergence`.
      where: as in `generalized_kl_divergence`.

    Returns:
      One divergence per example, in the shape of `log_predictions` without `axis`; at least
      float32.

    Raises:
      TypeError: `log_predictions` is not floating-point.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> log_predictions, targets = jnp.log(jnp.array([2.0, 3.0])), jnp.array([2.0, 4.0])
      >>> print(jaxloss.convex_kl_divergence(log_predictions, targets).round(4))
      0.1507

    Source: as `generalized_kl_divergence`.
    """
    return generalized_kl_divergence(log_predictions, targets, axis, where)


@jax.custom_jvp
def _bregman(x: jax.Array, t: jax.Array) -> jax.Array:
    """t (exp(d) - 1 - d) with d = x - log t; the usual terms cancel where d is small."""
    absent, d = _log_ratio(x, t)
    far = d > 1  # exp(d) may overflow where exp(x) does not.
    near = elementwise.product(t, exp_beyond_line(jnp.where(far, 0, d)))
    beyond = elementwise.less_log(jnp.exp(x), t * (1 + d))
    return jnp.where(absent, jnp.exp(x), jnp.where(far, beyond, near))


def _bregman_jvp(primals, tangents):
    # Autodiff of exp(x) - t log … cancels as well. What the value asks would be stored for both.
    x, t = primals
    absent, d = _log_ratio(xla.recomputed(x), t)
    far = d > 1
    by_prediction = jnp.where(far, jnp.exp(x) - t, t * jnp.expm1(jnp.where(far, 0, d)))
    by_prediction = jnp.where(absent, jnp.exp(x), by_prediction)
    slopes = by_prediction, jnp.where(absent, 0, -d)
    return _bregman(x, t), elementwise.along(x, *zip(slopes, tangents, strict=True))


_bregman.defjvp(_bregman_jvp, symbolic_zeros=True)


def _log_ratio(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where t is 0, and x - log t elsewhere."""
    absent = t == 0
    return absent, jnp.where(absent, 0, x - jnp.log(jnp.where(absent, 1, t)))


def exp_beyond_line(d: jax.Array) -> jax.Array:
    """exp(d) - 1 - d, by its series where that cancels."""
    near = jnp.clip(d, -0.5, 0.5)
    # To the 16th power, which float64 needs at ½.
    series = 0.0 * near
    for power in range(16, 1, -1):
        series = series * near + 1 / math.factorial(power)
    return jnp.where(norms.absolute(d) < 0.5, jnp.square(near) * series, jnp.expm1(d) - d)
