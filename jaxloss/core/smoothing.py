"""Labels made softer before a loss sees them."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes


@public(static=("axis",), domain={"alpha": checks.FRACTION})
def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Class probabilities with a share spread evenly over the classes.

    smoothed = (1 - α) labels + α / C, with C the number of classes that take part. Losses with a
    `label_smoothing` argument do this themselves.

    Args:
      labels: class probabilities (..., C), floating-point; one-hot as a rule.
      alpha: α in [0, 1], the share.
      axis: the class dimension or dimensions; None for all.
      where: boolean, of the rank of `labels` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. The rest becomes 0, whatever it holds.

    Returns:
      Class probabilities in the shape of `labels`; at least float32.

    Raises:
      TypeError: `labels` is not floating-point.
      ValueError: `where` or `axis` does not fit, or `alpha` is not in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> labels, where = jnp.array([1.0, 0.0, 0.0]), jnp.array([True, True, False])
      >>> print(jaxloss.smooth_labels(labels, 0.25, where=where))
      [0.875 0.125 0.   ]

    Source: Szegedy et al., Rethinking the Inception architecture, arXiv:1512.00567.
    """
    (labels,) = checks.arrays(labels=labels)
    classes = ClassAxes.of(axis, labels, "labels")
    where = checks.mask(where, "labels", labels)
    alpha = checks.number("alpha", alpha, labels)
    labels = elementwise.masked(where, labels)
    smoothed = (1 - alpha) * labels + alpha / classes.count(labels, where)
    return elementwise.masked(where, smoothed)
