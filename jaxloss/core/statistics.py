"""What a softmax says about labels and about itself: log-probabilities, normalizer, entropy."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import AxisName, ClassAxes
from jaxloss.core.classes.capping import Given, tempered
from jaxloss.core.classes.choices import Choices, at_choices, choose
from jaxloss.core.classes.labels import examples_shape
from jaxloss.core.classes.peak import Softmax, less_at_peak, prepared
from jaxloss.core.cross_entropy import factor


class Statistics(NamedTuple):
    """What `softmax_statistics` returns for each example.

    Args:
      log_prob: the logarithm of the probability of the label, or of each of several, (..., K).
      log_normalizer: log Σ_c exp(z_c), with z the logits after soft cap and temperature.
      entropy: -Σ_c p_c log p_c, 0 or more.
      prediction: the most likely class, the lowest if several tie; -1 where nothing takes part.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> found = jaxloss.softmax_statistics(jnp.zeros((1, 2)), jnp.array([1]))
      >>> print(found.prediction)
      [0]

    Source: as `softmax_statistics`.
    """

    log_prob: jax.Array
    log_normalizer: jax.Array
    entropy: jax.Array
    prediction: jax.Array


@public(
    static=("axis", "axis_name"),
    labels=("labels",),
    domain={"temperature": checks.POSITIVE, "softcap": checks.POSITIVE},
    absent_at_default=("temperature",),
)
def softmax_statistics(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Statistics:
    """What a softmax says about labels and about itself: log-probabilities, entropy and more.

    log_prob = z_y - lse, log_normalizer = lse = log Σ_c exp(z_c), entropy = -Σ_c p_c log p_c with
    p = exp(z - lse), prediction = argmax_c z_c, z = softcap·tanh(logits / softcap) / temperature.

    -log_prob is the cross entropy. Perplexity is `exp(-mean(log_prob))`, accuracy
    `mean(prediction == labels)`, the z-loss `square(log_normalizer)`. In compiled code, results
    that are not used cost nothing. All but the prediction are differentiable.

    Log-probability, entropy and their gradients are accurate where the model is confident. A class
    at -inf has probability 0 and adds nothing to the entropy; its log_prob is -inf, and its
    gradient finite. With a soft cap, -inf becomes -softcap. A label outside [0, C), negative ones
    included, or whose class `where` excludes, gives NaN in its own log_prob, and in the gradient
    that its example gets through log_prob; the other results do not depend on the labels.

    Args:
      logits: floating-point array (..., C), unnormalized log probabilities.
      labels: integer array in the shape of `logits` without `axis`, or with another dimension at
        the end, (..., K), for several classes of each example.
      axis: the class dimension, or a tuple of them, over which labels and `prediction` are flat
        indices.
      where: boolean, of the rank of `logits` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. An example in which nothing takes part has the
        prediction -1, and 0 in all other results, with gradient 0, whatever it holds.
      temperature: a positive number to divide the logits by.
      softcap: a positive bound on the logits, which are capped before anything else; None for no
        bound.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; labels
        and `prediction` are then global class indices.

    Returns:
      `Statistics`, a named tuple: `log_prob` in the shape of `labels`, `log_normalizer` and
      `entropy` in that of the examples, all at least float32; `prediction` in the shape of the
      examples, int32, or int64 if `labels` are.

    Raises:
      TypeError: `logits` is not floating-point or `labels` not integer.
      ValueError: shapes or `axis` do not fit, or `temperature` or `softcap` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> found = jaxloss.softmax_statistics(logits, jnp.array([0, 1]))
      >>> print(found.log_prob, found.entropy, found.prediction)
      [-0.2761 -2.9518] [0.7171 0.8573] [0 2]

    Source: Shannon, A mathematical theory of communication (1948); as
    `softmax_cross_entropy_with_integer_labels`.
    """
    (logits,) = checks.operands(logits=logits)
    classes = ClassAxes.of(axis, logits, "logits", axis_name)
    examples = examples_shape(logits, classes, "logits")
    where = checks.mask(where, "logits", logits)
    several = jnp.shape(labels)[len(examples) :][:1]
    labels = checks.labels("labels", labels, examples + several)
    chosen = choose(labels, logits, classes, where)
    rule = f"be a class in [0, {classes.size(logits)}) that takes part"
    checks.require(~chosen.bad, "labels", rule)
    numbers = (
        factor("temperature", temperature, logits, absent=1),
        factor("softcap", softcap, logits, absent=None),
    )
    return statistics_of(logits, chosen, where, *numbers, classes)


def statistics_of(
    logits: jax.Array,
    chosen: Choices,
    where: jax.Array | None,
    temperature: jax.Array | None,
    softcap: jax.Array | None,
    classes: ClassAxes,
) -> Statistics:
    """`softmax_statistics` of what is checked.

    Args:
      logits: floating-point of any width; halves are widened at each reading.
      chosen: `choices.choose(labels, logits, classes, where)`.
      where: boolean of the rank of the logits, or None.
      temperature: a number in the dtype that the logits are widened to, or None for 1.
      softcap: likewise; None for none.
      classes: where the classes are, and over which mesh axes they are spread.
    """
    given = Given(logits, where, softcap, temperature)
    given, scores, peak, present = prepared(given, classes)
    labels = chosen.place, chosen.bad
    log_prob, log_sum, entropy = _statistics(scores, given, peak, present, *labels, classes)
    is_present = classes.squeeze(present)
    if temperature is not None and given.centre is not None:
        peak = tempered(given.centre, temperature)
    log_normalizer = classes.squeeze(peak + log_sum)
    found = (
        jnp.where(is_present[..., None], log_prob, 0),
        jnp.where(is_present, log_normalizer, 0),
        jnp.where(is_present, classes.squeeze(entropy), 0),
    )
    prediction = classes.index_of_largest(lax.stop_gradient(scores), chosen.place.dtype)
    prediction = jnp.where(is_present, prediction, -1)
    return Statistics(found[0][..., 0] if chosen.is_one else found[0], *found[1:], prediction)


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def _statistics(scores, given, peak, present, place, bad, classes):
    """log p of the labels, (..., K); log Σ exp(scores - peak); the entropy."""
    found, distance = Softmax.with_distance(scores, peak, present, classes)
    log_prob, _ = _log_prob(given, peak, present, place, bad, found, classes)
    # One of 1 at least adds up, unless all are -inf.
    is_nothing = ~found.alone & (found.log_sum == 0)
    log_sum = jnp.where(is_nothing, -jnp.inf, found.log_sum)
    return log_prob, log_sum, found.log_sum + distance


def _log_prob(given, peak, present, place, bad, found, classes):
    """log p of each label, and where that is the class alone at the peak."""
    of_examples = peak, present, found.alone, found.log_sum
    peak, present, alone, log_sum = (classes.squeeze(x)[..., None] for x in of_examples)
    own = jnp.where(present, at_choices(given.logits, place, classes), 0)
    if given.centre is not None:
        given = given._replace(centre=classes.squeeze(given.centre)[..., None])
    own = given.scale(own) - peak
    is_peak = alone & (own > -0.25) & ~bad
    log_prob = less_at_peak(own, is_peak, 0) - log_sum
    return log_prob * xla.nan_where(bad, jnp.ones_like(log_prob)), is_peak


@_statistics.defjvp
def _statistics_jvp(classes, primals, tangents):
    # Autodiff's 1 - p at a label and p (log p + H) cancel where the model is confident.
    scores, given, peak, present, place, bad = primals
    values = _statistics(*primals, classes)
    scores = given.scores_again(scores, classes)
    found, distance = Softmax.with_distance(scores, peak, present, classes)
    log_prob, is_peak = _log_prob(given, peak, present, place, bad, found, classes)
    moved = jnp.where(present, found.p, 0) * tangents[0]
    surely, others = (
        classes.squeeze(classes.sum(xla.filled(here, moved, 0)))[..., None]
        for here in (found.at_peak, ~found.at_peak)
    )
    # A bad label's row is NaN, and that of the class alone at the peak has 1 - p of the others.
    factor = xla.nan_where(bad, jnp.ones_like(log_prob))
    left = jnp.where(is_peak, -jnp.expm1(jnp.where(is_peak, log_prob, 0)), 1)
    picked = at_choices(tangents[0], place, classes)
    log_prob_dot = factor * (left * picked - others - jnp.where(is_peak, 0, surely))
    # log p + H without the normalizer, which both have.
    above = found.below + distance
    return values, (log_prob_dot, classes.sum(moved), -classes.sum(above * moved))
