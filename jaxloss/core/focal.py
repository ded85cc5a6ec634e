"""Cross entropies reshaped by the probability: focal and poly losses; and optax's safe one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import find, label_weights
from jaxloss.core.cross_entropy import (
    Terms,
    losses_of_labels,
    losses_of_probabilities,
    softmax_cross_entropy,
)


@public(domain={"alpha": checks.FRACTION, "gamma": checks.NON_NEGATIVE})
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Binary focal loss: cross entropy with less weight on what is already right.

    loss = w (1 - p_t)^γ nll, with nll the binary cross entropy, 1 - p_t = y (1 - p) + (1 - y) p the
    probability of the wrong answer, p = σ(x), and w = α y + (1 - α) (1 - y), or 1 without α.

    Accurate for confident logits of both signs. With γ = 0 it is the weighted cross entropy.

    Args:
      logits: floating-point array of any shape.
      labels: the probability of yes, 0 or 1 as a rule, in the same shape.
      alpha: α in [0, 1], the weight of yes against no; a number, or one for each element.
      gamma: γ >= 0, how fast the weight falls; a number, or one for each element.
      where: boolean, of the rank of `logits` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `logits`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: the shapes do not fit, `alpha` is not in [0, 1] or `gamma` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits, labels = jnp.array([0.0, 2.0, -3.0]), jnp.array([1.0, 1.0, 1.0])
      >>> jnp.set_printoptions(precision=4)
      >>> print(jaxloss.sigmoid_focal_loss(logits, labels, alpha=0.25))
      [4.3322e-02 4.5089e-04 6.9157e-01]

    Source: Lin et al., Focal loss for dense object detection, arXiv:1708.02002.
    """
    logits, labels = checks.arrays(logits=logits, labels=labels)
    checks.same_shape(logits=logits, labels=labels)
    where = checks.mask(where, "logits", logits)
    logits, labels = (elementwise.masked(where, x) for x in (logits, labels))
    checks.require((labels >= 0) & (labels <= 1), "labels", "be probabilities in [0, 1]")
    gamma = elementwise.masked(where, checks.hyper_parameter("gamma", gamma, logits), 1)
    losses = _sigmoid_focal(logits, labels, gamma)
    if alpha is not None:
        alpha = elementwise.masked(where, checks.hyper_parameter("alpha", alpha, logits))
        weights = alpha * labels + (1 - alpha) * (1 - labels)
        losses = elementwise.product(jnp.broadcast_to(weights, losses.shape), losses)
    return elementwise.masked(where, losses)


@jax.custom_jvp
def _sigmoid_focal(x: jax.Array, y: jax.Array, gamma: jax.Array) -> jax.Array:
    return _Odds(x, y).focal(gamma)


def _sigmoid_focal_jvp(primals, tangents):
    # Autodiff divides by 1 - p_t, which is 0 where the loss is certain. Far outside all slopes are
    # constant or follow x, and infinite ones would meet factors of 0.
    x, y, gamma = primals
    odds = _Odds(jnp.clip(x, -1e18, 1e18), y)
    loss = _sigmoid_focal(*primals)
    slopes = odds.by_logit(gamma), odds.by_label(gamma, x), odds.by_gamma(gamma)
    return loss, elementwise.along(loss, *zip(slopes, tangents, strict=True))


_sigmoid_focal.defjvp(_sigmoid_focal_jvp, symbolic_zeros=True)


class _Odds:
    """A binary prediction beside its label: the likely answer, and the other with e = exp(-|x|).

    The wrong answer's probability is (against + beside · e) / (1 + e), where `against` and `beside`
    are what the label says of the likely answer's complement and of the answer itself. Where the
    probability is hardly above 0, its logarithm is used, and its shares for what is divided by it.
    """

    def __init__(self, x: jax.Array, y: jax.Array) -> None:
        is_yes = x > 0
        self.sign = jnp.where(is_yes, 1, -jnp.ones_like(x))
        self.size = jnp.where(is_yes, x, -x)  # Not |x|, whose derivative at 0 is of neither side.
        self.e = jnp.exp(-self.size)
        self.against, self.beside = jnp.where(is_yes, 1 - y, y), jnp.where(is_yes, y, 1 - y)
        against, beside = (jnp.where(z == 0, 1, z) for z in (self.against, self.beside))
        odds = jnp.log(beside / against) - self.size
        self.agrees = self.beside >= 0.5
        # The likely answer's own share in what is wrong.
        self.share = jnp.where(self.against == 0, 1, lax.logistic(odds))
        wrong = jnp.where(self.agrees, 1, self.against + self.beside * self.e)
        self.e_by_wrong = jnp.where(self.agrees, self.share / beside, self.e / wrong)
        log_wrong = jnp.log(against) + elementwise.softplus(odds)
        log_wrong = jnp.where(self.against == 0, jnp.log(beside) - self.size, log_wrong)
        log_wrong = jnp.where(self.agrees, log_wrong, jnp.log(wrong))
        self.log_wrong = log_wrong - jnp.log1p(self.e)
        self.wrong = wrong

    @property
    def nll(self) -> jax.Array:
        return jnp.log1p(self.e) + elementwise.product(self.against, self.size)

    def power(self, gamma: jax.Array) -> jax.Array:
        return jnp.exp(elementwise.product(gamma, self.log_wrong))

    def focal(self, gamma: jax.Array) -> jax.Array:
        return elementwise.product(self.power(gamma), self.nll)

    def by_logit(self, gamma: jax.Array) -> jax.Array:
        turn = (self.against - self.beside) * self.e_by_wrong / (1 + self.e)
        less = self.against - self.e / (1 + self.e)
        inner = less + elementwise.product(gamma * turn, self.nll)
        return self.sign * elementwise.product(self.power(gamma), inner)

    def by_label(self, gamma: jax.Array, x: jax.Array) -> jax.Array:
        none = self.e == 0
        ratio = jnp.where(none, 1, jnp.log1p(self.e) / jnp.where(none, 1, self.e))
        apart = ratio * self.e_by_wrong + elementwise.product(1 - self.share, self.size)
        nll_by_wrong = jnp.where(self.agrees, apart, self.nll / self.wrong)
        inner = x + elementwise.product(gamma * self.sign * (1 - self.e), nll_by_wrong)
        return -elementwise.product(self.power(gamma), inner)

    def by_gamma(self, gamma: jax.Array) -> jax.Array:
        return elementwise.product(self.focal(gamma), self.log_wrong)


@public(static=("axis",), labels=("labels",), domain={"gamma": checks.NON_NEGATIVE})
def softmax_focal_loss_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    class_weights: ArrayLike | None = None,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss of many classes: cross entropy with less weight on what is already right.

    loss = w_y (1 - p_y)^γ nll, with nll = -log p_y and p the softmax of `logits`.

    Shift-invariant, and accurate where the model is confident. With γ = 0 it is the weighted cross
    entropy. A logit of -inf is a class of probability 0: the loss of that label is +inf and its
    gradient finite. A label outside [0, C), negative ones included, gives NaN in that example's
    value and gradient only, and so does a label whose class `where` excludes.

    Args:
      logits: floating-point array (..., C), unnormalized log probabilities.
      labels: integer array of the shape of `logits` without `axis`.
      gamma: γ >= 0, how fast the weight falls.
      class_weights: one weight per class, shape (C,).
      axis: the class dimension, or a tuple of them, over which a label is a flat index.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example in which nothing takes part has loss
        and gradient 0, whatever it holds.

    Returns:
      One loss per example, in the shape of `labels`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point or `labels` not integer.
      ValueError: the shapes or `axis` do not fit, or `gamma` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> losses = jaxloss.softmax_focal_loss_with_integer_labels(logits, jnp.array([0, 1]))
      >>> jnp.set_printoptions(precision=4)
      >>> print(losses)
      [0.0161 2.6514]

    Source: Lin et al., Focal loss for dense object detection, arXiv:1708.02002.
    """
    (logits,) = checks.arrays(logits=logits)
    classes = ClassAxes.of(axis, logits, "logits")
    where = checks.mask(where, "logits", logits)
    found = find(labels, logits, classes, where, names=("logits", "labels"))
    gamma = checks.number("gamma", gamma, logits)
    surprise = losses_of_labels(logits, found, where, Terms(None, None, None), classes)
    losses = _focal(surprise, gamma)
    if class_weights is None:
        return losses
    return elementwise.product(label_weights(class_weights, logits, found, classes), losses)


@jax.custom_jvp
def _focal(surprise: jax.Array, gamma: jax.Array) -> jax.Array:
    """n (1 - exp(-n))^γ"""
    return surprise * _power_of_wrong(surprise, gamma)


@_focal.defjvp
def _focal_jvp(primals, tangents):
    # Autodiff has an infinite slope of the power at a surprise of 0, where γ is below 1.
    surprise, gamma = primals
    certain = surprise == 0
    n = jnp.where(certain, 1, surprise)
    turn = _turn(surprise)
    power = _power_of_wrong(surprise, gamma)
    by_gamma = jnp.where(certain, 0, n * power * jnp.log(-jnp.expm1(-n)))
    by_gamma = jnp.where(jnp.isinf(n), 0, by_gamma)
    tangent = power * (1 + gamma * turn) * tangents[0] + by_gamma * tangents[1]
    return _focal(*primals), tangent


def _turn(n: jax.Array) -> jax.Array:
    """n / (exp(n) - 1), without inf / inf; by its series where derivatives divide by n²."""
    near = n < 0.1
    square = jnp.square(jnp.where(near, n, 0))
    series = 1 - jnp.where(near, n, 0) / 2 + square / 12 * (1 - square / 60 * (1 - square / 42))
    far = jnp.where(near, 1, n)
    return jnp.where(near, series, elementwise.product(jnp.exp(-far), far) / -jnp.expm1(-far))


def _power_of_wrong(surprise: jax.Array, gamma: jax.Array) -> jax.Array:
    certain = surprise == 0
    wrong = -jnp.expm1(-jnp.where(certain, 1, surprise))
    return jnp.where(certain, jnp.where(gamma == 0, 1, 0), jnp.exp(gamma * jnp.log(wrong)))


@public(static=("axis",))
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Poly loss: cross entropy whose first term, 1 - p, counts 1 + ε times.

    loss = Σ_c labels_c (-log p_c + ε (1 - p_c)), with p the softmax of `logits`.

    Shift-invariant, and accurate where the model is confident. A logit of -inf is a class of
    probability 0: with a positive label the loss is +inf, with label 0 the class adds 0.

    Args:
      logits: floating-point array (..., C), unnormalized log probabilities.
      labels: class probabilities in the same shape.
      epsilon: ε, at least -1 as a rule; the paper uses 2 for ImageNet and -1 for detection.
      axis: the class dimension or dimensions; None for all.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example in which nothing takes part has loss
        and gradient 0, whatever it holds.

    Returns:
      One loss per example, in the shape of `logits` without `axis`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
      >>> jnp.set_printoptions(precision=4)
      >>> print(jaxloss.poly_loss_cross_entropy(logits, labels))
      [0.7587 3.2284]

    Source: Leng et al., PolyLoss, arXiv:2204.12511.
    """
    logits, labels = checks.arrays(logits=logits, labels=labels)
    checks.same_shape(logits=logits, labels=labels)
    classes = ClassAxes.of(axis, logits, "logits")
    classes.require(logits, "logits")
    where = checks.mask(where, "logits", logits)
    checks.require((labels >= 0) & (labels <= 1), "labels", "be probabilities in [0, 1]", where)
    epsilon = checks.number("epsilon", epsilon, logits)
    labels = elementwise.masked(where, labels)
    terms = Terms(None, None, None, epsilon=epsilon)
    return losses_of_probabilities(logits, labels, where, terms, classes)


@public(static=("axis",))
def safe_softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross entropy where logits may be -inf: another name for `softmax_cross_entropy`.

    loss = Σ_c labels_c (lse - logits_c), lse = log Σ_c exp(logits_c).

    A logit of -inf is a class of probability 0: with label 0 it adds 0, with a positive label the
    loss is +inf. The gradient is finite in both cases, in forward and reverse mode.

    Args:
      logits: floating-point array (..., C), unnormalized log probabilities.
      labels: class probabilities in the same shape.
      axis: the class dimension or dimensions; None for all.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example in which nothing takes part has loss
        and gradient 0, whatever it holds.

    Returns:
      One loss per example, in the shape of `logits` without `axis`; at least float32.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits, labels = jnp.array([[1.0, 1.0, -jnp.inf]]), jnp.array([[0.5, 0.5, 0.0]])
      >>> print(jaxloss.safe_softmax_cross_entropy(logits, labels).round(4))
      [0.6931]

    Source: as `softmax_cross_entropy_with_integer_labels`.
    """
    return softmax_cross_entropy(logits, labels, axis=axis, where=where)
