"""Negative log likelihoods and divergences: categorical, Poisson, Gaussian, Kullback-Leibler."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import Labels, find, pick


@public(static=("axis",), labels=("labels",))
def negative_log_likelihood(
    log_probs: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Negative log likelihood of integer labels under given log probabilities.

    loss = -log_probs[label]. `log_probs` are taken as they are, without normalizing them.

    A label outside [0, C), negative ones included, gives NaN in that example's value and gradient
    only, and so does a label whose class `where` excludes.

    Args:
      log_probs: floating-point array (..., C) of log probabilities.
      labels: integer array of the shape of `log_probs` without `axis`.
      axis: the class dimension, or a tuple of them, over which a label is a flat index.
      where: boolean, of the rank of `log_probs` and broadcastable to it. An example in which
        nothing takes part has loss and gradient 0, whatever it holds.

    Returns:
      One loss per example, in the shape of `labels`; at least float32.

    Raises:
      TypeError: `log_probs` is not floating-point or `labels` not integer.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]))
      >>> print(jaxloss.negative_log_likelihood(log_probs, jnp.array([1, 1])).round(4))
      [1.3863 0.6931]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html
    """
    (log_probs,) = checks.arrays(log_probs=log_probs)
    classes = ClassAxes.of(axis, log_probs, "log_probs")
    where = checks.mask(where, "log_probs", log_probs)
    found = find(labels, log_probs, classes, where, names=("log_probs", "labels"))
    return losses_of_labels(log_probs, found, classes)


def losses_of_labels(log_probs: jax.Array, found: Labels, classes: ClassAxes) -> jax.Array:
    """`negative_log_likelihood` of labels that are found."""
    log_probs = log_probs.astype(checks.wide(log_probs.dtype))
    return -classes.squeeze(pick(log_probs, found, classes))


@public(static=("log_input", "full"), domain={"eps": checks.NON_NEGATIVE})
def poisson_nll_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    log_input: bool = True,
    full: bool = False,
    eps: ArrayLike = 1e-8,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Negative log likelihood of counts under a Poisson distribution.

    loss = exp(x) - y x with `log_input`, else x - y log(x + eps); `full` adds Stirling's
    y log y - y + ½ log(2πy) for targets above 1.

    0 log 0 is 0, with gradient 0. An infinite rate has loss +inf, whatever the count.

    Args:
      predictions: floating-point array of any shape: the log of the expected count or, without
        `log_input`, the expected count itself.
      targets: counts, in the same shape.
      log_input: whether `predictions` are logarithms.
      full: whether to add Stirling's approximation of log(y!).
      eps: keeps the logarithm finite without `log_input`.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes differ, or `eps` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> log_rate, count = jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0])
      >>> print(jaxloss.poisson_nll_loss(log_rate, count).round(4))
      [ 1.     -0.2817]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.PoissonNLLLoss.html
    """
    predictions, targets = checks.arrays(predictions=predictions, targets=targets)
    checks.same_shape(predictions=predictions, targets=targets)
    where = checks.mask(where, "predictions", predictions)
    predictions, targets = (elementwise.masked(where, x, 1) for x in (predictions, targets))
    checks.require(targets >= 0, "targets", "be counts of 0 or more")
    if log_input:
        losses = _poisson_of_log(predictions, targets, full)
    else:
        checks.require(predictions >= 0, "predictions", "be expected counts of 0 or more")
        eps = elementwise.masked(where, checks.hyper_parameter("eps", eps, predictions))
        losses = _poisson_of_rate(predictions, targets, eps, full)
    return elementwise.masked(where, losses)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _poisson_of_log(x: jax.Array, y: jax.Array, full: bool) -> jax.Array:
    return _poisson(jnp.exp(x), x, y, full)


def _poisson_of_log_jvp(full, primals, tangents):
    # Autodiff would keep the exponential for the backward pass.
    (x, y), (x_dot, y_dot) = primals, tangents
    terms = (jnp.exp(xla.recomputed(x)) - y, x_dot), (_by_count(x, y, full), y_dot)
    return _poisson_of_log(x, y, full), elementwise.along(x, *terms)


_poisson_of_log.defjvp(_poisson_of_log_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _poisson_of_rate(x: jax.Array, y: jax.Array, eps: jax.Array, full: bool) -> jax.Array:
    return _poisson(x, jnp.log(_raised_rate(x, y, eps)), y, full)


def _poisson_of_rate_jvp(full, primals, tangents):
    # Autodiff's derivatives are those of one branch of each selection, not of the limit.
    (x, y, eps), (x_dot, y_dot, eps_dot) = primals, tangents
    rate = _raised_rate(x, y, eps)
    share = elementwise.quotient(y, rate)
    terms = (1 - share, x_dot), (_by_count(jnp.log(rate), y, full), y_dot), (-share, eps_dot)
    return _poisson_of_rate(x, y, eps, full), elementwise.along(x, *terms)


_poisson_of_rate.defjvp(_poisson_of_rate_jvp, symbolic_zeros=True)


def _raised_rate(x: jax.Array, y: jax.Array, eps: jax.Array) -> jax.Array:
    """x + eps, but 1 where the logarithm of 0 is not needed."""
    rate = x + eps
    return jnp.where((y == 0) & (rate == 0), 1, rate)


def _poisson(rate: jax.Array, log_rate: jax.Array, y: jax.Array, full: bool) -> jax.Array:
    if not full:
        return jnp.where(y == 0, rate, elementwise.less_log(rate, y * log_rate))
    # Of large counts y log_rate and y log y overflow where their difference does not.
    above_1 = y > 1
    log_y = jnp.log(jnp.where(above_1, y, 1))
    taken = y * (log_rate - jnp.where(above_1, log_y - 1, 0))
    losses = jnp.where(y == 0, rate, elementwise.less_log(rate, taken))
    return losses + jnp.where(above_1, 0.5 * (log_y + math.log(2 * math.pi)), 0)


def _by_count(log_rate: jax.Array, y: jax.Array, full: bool) -> jax.Array:
    slope = -elementwise.silenced(y, log_rate)
    if not full:
        return slope
    above_1 = jnp.where(y > 1, y, 1)
    return slope + jnp.where(y > 1, jnp.log(above_1) + 0.5 / above_1, 0)


@public(static=("full",), domain={"eps": checks.NON_NEGATIVE})
def gaussian_nll_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    variances: ArrayLike,
    *,
    full: bool = False,
    eps: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Negative log likelihood of targets under Gaussians with predicted mean and variance.

    loss = ½ (log v + (x - y)²/v) with v = max(variance, eps); `full` adds ½ log 2π.

    The gradient treats v as the variance even where it was raised to eps, so that a variance that
    has fallen below eps can recover.

    Args:
      predictions: the expected values, floating-point, of any shape.
      targets: the observed values, in the same shape or with size 1 in some dimensions.
      variances: a number, or an array of the rank of `predictions` and broadcastable to it, in the
        square of the unit of `predictions`; 0 or more.
      full: whether to add the constant ½ log 2π.
      eps: the least variance.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes do not fit, or `eps` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> mean, observed = jnp.array([0.0, 1.0]), jnp.array([0.5, 1.0])
      >>> print(jaxloss.gaussian_nll_loss(mean, observed, jnp.array([1.0, 4.0])).round(4))
      [0.125  0.6931]

    Source: Nix and Weigend, Estimating the mean and variance of the target probability
    distribution (1994).
    """
    predictions, targets, variances = checks.arrays(
        predictions=predictions, targets=targets, variances=variances
    )
    targets = checks.broadcast("targets", targets, predictions, same_rank=True)
    if variances.ndim:
        variances = checks.broadcast("variances", variances, predictions, same_rank=True)
    where = checks.mask(where, "predictions", predictions)
    predictions, targets, variances = (
        elementwise.masked(where, x, 1) for x in (predictions, targets, variances)
    )
    checks.require(variances >= 0, "variances", "be 0 or more")
    eps = elementwise.masked(where, checks.hyper_parameter("eps", eps, predictions), 1)
    losses = _gaussian(predictions, targets, variances, eps)
    losses = losses + 0.5 * math.log(2 * math.pi) if full else losses
    return elementwise.masked(where, losses)


@jax.custom_jvp
def _gaussian(x: jax.Array, y: jax.Array, variance: jax.Array, eps: jax.Array) -> jax.Array:
    v, error = _raised(variance, eps), x - y
    return 0.5 * (jnp.log(v) + error * (error / v))


def _gaussian_jvp(primals, tangents):
    # Autodiff would not reach a variance below eps, and squares v, which overflows where the
    # derivative does not.
    x, y, variance, eps = primals
    v, error = _raised(variance, eps), xla.recomputed(x) - y
    ratio = elementwise.quotient(error, v)
    x_dot, y_dot, variance_dot, _ = tangents
    along = elementwise.along(x, (ratio, x_dot), (-ratio, y_dot))
    if not isinstance(variance_dot, SymbolicZero):
        less = variance_dot - error * (ratio * variance_dot)
        along = along + 0.5 * elementwise.quotient(less, v)
    return _gaussian(*primals), along


_gaussian.defjvp(_gaussian_jvp, symbolic_zeros=True)


def _raised(variance, eps):
    """max(variance, eps) with the derivative 1 everywhere."""
    return variance + lax.stop_gradient(jnp.maximum(eps - variance, 0))


@public(static=("axis",))
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of a predicted distribution from a target distribution.

    loss = Σ_c t_c (log t_c - log_predictions_c).

    A target of 0 adds nothing, even against a log prediction of -inf, where its gradient is 0. A
    positive target against -inf gives +inf.

    Args:
      log_predictions: floating-point array (..., C), log probabilities.
      targets: probabilities in the same shape.
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
      >>> log_predictions = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
      >>> targets = jnp.array([[1.0, 0.0], [0.25, 0.75]])
      >>> print(jaxloss.kl_divergence(log_predictions, targets).round(4))
      [0.6931 0.    ]

    Source: Kullback and Leibler, On information and sufficiency (1951).
    """
    log_predictions, targets = checks.arrays(log_predictions=log_predictions, targets=targets)
    checks.same_shape(log_predictions=log_predictions, targets=targets)
    axes = checks.axes(axis, log_predictions, "log_predictions")
    where = checks.mask(where, "log_predictions", log_predictions)
    rule = "be probabilities in [0, 1]"
    checks.require((targets >= 0) & (targets <= 1), "targets", rule, where)
    if where is not None:
        log_predictions = jnp.where(where, log_predictions, 0)
        targets = jnp.where(where, targets, 0)
    log_targets = jnp.log(jnp.where(targets == 0, 1, targets))
    return jnp.sum(elementwise.product(targets, log_targets - log_predictions), axes)


@public(static=("axis",))
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of a predicted distribution from a target, both as logarithms.

    loss = Σ_c exp(log_t_c) (log_t_c - log_predictions_c).

    A log target of -inf adds nothing, even against a log prediction of -inf, and has gradient 0.

    Args:
      log_predictions: floating-point array (..., C), log probabilities.
      log_targets: log probabilities in the same shape.
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
      >>> log_predictions = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
      >>> log_targets = jnp.log(jnp.array([[1.0, 0.0], [0.25, 0.75]]))
      >>> print(jaxloss.kl_divergence_with_log_targets(log_predictions, log_targets).round(4))
      [0.6931 0.    ]

    Source: Kullback and Leibler, On information and sufficiency (1951).
    """
    log_predictions, log_targets = checks.arrays(
        log_predictions=log_predictions, log_targets=log_targets
    )
    checks.same_shape(log_predictions=log_predictions, log_targets=log_targets)
    axes = checks.axes(axis, log_predictions, "log_predictions")
    where = checks.mask(where, "log_predictions", log_predictions)
    rule = "be logarithms of probabilities, 0 or less"
    checks.require(log_targets <= 0, "log_targets", rule, where)
    if where is not None:
        log_predictions = jnp.where(where, log_predictions, 0)
        log_targets = jnp.where(where, log_targets, -jnp.inf)
    possible = log_targets != -jnp.inf
    log_targets = jnp.where(possible, log_targets, 0)
    terms = jnp.exp(log_targets) * (log_targets - log_predictions)
    return jnp.sum(jnp.where(possible, terms, 0), axes)
