"""Scores on the right side of a boundary: hinge and perceptron losses, of two or more classes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import find, pick


@public()
def hinge_loss(
    predictor_outputs: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Hinge loss of two classes: the score should be on the target's side of 0, at least 1 from it.

    loss = max(0, 1 - y x); the hinge passes gradient at the kink. For a y other than 1 and -1 it is
    the formula's value.

    Args:
      predictor_outputs: scores x, a floating-point array of any shape.
      targets: 1 or -1, in the same shape.
      where: boolean, of the rank of `predictor_outputs` and broadcastable to it: what takes part.
        The rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictor_outputs`; at least float32.

    Raises:
      TypeError: `predictor_outputs` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.hinge_loss(jnp.array([2.0, 0.5, 0.5]), jnp.array([1, 1, -1])))
      [0.  0.5 1.5]

    Source: Cortes and Vapnik, Support-vector networks (1995).
    """
    return _of_two(predictor_outputs, targets, where, margin=1)


@public()
def perceptron_loss(
    predictor_outputs: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Perceptron loss of two classes: the score should be on the target's side of 0.

    loss = max(0, -y x); the hinge passes gradient at the kink, so that weights of 0 learn. For a
    y other than 1 and -1 it is the formula's value.

    Args:
      predictor_outputs: scores x, a floating-point array of any shape.
      targets: 1 or -1, in the same shape.
      where: boolean, of the rank of `predictor_outputs` and broadcastable to it: what takes part.
        The rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictor_outputs`; at least float32.

    Raises:
      TypeError: `predictor_outputs` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.perceptron_loss(jnp.array([2.0, 0.5, 0.5]), jnp.array([1, 1, -1])))
      [0.  0.  0.5]

    Source: Rosenblatt, The perceptron (1958).
    """
    return _of_two(predictor_outputs, targets, where, margin=0)


def _of_two(
    predictor_outputs: ArrayLike, targets: ArrayLike, where: ArrayLike | None, *, margin: int
) -> jax.Array:
    """max(0, margin - y x) of the checked arguments, and 0 for what does not take part."""
    scores, targets = checks.arrays(predictor_outputs=predictor_outputs, targets=targets)
    checks.same_shape(predictor_outputs=scores, targets=targets)
    where = checks.mask(where, "predictor_outputs", scores)
    scores, targets = (elementwise.masked(where, x, 1) for x in (scores, targets))
    checks.require(jnp.abs(targets) == 1, "targets", "be 1 or -1")
    return elementwise.masked(where, _shortfall(scores, targets, margin))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shortfall(x: jax.Array, y: jax.Array, margin: int) -> jax.Array:
    return elementwise.hinge(margin - x * y)


def _shortfall_jvp(margin, primals, tangents):
    # Autodiff would keep a comparison for the backward pass.
    (x, y), (x_dot, y_dot) = primals, tangents
    short = xla.recomputed(x) * y <= margin
    by_score, by_target = (jnp.where(short, -slope, 0) for slope in (y, x))
    return _shortfall(x, y, margin), elementwise.along(x, (by_score, x_dot), (by_target, y_dot))


_shortfall.defjvp(_shortfall_jvp, symbolic_zeros=True)


@public(static=("axis",), labels=("labels",))
def multiclass_hinge_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Hinge loss of many classes: the label's score should exceed the best other score by 1.

    loss = max(0, 1 + max_{c≠y} x_c - x_y); the hinge passes gradient at the kink, and if several
    others tie for the best, the first gets it. With a single class the loss is 0.

    A label outside [0, C), negative ones included, gives NaN in that example's value and gradient
    only, and so does a label whose class `where` excludes.

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
      >>> scores = jnp.array([[3.0, 1.0, 0.5], [0.25, 1.0, 0.5]])
      >>> print(jaxloss.multiclass_hinge_loss(scores, jnp.array([0, 2])))
      [0.  1.5]

    Source: Crammer and Singer, On the algorithmic implementation of multiclass kernel-based
    vector machines (2001).
    """
    return _of_many(scores, labels, axis, where, margin=1)


@public(static=("axis",), labels=("labels",))
def multiclass_perceptron_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Perceptron loss of many classes: the label's score should be the greatest.

    loss = max_c x_c - x_y. Where the label ties with the best other class (the first of several),
    the gradient is as if the label were behind it. With a single class the loss is 0.

    A label outside [0, C), negative ones included, gives NaN in that example's value and gradient
    only, and so does a label whose class `where` excludes.

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
      >>> scores = jnp.array([[3.0, 1.0, 0.5], [0.25, 1.0, 0.5]])
      >>> print(jaxloss.multiclass_perceptron_loss(scores, jnp.array([0, 2])))
      [0.  0.5]

    Source: Collins, Discriminative training methods for hidden Markov models (2002).
    """
    return _of_many(scores, labels, axis, where, margin=0)


def _of_many(
    scores: ArrayLike,
    labels: ArrayLike,
    axis: checks.Axis,
    where: ArrayLike | None,
    *,
    margin: int,
) -> jax.Array:
    """max(0, margin + the best other score - that of the label), of the checked arguments."""
    (scores,) = checks.arrays(scores=scores)
    classes = ClassAxes.of(axis, scores, "scores")
    where = checks.mask(where, "scores", scores)
    found = find(labels, scores, classes, where, names=("scores", "labels"))
    others = ~found.hot if where is None else where & ~found.hot
    best = _largest(scores, others, classes)
    alone = best == -jnp.inf
    lead = pick(scores, found, classes) - jnp.where(alone, 0, best)
    short = jnp.where(alone & ~found.bad, 0, elementwise.hinge(margin - lead))
    return classes.squeeze(short)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _largest(scores: jax.Array, among: jax.Array, classes: ClassAxes) -> jax.Array:
    """The largest score among those, -inf if there are none; the class axes are kept."""
    return classes.max(xla.filled(among, scores, -jnp.inf))


@_largest.defjvp
def _largest_jvp(classes, primals, tangents):
    # Autodiff divides by how many scores equal the result, which rounding can make none.
    scores, among = primals
    first = among & classes.is_first_largest(jnp.where(among, scores, -jnp.inf))
    return _largest(*primals, classes), classes.sum(jnp.where(first, tangents[0], 0))
