"""Softmax cross entropy: integer labels, class probabilities."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import AxisName, ClassAxes
from jaxloss.core.classes.capping import Given
from jaxloss.core.classes.labels import Labels, at_label, expand_weights, find, weights_at
from jaxloss.core.classes.peak import prepared
from jaxloss.core.classes.soft_labels import losses_and_log_sum


@public(
    static=("axis", "axis_name"),
    labels=("labels",),
    domain={"label_smoothing": checks.FRACTION, "softcap": checks.POSITIVE},
    absent_at_default=("label_smoothing", "z_loss"),
)
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` and integer class `labels`.

    loss = (1-ε) w_y nll_y + ε/C Σ_c w_c nll_c + z_loss·lse²,  nll_c = lse - logits_c,
    lse = log Σ_c exp(logits_c).

    Shift-invariant, and accurate where the model is confident. A logit of -inf is a class of
    probability 0: the loss of that label is +inf and its gradient finite. A label outside [0, C),
    negative ones included, gives NaN in that example's value and gradient only, and so does a
    label whose class `where` excludes.

    Args:
      logits: floating-point array (..., C), unnormalized log probabilities.
      labels: integer array of the shape of `logits` without `axis`.
      axis: the class dimension, or a tuple of them, over which a label is a flat index.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example in which nothing takes part has loss
        and gradient 0, whatever it holds.
      class_weights: one weight per class, shape (C,).
      label_smoothing: ε in [0, 1], the share of the label spread evenly over all classes, its own
        included. An ε that is spread over the C - 1 others alone, as in T5, is ε C / (C - 1) here.
      z_loss: factor of the squared log normalizer, a term that keeps the normalizer near 1.
      softcap: a positive bound on the logits, which become softcap·tanh(logits / softcap)
        before anything else; -inf becomes -softcap, and what `where` excludes stays excluded.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; labels
        are then global class indices and `class_weights` the local part.

    Returns:
      One loss per example, in the shape of `labels`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point or `labels` not integer.
      ValueError: shapes, `axis`, `label_smoothing` or `softcap` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> labels = jnp.array([0, 1])
      >>> print(jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels))
      [0.2761 2.9518]

    Source: Bishop, Pattern Recognition and Machine Learning (2006), 4.3.4; label smoothing:
    Szegedy et al., arXiv:1512.00567; z-loss: Chowdhery et al., arXiv:2204.02311.
    """
    (logits,) = checks.operands(logits=logits)
    classes = ClassAxes.of(axis, logits, "logits", axis_name)
    where = checks.mask(where, "logits", logits)
    found = find(labels, logits, classes, where, names=("logits", "labels"))
    terms = Terms.of(logits, classes, class_weights, label_smoothing, z_loss, softcap)
    return losses_of_labels(logits, found, where, terms, classes)


@public(
    static=("axis", "axis_name"),
    domain={"label_smoothing": checks.FRACTION, "softcap": checks.POSITIVE},
    absent_at_default=("label_smoothing", "z_loss"),
)
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` and the class probabilities `labels`.

    loss = Σ_c w_c ((1-ε) labels_c + ε/C) (lse - logits_c) + z_loss·lse²,
    lse = log Σ_c exp(logits_c).

    Shift-invariant, and accurate where the model is confident. A logit of -inf is a class of
    probability 0: with a positive label the loss is +inf, with label 0 the class adds 0; the
    gradient is finite in both cases. Labels need not sum to 1.

    Args:
      logits: floating-point array (..., C), unnormalized log probabilities.
      labels: class probabilities, as a rule; in the same shape.
      axis: the class dimension or dimensions; None for all.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example in which nothing takes part has loss
        and gradient 0, whatever it holds.
      class_weights: one weight per class, shape (C,).
      label_smoothing: ε in [0, 1], the share of the labels spread evenly over the classes.
      z_loss: factor of the squared log normalizer, a term that keeps the normalizer near 1.
      softcap: a positive bound on the logits, which become softcap·tanh(logits / softcap)
        before anything else; -inf becomes -softcap, and what `where` excludes stays excluded.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded;
        `class_weights` are then the local part.

    Returns:
      One loss per example, in the shape of `logits` without `axis`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: shapes, `axis`, `label_smoothing` or `softcap` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
      >>> print(jaxloss.softmax_cross_entropy(logits, labels))
      [0.2761 1.8018]

    Source: as `softmax_cross_entropy_with_integer_labels`.
    """
    logits, labels = checks.arrays(logits=logits, labels=labels)
    checks.same_shape(logits=logits, labels=labels)
    classes = ClassAxes.of(axis, logits, "logits", axis_name)
    classes.require(logits, "logits")
    where = checks.mask(where, "logits", logits)
    checks.require((labels >= 0) & (labels <= 1), "labels", "be probabilities in [0, 1]", where)
    terms = Terms.of(logits, classes, class_weights, label_smoothing, z_loss, softcap)
    return losses_of_probabilities(logits, labels, where, terms, classes)


class Terms(NamedTuple):
    """What may change the plain cross entropy; what is None is left out."""

    class_weights: jax.Array | None  # Laid along the class axes.
    label_smoothing: jax.Array | None
    z_loss: jax.Array | None
    softcap: jax.Array | None = None
    epsilon: jax.Array | None = None  # Of the poly loss.

    @classmethod
    def of(
        cls,
        logits: jax.Array,
        classes: ClassAxes,
        class_weights: ArrayLike | None,
        label_smoothing: ArrayLike,
        z_loss: ArrayLike = 0.0,
        softcap: ArrayLike | None = None,
    ) -> Terms:
        """Checks what a caller passed."""
        return cls(
            expand_weights(class_weights, logits, classes),
            factor("label_smoothing", label_smoothing, logits),
            factor("z_loss", z_loss, logits),
            factor("softcap", softcap, logits, absent=None),
        )


def factor(name: str, value: Any, like: jax.Array, absent: float | None = 0) -> jax.Array | None:
    """A hyper-parameter, or None if it is left out because it is the Python number `absent`."""
    if value is absent or (isinstance(value, int | float) and value == absent):
        return None
    return checks.number(name, value, like)


def losses_of_labels(
    logits: jax.Array,
    found: Labels,
    where: jax.Array | None,
    terms: Terms,
    classes: ClassAxes,
) -> jax.Array:
    """`softmax_cross_entropy_with_integer_labels` of labels that are found.

    Half logits are widened here, each time that they are read.
    """
    weights, smoothing, z_loss, softcap, _ = terms
    given = Given(logits, where, softcap)
    given, logits, peak, present = prepared(given, classes)
    losses, log_sum = _surprise(logits, given, peak, found, classes)
    if weights is not None:
        losses = elementwise.product(weights_at(found, weights, classes), losses)
    if smoothing is not None:
        even = _even_labels(logits, where, weights, classes)
        alike = weights is None and not classes.are_masked(where)
        below_peak = _below_peak(logits, even, peak, present, classes, alike)
        mass = 1 if weights is None else classes.sum(even)
        spread = below_peak + mass * log_sum
        losses = elementwise.product(1 - smoothing, losses) + elementwise.product(smoothing, spread)
    return _finished(losses, z_loss, peak + log_sum, present, classes)


def losses_of_probabilities(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    terms: Terms,
    classes: ClassAxes,
) -> jax.Array:
    """`softmax_cross_entropy` of what is checked."""
    weights, smoothing, z_loss, softcap, epsilon = terms
    given = Given(logits, where, softcap)
    given, logits, peak, present = prepared(given, classes)
    if where is not None:
        labels = jnp.where(where, labels, 0)
    if weights is not None:
        labels = weights * labels
    if smoothing is not None:
        even = _even_labels(logits, where, weights, classes)
        labels = (1 - smoothing) * labels + smoothing * even
    losses, log_sum = losses_and_log_sum(logits, labels, epsilon, given, peak, present, classes)
    return _finished(losses, z_loss, peak + log_sum, present, classes)


def _even_labels(logits, where, weights, classes):
    """w_c / C for the classes that take part, in the least shape that tells them apart."""
    even = 1 / jnp.asarray(classes.count(logits, where), logits.dtype)
    even = even.reshape(even.shape or (1,) * logits.ndim)
    even = even if weights is None else weights * even
    return jnp.where(where, even, 0) if classes.are_masked(where) else even


def _finished(losses, z_loss, log_normalizer, present, classes):
    """One loss per example, with the z-loss; 0 for absent examples."""
    if z_loss is not None:
        losses = losses + z_loss * jnp.square(log_normalizer)
    return classes.squeeze(jnp.where(present, losses, 0))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _surprise(logits, given, peak, labels, classes):
    """lse - logits_label, and log Σ exp(logits - peak), accurate where the label has almost all.

    `given` are the logits before they were widened. To gather the labels' from widened ones XLA
    would store a copy, which on a TPU is 4.2 GB for (8192, 128256) in bfloat16.
    """
    own = given.scale(at_label(given.logits, labels, classes)) - peak
    others = classes.sum(_exp_of_others(logits, peak, labels))
    own, others = map(classes.squeeze, (own, others))
    # What the label adds is left to log1p, so that it does not swallow what the others add. Near
    # the peak all is relative to the label: own is subtracted nowhere, and may be rounded anyhow.
    near = own > -1
    less = jnp.expm1(jnp.where(near, -own, own))
    log_sum = jnp.log1p(jnp.where(near, others * (1 + less), others + less))
    surprise = jnp.where(near, log_sum, log_sum - own)
    surprise = xla.nan_where(classes.squeeze(labels.bad), surprise)
    return classes.expand(surprise), classes.expand(jnp.where(near, log_sum + own, log_sum))


def _exp_of_others(logits, peak, labels):
    exps = jnp.exp(xla.filled(labels.present, logits, 0) - peak)
    return xla.filled(~labels.hot, exps, 0)


@_surprise.defjvp
def _surprise_jvp(classes, primals, tangents):
    # Autodiff's p - 1 at the label cancels to 0 where the model is confident. The exponentials are
    # written as in the value, so that the compiler makes and stores them once.
    logits, given, peak, labels = primals
    logits = given.scores_again(logits, classes)
    surprise, log_sum = _surprise(*primals, classes)
    scale = xla.nan_where(labels.bad, jnp.where(labels.present, jnp.exp(-log_sum), 0))
    others = _exp_of_others(logits, peak, labels) * scale
    gradient = jnp.where(labels.hot, jnp.expm1(-surprise), others)
    p = jnp.where(labels.hot, jnp.exp(-surprise), others)
    totals = (classes.sum(x * tangents[0]) for x in (gradient, p))
    return (surprise, log_sum), tuple(totals)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _below_peak(logits, labels, peak, present, classes, alike):
    """Σ_c labels_c (peak - logits_c); `alike` if an example's labels are equal and positive."""
    if alike:
        total = classes.sum(xla.recomputed_difference(logits, peak))
        return jnp.where(present, -labels * total, 0)
    parts = xla.filled(present & (labels != 0), labels * (peak - logits), 0)
    return classes.sum(parts)


def _below_peak_jvp(classes, alike, primals, tangents):
    # Autodiff would multiply the NaN that absent examples may hold by 0.
    logits, labels, peak, present = primals
    below = xla.filled(present, peak - logits, 0)
    slopes = -labels, elementwise.silenced(labels, below)
    parts = elementwise.along(logits, *zip(slopes, tangents[:2], strict=True))
    tangent = classes.sum(xla.filled(present, parts, 0))
    return _below_peak(*primals, classes, alike), tangent


_below_peak.defjvp(_below_peak_jvp, symbolic_zeros=True)
