"""Sparsemax losses, from the projection onto the simplex, and the maker of their whole family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import Labels, find, pick


@public()
def sparsemax_loss(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Sparsemax loss of two classes: exactly 0 once the logit is on the label's side by 1 or more.

    loss = 0 if z >= 1, ¼ (1 - z)² if |z| < 1, else -z, with z = x for label 1 and -x for label 0.
    The loss and its derivative are continuous. Any other label gives NaN, in its own place only.

    Args:
      logits: floating-point array of any shape.
      labels: 1 or 0, in the same shape.
      where: boolean, of the rank of `logits` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `logits`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.sparsemax_loss(jnp.array([2.0, 0.0, 2.0]), jnp.array([1, 1, 0])))
      [0.   0.25 2.  ]

    Source: Blondel et al., Learning with Fenchel-Young losses, JMLR 2020, 4.4.
    """
    logits, labels = checks.arrays(logits=logits, labels=labels)
    checks.same_shape(logits=logits, labels=labels)
    where = checks.mask(where, "logits", logits)
    logits, labels = (elementwise.masked(where, x) for x in (logits, labels))
    known = (labels == 0) | (labels == 1)
    checks.require(known, "labels", "be 0 or 1")
    return elementwise.masked(where, xla.nan_where(~known, _of_two(logits, labels)))


@jax.custom_jvp
def _of_two(x: jax.Array, y: jax.Array) -> jax.Array:
    z = x * (1 - 2 * y)
    inside = jnp.clip(0.5 * (z + 1), 0, 1)
    return jnp.square(inside) + jnp.maximum(z - 1, 0)


@_of_two.defjvp
def _of_two_jvp(primals, tangents):
    # Autodiff would share the gradient at both ends of the parabola. A label has no derivative.
    x, y = primals
    sign = 1 - 2 * y
    slope = sign * jnp.clip(0.5 * (xla.recomputed(x) * sign + 1), 0, 1)
    return _of_two(x, y), slope * tangents[0]


@public(static=("axis",), labels=("labels",))
def multiclass_sparsemax_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Sparsemax loss: exactly 0 once the label's score is above every other by 1 or more.

    loss = ½ ‖p - e_y‖² + max(0, τ - x_y), where p = max(x - τ, 0) is the point of the simplex
    closest to the scores x, and e_y the corner of the label. The gradient is p - e_y.

    Shift-invariant, and accurate where the model is confident. A label with score -inf has loss
    +inf. A label outside [0, C), negative ones included, gives NaN in that example's value and
    gradient only, and so does a label whose class `where` excludes.

    Args:
      scores: floating-point array (..., C).
      labels: integer array of the shape of `scores` without `axis`.
      axis: the class dimension, or a tuple of them, over which a label is a flat index.
      where: boolean, of the rank of `scores` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example in which nothing takes part has loss
        and gradient 0, whatever it holds.

    Returns:
      One loss per example, in the shape of `labels`; at least float32.

    Raises:
      TypeError: `scores` is not floating-point or `labels` not integer.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> scores = jnp.array([[3.0, 1.0, 0.5], [0.5, 0.5, 0.25]])
      >>> jnp.set_printoptions(precision=4)
      >>> print(jaxloss.multiclass_sparsemax_loss(scores, jnp.array([0, 2])))
      [0.     0.5208]

    Source: Martins and Astudillo, From softmax to sparsemax, arXiv:1602.02068.
    """
    (scores,) = checks.arrays(scores=scores)
    classes = ClassAxes.of(axis, scores, "scores")
    where = checks.mask(where, "scores", scores)
    found = find(labels, scores, classes, where, names=("scores", "labels"))
    if where is not None:
        scores = jnp.where(where, scores, -jnp.inf)
    peak = classes.max(lax.stop_gradient(scores))
    peak = jnp.where(found.present & (peak > -jnp.inf), peak, 0)
    top = classes.is_first_largest(scores)
    return classes.squeeze(_of_many(scores, peak, top, found, classes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _of_many(scores, peak, top, labels: Labels, classes: ClassAxes):
    behind, others = _projection(scores, peak, top, labels, classes)
    near = jnp.minimum(behind, 1)
    huber = near * (behind - 0.5 * near)
    return jnp.where(labels.present, 0.5 * classes.sum(jnp.square(others)) + huber, 0)


@_of_many.defjvp
def _of_many_jvp(classes, primals, tangents):
    # Autodiff of the value would find the same with more terms, of which many cancel.
    scores, peak, top, labels = primals
    behind, others = _projection(scores, peak, top, labels, classes)
    gradient = jnp.where(labels.hot, -jnp.where(behind < 1, behind, 1), others)
    gradient = xla.filled(labels.present, gradient, 0)
    factor = xla.nan_where(labels.bad, jnp.ones_like(behind))
    tangent = classes.sum(gradient * factor * tangents[0])
    return _of_many(*primals, classes), tangent


def _projection(scores, peak, top, labels: Labels, classes: ClassAxes):
    """How far the label's score is behind that of a class with p = 1, and p of the other classes.

    All is relative to the largest score, whose p is 1 - `share`, so that nothing cancels where this
    is almost 1.
    """
    share = _share(scores, peak, top, classes)
    behind = (peak - pick(scores, labels, classes)) + share
    p = (1 - (peak - scores)) - share
    return behind, elementwise.hinge(jnp.where(labels.hot, 0, p), 0)


def _share(scores, peak, top, classes: ClassAxes):
    """What the largest score leaves to the others of the probability: τ + 1 - peak."""
    near = 1 - (peak - scores)
    others = _support(lax.stop_gradient(jnp.where(top, 0, near)), classes)
    # The largest score adds nothing, but moves the threshold like the others.
    largest = jnp.where(top & (scores > -jnp.inf), scores, 0)
    moved = largest - lax.stop_gradient(largest)
    total = classes.sum(jnp.where(others, near, moved))
    return total / (1 + classes.sum(others.astype(scores.dtype)))


def _support(near, classes: ClassAxes):
    """The classes beside the largest that have a part of the probability."""
    # Newton's method on Σ max(x - τ, 0) = 1, from below: τ only rises, and classes only drop out,
    # so that it ends with the exact support. Sums alone, where a sort would gather the classes. It
    # ends by the count, since τ may be rounded differently in two readings.

    def step(so_far):
        share, before, _ = so_far
        inside = near > share
        count = classes.sum(inside.astype(near.dtype))
        raised = classes.sum(jnp.where(inside, near, 0)) / (1 + count)
        return jnp.maximum(share, raised), count, jnp.any(count < before)

    nothing = 0 * classes.sum(jnp.where(near > 0, near, 0))
    start = nothing, nothing + jnp.inf, jnp.any(nothing == 0)
    share, _, _ = lax.while_loop(lambda so_far: so_far[-1], step, start)
    return near > share


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Makes the Fenchel-Young loss of a maximum, such as `jax.scipy.special.logsumexp`.

    loss(x, t) = max_fun(x) - Σ_c t_c x_c. Its gradient is that of `max_fun` minus t. A score of
    -inf with target 0 adds nothing.

    Args:
      max_fun: a convex function from the scores of one example, (C,), to a number. It is called
        anew every time and never compiled here.

    Returns:
      A function of `scores` (..., C), floating-point, and `targets` in the same shape that returns
      one loss per example, at least float32. It passes further arguments on to `max_fun`.

    Raises:
      TypeError: `max_fun` cannot be called. The loss: `scores` is not floating-point.
      ValueError: the loss: the shapes differ, or have no dimension.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> from jax.scipy.special import logsumexp
      >>> loss = jaxloss.make_fenchel_young_loss(logsumexp)
      >>> scores, targets = jnp.array([[1.2, -0.8, -0.5]]), jnp.array([[1.0, 0.0, 0.0]])
      >>> jnp.set_printoptions(precision=4)
      >>> print(loss(scores, targets))
      [0.2761]

    Source: Blondel et al., Learning with Fenchel-Young losses, JMLR 2020.
    """
    caller = checks.Caller("make_fenchel_young_loss", {})
    if not callable(max_fun):
        with checks.speaking_for(caller):
            checks.fail(TypeError, "max_fun", "be callable", repr(max_fun))

    def fenchel_young_loss(
        scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any
    ) -> jax.Array:
        with checks.speaking_for(checks.Caller("fenchel_young_loss", {})):
            x, t = checks.arrays(scores=scores, targets=targets)
            checks.same_shape(scores=x, targets=t)
            if not x.ndim:
                checks.fail(ValueError, "scores", "have shape (..., C)", x.shape)
        largest = jnp.vectorize(lambda row: max_fun(row, *args, **kwargs), signature="(n)->()")(x)
        return largest - jnp.sum(elementwise.product(t, x), -1)

    return fenchel_young_loss
