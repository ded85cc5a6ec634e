"""Softmax cross entropy: integer labels, class probabilities."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, xla
from jaxloss._base.call import is_absent, public
from jaxloss.core.classes import labels as _classes
from jaxloss.core.classes.labels import AxisName


@public(
    static=("axis", "axis_name"),
    labels=("labels",),
    domain={"label_smoothing": checks.FRACTION},
    absent_at_default=("label_smoothing", "z_loss"),
)
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` and the classes `labels`.

    loss = (1-ε) w_y nll_y + ε/C Σ_c w_c nll_c + z_loss·lse²,  nll_c = lse - logits_c,
    lse = log Σ_c exp(logits_c).

    Shift-invariant, and accurate where the model is confident. A logit of -inf is a class of
    probability 0: the loss of that label is +inf and its gradient finite. A label outside [0, C),
    negative ones included, gives NaN in that example's value and gradient only, and so does a
    label of a class that `where` excludes.

    Args:
      logits: floating-point array (..., C), unnormalised log probabilities.
      labels: integer array of the shape of `logits` without `axis`.
      axis: the class dimension; over a tuple of them a label is a flat index.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example of which nothing takes part has loss
        and gradient 0, whatever it holds.
      class_weights: one weight per class, shape (C,).
      label_smoothing: ε in [0, 1], the share of the label spread evenly over the classes, its own
        among them. Where ε goes to the V - 1 others alone, as in T5, it is ε V / (V - 1) here.
      z_loss: factor of the squared log normaliser, which keeps it near 0.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; labels
        are then global class indices and `class_weights` the local part.

    Returns:
      One loss per example, in the shape of `labels`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point or `labels` not integer.
      ValueError: shapes, `axis` or `label_smoothing` do not fit.

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
    (logits,) = checks.arrays(logits=logits)
    axes = checks.axes(axis, logits, "logits")
    where = checks.mask(where, "logits", logits)
    found = _classes.index(
        labels, logits, axes, where, names=("logits", "labels"), axis_name=axis_name
    )
    terms = _terms(logits, axes, class_weights, label_smoothing, z_loss)
    return losses_of_labels(logits, found, where, terms, axes, axis_name)


@public(
    static=("axis", "axis_name"),
    domain={"label_smoothing": checks.FRACTION},
    absent_at_default=("label_smoothing", "z_loss"),
)
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` and the class probabilities `labels`.

    loss = Σ_c w_c ((1-ε) labels_c + ε/C) (lse - logits_c) + z_loss·lse²,
    lse = log Σ_c exp(logits_c).

    Shift-invariant, and accurate where the model is confident. A logit of -inf is a class of
    probability 0: with a positive label the loss is +inf, with label 0 the class adds 0; the
    gradient is finite in both cases. Labels need not sum to 1.

    Args:
      logits: floating-point array (..., C), unnormalised log probabilities.
      labels: class probabilities in the same shape, as a rule.
      axis: the class dimension or dimensions; None for all.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example of which nothing takes part has loss
        and gradient 0, whatever it holds.
      class_weights: one weight per class, shape (C,).
      label_smoothing: ε in [0, 1], the share of the labels spread evenly over the classes.
      z_loss: factor of the squared log normaliser, which keeps it near 0.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded;
        `class_weights` are then the local part.

    Returns:
      One loss per example, in the shape of `logits` without `axis`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: shapes, `axis` or `label_smoothing` do not fit.

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
    axes = checks.axes(axis, logits, "logits")
    _classes.require_classes("logits", logits, axes)
    where = checks.mask(where, "logits", logits)
    checks.require((labels >= 0) & (labels <= 1), "labels", "be probabilities in [0, 1]", where)
    terms = _terms(logits, axes, class_weights, label_smoothing, z_loss)
    return losses_of_probabilities(logits, labels, where, terms, axes, axis_name)


class Terms(NamedTuple):
    """What may be added to the plain cross entropy; None is left out."""

    class_weights: jax.Array | None  # Laid along the class axes.
    label_smoothing: jax.Array | None
    z_loss: jax.Array | None


def _terms(logits, axes, class_weights, label_smoothing, z_loss):
    return Terms(
        _classes.expand_weights(class_weights, logits, axes),
        factor("label_smoothing", label_smoothing, logits),
        factor("z_loss", z_loss, logits),
    )


def factor(name: str, value: ArrayLike, like: jax.Array) -> jax.Array | None:
    """A hyper-parameter that at a Python 0 is left out."""
    return None if is_absent(value) else checks.number(name, value, like)


def losses_of_labels(
    logits: jax.Array,
    found: _classes.Labels,
    where: jax.Array | None,
    terms: Terms,
    axes: tuple[int, ...],
    axis_name: AxisName,
) -> jax.Array:
    """`softmax_cross_entropy_with_integer_labels` behind its checks."""
    weights, smoothing, z_loss = terms
    logits, peak, present = _prepared(logits, where, axes, axis_name)
    losses, log_sum = _surprise(logits, peak, found, axes, axis_name)
    if weights is not None:
        weight = _classes.total(jnp.where(found.hot, weights, 0), axes, axis_name)
        losses = elementwise.product(weight, losses)
    if smoothing is not None:
        even = _even_labels(logits, where, weights, axes, axis_name)
        alike = weights is None and not _classes.masks_classes(where, axes)
        below_peak = _below_peak(logits, even, peak, present, axes, axis_name, alike)
        mass = 1 if weights is None else _classes.total(even, axes, axis_name)
        spread = below_peak + mass * log_sum
        losses = elementwise.product(1 - smoothing, losses) + elementwise.product(smoothing, spread)
    return _finished(losses, z_loss, peak + log_sum, present, axes)


def losses_of_probabilities(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    terms: Terms,
    axes: tuple[int, ...],
    axis_name: AxisName,
) -> jax.Array:
    """`softmax_cross_entropy` behind its checks."""
    weights, smoothing, z_loss = terms
    logits, peak, present = _prepared(logits, where, axes, axis_name)
    if where is not None:
        labels = jnp.where(where, labels, 0)
    if weights is not None:
        labels = weights * labels
    if smoothing is not None:
        even = _even_labels(logits, where, weights, axes, axis_name)
        labels = (1 - smoothing) * labels + smoothing * even
    losses, log_sum = _cross_entropy(logits, labels, peak, present, axes, axis_name)
    return _finished(losses, z_loss, peak + log_sum, present, axes)


def _prepared(logits, where, axes, axis_name):
    """Logits with probability 0 for absent classes, their peak, and which examples are present.

    The logits of absent examples stay what they are, as masking all logits for their sake costs a
    pass over the memory: what uses them puts 0 there.
    """
    if _classes.masks_classes(where, axes):
        logits = jnp.where(where, logits, -jnp.inf)
    peak = jnp.max(lax.stop_gradient(logits), axes, keepdims=True)
    peak = peak if axis_name is None else lax.pmax(peak, axis_name)
    present = (peak == 0) | True  # Not a constant: see `xla.where`.
    if where is not None:
        present = _classes.any_class(where, axes, axis_name)
    return logits, jnp.where(present & (peak > -jnp.inf), peak, 0), present


def _even_labels(logits, where, weights, axes, axis_name):
    """w_c / C for the classes that take part, in the least shape that tells them apart."""
    even = 1 / jnp.asarray(_classes.count(logits, axes, where, axis_name), logits.dtype)
    even = even.reshape(even.shape or (1,) * logits.ndim)
    even = even if weights is None else weights * even
    return jnp.where(where, even, 0) if _classes.masks_classes(where, axes) else even


def _finished(losses, z_loss, log_normalizer, present, axes):
    """One loss per example, with the z-loss; 0 for absent examples."""
    if z_loss is not None:
        losses = losses + z_loss * jnp.square(log_normalizer)
    return jnp.squeeze(jnp.where(present, losses, 0), axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _surprise(logits, peak, labels, axes, axis_name):
    """lse - logits_label, and log Σ exp(logits - peak), accurate where the label has almost all."""
    own = _classes.at_label(logits, labels, axes, axis_name) - peak
    others = _classes.total(_exp_of_others(logits, peak, labels), axes, axis_name)
    # What the label adds is left to log1p, so that it does not swallow what the others add. Near
    # the peak all is relative to the label: own is subtracted nowhere, and may be rounded anyhow.
    near = own > -1
    less = jnp.expm1(jnp.where(near, -own, own))
    log_sum = jnp.log1p(jnp.where(near, others * (1 + less), others + less))
    surprise = jnp.where(near, log_sum, log_sum - own)
    surprise = xla.nan_where(labels.bad, surprise)
    return surprise, jnp.where(near, log_sum + own, log_sum)


def _exp_of_others(logits, peak, labels):
    exps = jnp.exp(xla.where(labels.present, logits, 0) - peak)
    return xla.where(~labels.hot, exps, 0)


@_surprise.defjvp
def _surprise_jvp(axes, axis_name, primals, tangents):
    # Autodiff's p - 1 at the label cancels to 0 where the model is confident. The exponentials are
    # written as in the value, so that the compiler makes and stores them once.
    logits, peak, labels = primals
    surprise, log_sum = _surprise(*primals, axes, axis_name)
    scale = xla.nan_where(labels.bad, jnp.where(labels.present, jnp.exp(-log_sum), 0))
    others = _exp_of_others(logits, peak, labels) * scale
    gradient = jnp.where(labels.hot, jnp.expm1(-surprise), others)
    p = jnp.where(labels.hot, jnp.exp(-surprise), others)
    totals = (_classes.total(x * tangents[0], axes, axis_name) for x in (gradient, p))
    return (surprise, log_sum), tuple(totals)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def _below_peak(logits, labels, peak, present, axes, axis_name, alike=False):
    """Σ_c labels_c (peak - logits_c); `alike` if an example's labels are all the same, above 0."""
    if alike:
        # Only arithmetic, and none that is done elsewhere: then no term is stored.
        total = _classes.total(logits + -peak, axes, axis_name)
        return jnp.where(present, -labels * total, 0)
    parts = xla.where(present & (labels != 0), labels * (peak - logits), 0)
    return _classes.total(parts, axes, axis_name)


def _below_peak_jvp(axes, axis_name, alike, primals, tangents):
    # Autodiff would multiply the NaN that absent examples may hold by 0.
    logits, labels, peak, present = primals
    below = xla.where(present, peak - logits, 0)
    slopes = -labels, elementwise.silenced(labels, below)
    parts = xla.along(logits, *zip(slopes, tangents[:2], strict=True))
    tangent = _classes.total(xla.where(present, parts, 0), axes, axis_name)
    return _below_peak(*primals, axes, axis_name, alike), tangent


_below_peak.defjvp(_below_peak_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _cross_entropy(logits, labels, peak, present, axes, axis_name):
    """Σ_c labels_c (lse - logits_c), and log Σ exp(logits - peak), accurate down to 0."""
    below, exps = _below_and_exp(logits, peak, present)
    log_sum, alone = _log_sum(exps, axes, axis_name)
    at_peak, own = below > -0.25, lax.stop_gradient(below)

    def total(at_peak):
        parts = labels * (jnp.where(at_peak, own, 0) - below)
        return _classes.total(xla.where(present & (labels != 0), parts, 0), axes)

    # On a CPU a second sum takes a loop of its own (1.4 of the time). Where a sum needs another one
    # first, a TPU reads everything anew (1.2 of the cycles).
    below_peak = lax.platform_dependent(
        cpu=lambda: total(alone & at_peak),
        default=lambda: jnp.where(alone, total(at_peak), total(False)),
    )
    below_peak = below_peak if axis_name is None else lax.psum(below_peak, axis_name)
    mass = _classes.total(labels, axes, axis_name)
    return below_peak + elementwise.product(mass, log_sum), log_sum


def _below_and_exp(logits, peak, present):
    below = xla.where(present, logits, 0) - peak
    return below, jnp.exp(below)


def _log_sum(exps, axes, axis_name):
    """The logarithm of the sum of exp(logits - peak), and whether one class is alone at the peak.

    That class adds exactly 1: left to log1p, it does not swallow what the others add.
    """
    # XLA may round a logit differently wherever it reads it, so that none need equal the peak, nor
    # any of these be 1. The others are those below 0.5; a selection would be stored on a CPU.
    others = exps - lax.stop_gradient(exps * jnp.round(exps))
    total, others = (_classes.total(x, axes, axis_name) for x in (exps, others))
    # With a last axis of size 1 XLA's code for a CPU takes one number at a time.
    total, others = (jnp.squeeze(x, axes) for x in (total, others))
    # Two of 0.5 or more, one of them the peak, add at least 1.5. A large total needs no log1p.
    alone = (jnp.abs(total - others - 1) < 0.25) & (total < 8)
    log_total = jnp.log(jnp.where(total == 0, 1, total))
    log_sum = jnp.where(alone, jnp.log1p(others), log_total)
    return jnp.expand_dims(log_sum, axes), jnp.expand_dims(alone, axes)


def _less_at_peak(x, at_peak, otherwise):
    """x - otherwise, but exactly 0 at the peak, with the derivative of x."""
    return x - jnp.where(at_peak, lax.stop_gradient(x), otherwise)


def _cross_entropy_jvp(axes, axis_name, primals, tangents):
    # Autodiff's p Σ labels - labels cancels as well; p - 1 is taken apart instead, as
    # (exp(-log_sum) - 1) + exp(-log_sum) (exps - 1).
    logits, labels, peak, present = primals
    losses, log_sum = _cross_entropy(*primals, axes, axis_name)
    below, exps = _below_and_exp(logits, peak, present)
    _, alone = _log_sum(exps, axes, axis_name)
    at_peak = alone & (exps > 0.75)
    parts = log_parts = jnp.zeros_like(logits)
    if not isinstance(tangents[0], SymbolicZero):
        scale = jnp.exp(-log_sum)
        p_minus_1 = jnp.expm1(-log_sum) + scale * _less_at_peak(exps, at_peak, 1)
        mass = _classes.total(labels, axes, axis_name)
        gradient = (mass - labels) * (scale * exps) + labels * p_minus_1
        parts = jnp.where(present, gradient, 0) * tangents[0]
        log_parts = jnp.where(present, scale * exps, 0) * tangents[0]
    if not isinstance(tangents[1], SymbolicZero):
        surprise = jnp.where(present, log_sum - _less_at_peak(below, at_peak, 0), 0)
        parts = parts + elementwise.silenced(labels, surprise) * tangents[1]
    totals = (_classes.total(x, axes, axis_name) for x in (parts, log_parts))
    return (losses, log_sum), tuple(totals)


_cross_entropy.defjvp(_cross_entropy_jvp, symbolic_zeros=True)
