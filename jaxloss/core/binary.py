"""Yes-or-no labels: binary cross entropy, with logits too, and the soft margin losses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, norms, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import expand_weights


@public()
def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Binary cross entropy between the sigmoid of `logits` and `labels`.

    loss = -(pos_weight · y log σ(x) + (1-y) log σ(-x)).

    Accurate for confident logits of both signs; the gradient at logit 0 is σ(0) - y.

    Args:
      logits: floating-point array of any shape.
      labels: the probability of yes, 0 or 1 as a rule, in the same shape.
      pos_weight: weight of the positive labels, broadcastable to the shape of `logits`; a weight
        above 1 raises recall.
      where: boolean, of the rank of `logits` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `logits`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits, labels = jnp.array([0.0, 2.0, -3.0]), jnp.array([1.0, 1.0, 0.0])
      >>> print(jaxloss.sigmoid_binary_cross_entropy(logits, labels).round(4))
      [0.6931 0.1269 0.0486]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """
    logits, labels = checks.arrays(logits=logits, labels=labels)
    checks.same_shape(logits=logits, labels=labels)
    pos_weight = checks.follower("pos_weight", pos_weight, logits)
    where = checks.mask(where, "logits", logits)
    logits, labels = (elementwise.masked(where, x) for x in (logits, labels))
    checks.require((labels >= 0) & (labels <= 1), "labels", "be probabilities in [0, 1]")
    if pos_weight is not None:
        pos_weight = checks.broadcast("pos_weight", pos_weight, logits)
        pos_weight = elementwise.masked(where, pos_weight)
    return elementwise.masked(where, _logistic(logits, labels, pos_weight))


@jax.custom_jvp
def _logistic(x: jax.Array, y: jax.Array, pos_weight: jax.Array | None) -> jax.Array:
    """pos_weight · y log(1 + exp(-x)) + (1-y) log(1 + exp(x)), with one logarithm."""
    positive = y if pos_weight is None else pos_weight * y
    certain = elementwise.product(jnp.where(x > 0, 1 - y, positive), norms.absolute(x))
    uncertain = jnp.log1p(jnp.exp(jnp.minimum(x, -x)))
    return certain + (uncertain if pos_weight is None else (1 - y + positive) * uncertain)


def _logistic_jvp(primals, tangents):
    # Autodiff would take 0 for the derivative at 0, and σ(x) - y would cancel.
    (x, y, pos_weight), (x_dot, y_dot, weight_dot) = primals, tangents
    x = xla.recomputed(x)
    positive = y if pos_weight is None else pos_weight * y
    by_logits = (1 - y) * lax.logistic(x) - positive * lax.logistic(-x)
    against, favour = elementwise.softplus(-x), elementwise.softplus(x)
    by_labels = elementwise.silenced(positive, against)
    if pos_weight is not None:
        by_labels = pos_weight * by_labels
    by_labels = by_labels - elementwise.silenced(1 - y, favour)
    terms = [(by_logits, x_dot), (by_labels, y_dot)]
    if pos_weight is not None:
        terms.append((elementwise.product(y, against), weight_dot))
    return _logistic(*primals), elementwise.along(x, *terms)


_logistic.defjvp(_logistic_jvp, symbolic_zeros=True)


@public()
def binary_cross_entropy(
    probabilities: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Binary cross entropy between probabilities and labels.

    loss = -(y max(log p, -100) + (1-y) max(log(1-p), -100)).

    The bound makes a certain but wrong prediction cost 100 instead of infinity; the gradient there
    is ∓1e12, as in torch. For logits, `sigmoid_binary_cross_entropy` is more accurate.

    Args:
      probabilities: floating-point array of any shape, in [0, 1]; anything else gives NaN.
      labels: the probability of yes, in the same shape.
      where: boolean, of the rank of `probabilities` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `probabilities`; at least float32.

    Raises:
      TypeError: `probabilities` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> probabilities, labels = jnp.array([0.5, 0.9, 0.0]), jnp.array([1.0, 1.0, 1.0])
      >>> print(jaxloss.binary_cross_entropy(probabilities, labels).round(4))
      [  0.6931   0.1054 100.    ]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html
    """
    probabilities, labels = checks.arrays(probabilities=probabilities, labels=labels)
    checks.same_shape(probabilities=probabilities, labels=labels)
    where = checks.mask(where, "probabilities", probabilities)
    probabilities, labels = (elementwise.masked(where, x, 0.5) for x in (probabilities, labels))
    for name, value in (("probabilities", probabilities), ("labels", labels)):
        checks.require((value >= 0) & (value <= 1), name, "be probabilities in [0, 1]")
    return elementwise.masked(where, _binary(probabilities, labels))


@jax.custom_jvp
def _binary(p: jax.Array, y: jax.Array) -> jax.Array:
    return (y - 1) * _bounded_log(p, True) - y * _bounded_log(p, False)


def _binary_jvp(primals, tangents):
    # Autodiff would keep y - 1. Both are negated here, or it would be stored all the same.
    (p, y), (p_dot, y_dot) = primals, tangents
    by_probability = (1 - y) * _slope(p, True) - y * _slope(p, False)
    by_label = _bounded_log(p, True) - _bounded_log(p, False)
    return _binary(p, y), elementwise.along(p, (by_probability, p_dot), (by_label, y_dot))


_binary.defjvp(_binary_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _bounded_log(p: jax.Array, complement: bool) -> jax.Array:
    """max(log p, -100), or that of 1 - p."""
    return jnp.maximum(jnp.log1p(-p) if complement else jnp.log(p), -100)


@_bounded_log.defjvp
def _bounded_log_jvp(complement, primals, tangents):
    (p,), (p_dot,) = primals, tangents
    slope = _slope(p, complement)
    return _bounded_log(p, complement), (-slope if complement else slope) * p_dot


def _slope(p: jax.Array, complement: bool) -> jax.Array:
    """1 / p, or 1 / (1 - p).

    The bound of the logarithm must not stop the gradient, or a probability of 0 could never
    recover. torch bounds p (1 - p) from below instead, and so has gradient 0 for a certain and
    correct prediction.
    """
    return 1 / jnp.maximum(1 - p if complement else p, 1e-12)


@public()
def soft_margin_loss(
    scores: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Soft margin loss: the logistic loss for targets of 1 and -1.

    loss = log(1 + exp(-y x)), without overflow.

    Args:
      scores: floating-point array of any shape.
      targets: 1 or -1, in the same shape.
      where: boolean, of the rank of `scores` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `scores`; at least float32.

    Raises:
      TypeError: `scores` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.soft_margin_loss(jnp.array([0.0, 2.0]), jnp.array([1, -1])).round(4))
      [0.6931 2.1269]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.SoftMarginLoss.html
    """
    scores, targets = checks.arrays(scores=scores, targets=targets)
    checks.same_shape(scores=scores, targets=targets)
    where = checks.mask(where, "scores", scores)
    scores, targets = (elementwise.masked(where, x, 1) for x in (scores, targets))
    checks.require(jnp.abs(targets) == 1, "targets", "be 1 or -1")
    return elementwise.masked(where, _soft_margin(scores, targets))


@jax.custom_jvp
def _soft_margin(x: jax.Array, y: jax.Array) -> jax.Array:
    return elementwise.softplus(-(y * x))


def _soft_margin_jvp(primals, tangents):
    # Autodiff would keep -y x for the backward pass.
    (x, y), (x_dot, y_dot) = primals, tangents
    slope = lax.logistic(-(y * xla.recomputed(x)))
    return _soft_margin(x, y), elementwise.along(x, (-slope * y, x_dot), (-slope * x, y_dot))


_soft_margin.defjvp(_soft_margin_jvp, symbolic_zeros=True)


@public(static=("axis",))
def multilabel_soft_margin_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Multi-label soft margin loss: binary cross entropy averaged over the classes.

    loss = -1/C Σ_c w_c (y_c log σ(x_c) + (1-y_c) log σ(-x_c)).

    Args:
      logits: floating-point array (..., C).
      labels: 1 for each class that applies and 0 for the others, in the same shape.
      class_weights: one weight per class, shape (C,).
      axis: the class dimension or dimensions.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes that take part
        and are counted in C. An example in which nothing takes part has loss and gradient 0.

    Returns:
      One loss per example, in the shape of `logits` without `axis`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits, labels = jnp.array([[1.0, -2.0, 0.0]]), jnp.array([[1, 0, 1]])
      >>> print(jaxloss.multilabel_soft_margin_loss(logits, labels).round(4))
      [0.3778]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelSoftMarginLoss.html
    """
    logits, labels = checks.arrays(logits=logits, labels=labels)
    checks.same_shape(logits=logits, labels=labels)
    classes = ClassAxes.of(axis, logits, "logits")
    where = checks.mask(where, "logits", logits)
    rule = "be probabilities in [0, 1]"
    checks.require((labels >= 0) & (labels <= 1), "labels", rule, where)
    if where is not None:
        logits, labels = jnp.where(where, logits, 0), jnp.where(where, labels, 0)
    losses = _logistic(logits, labels, None)
    weights = expand_weights(class_weights, logits, classes)
    if weights is not None:
        losses = elementwise.product(jnp.broadcast_to(weights, losses.shape), losses)
    if where is not None:
        losses = jnp.where(where, losses, 0)
    return classes.squeeze(classes.sum(losses) / classes.count(logits, where))
