"""Divergences between a teacher's softmax and a student's, from the logits of both."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxloss._base import elementwise, xla
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.capping import Given
from jaxloss.core.classes.peak import Softmax, prepared
from jaxloss.core.divergence import exp_beyond_line


def divergence_of(
    logits: jax.Array,
    teacher_logits: jax.Array,
    where: jax.Array | None,
    temperature: jax.Array | None,
    beta: float,
    softcap: jax.Array | None,
    classes: ClassAxes,
) -> jax.Array:
    """The generalized Jensen-Shannon divergence of teacher P and student Q, one per example.

    β KL(P ‖ M) + (1 - β) KL(Q ‖ M) with M = β P + (1 - β) Q; KL(P ‖ Q) at β = 0, KL(Q ‖ P) at 1.

    Never below 0, and accurate where both nearly agree. A class at -inf in both is absent. A class
    at -inf only in Q makes KL(P ‖ Q) infinite, with the student's gradient q - p.

    Args:
      logits: the student's, floating-point of any width.
      teacher_logits: in the same shape and dtype.
      where: boolean of the rank of the logits, or None: the examples, or their classes.
      temperature: a number in the dtype that the logits are widened to, or None for 1.
      beta: a Python number in [0, 1].
      softcap: as `temperature`; None for none.
      classes: where the classes are, and over which mesh axes they are spread.
    """
    if beta == 1:
        logits, teacher_logits, beta = teacher_logits, logits, 0.0
    both = (Given(x, where, softcap, temperature) for x in (logits, teacher_logits))
    parts = zip(*(prepared(given, classes) for given in both), strict=True)
    given, scores, peaks, (present, _) = parts
    found = _divergence(*scores, given, peaks, present, beta, classes)
    return classes.squeeze(jnp.where(present, found, 0))


@functools.partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _divergence(scores, teacher_scores, given, peaks, present, beta, classes):
    return _value_and_slopes((scores, teacher_scores), peaks, present, beta, classes)[0]


def _divergence_jvp(beta, classes, primals, tangents):
    # Autodiff's p - q and p (log p - log q) cancel where both agree.
    *both, given, peaks, present = primals
    again = [one.scores_again(x, classes) for one, x in zip(given, both, strict=True)]
    _, slopes = _value_and_slopes(again, peaks, present, beta, classes)
    slopes = (xla.filled(present, slope, 0) for slope in slopes)
    tangent = elementwise.along(both[0], *zip(slopes, tangents[:2], strict=True))
    return _divergence(*primals, beta, classes), classes.sum(tangent)


_divergence.defjvp(_divergence_jvp, symbolic_zeros=True)


def _value_and_slopes(both, peaks, present, beta, classes):
    """The divergence for β below 1, and its derivatives in the student's and the teacher's scores.

    A divergence is a sum of terms t (r - 1 - log r), each 0 or more, with r the ratio of the two
    probabilities of a class. What this adds to Σ t log (1 / r) sums to 0.
    """
    of_student, of_teacher = (
        Softmax.of(*one, present, classes) for one in zip(both, peaks, strict=True)
    )
    q, p = of_student.p, of_teacher.p
    in_q, in_p = (~present | (scores != -jnp.inf) for scores in both)
    # Of the normalizers alone, and of the scores alone, so that what both share cancels exactly.
    log_ratio = of_student.below - of_teacher.below - (of_student.log_sum - of_teacher.log_sum)
    log_ratio = xla.filled(in_p & in_q, log_ratio, 0)
    if beta == 0:
        is_lost = in_p & ~in_q
        terms = xla.filled(~is_lost, _terms(p, q, log_ratio, in_p), jnp.inf)
        total = classes.sum(terms)
        # An infinite divergence has none: with one, the temperature's would be inf - inf.
        by_teacher = elementwise.product(p, xla.filled(total != jnp.inf, -log_ratio - total, 0))
        is_close = in_p & in_q & (jnp.abs(log_ratio) < 1)
        gain = p * jnp.expm1(xla.filled(is_close, log_ratio, 0))  # Of q - p what is close cancels.
        return total, (jnp.where(is_close, gain, q - p), by_teacher)
    mixture = beta * p + (1 - beta) * q
    slopes, totals = [], []
    shares = (1 - beta, q, in_q, in_p, -log_ratio), (beta, p, in_p, in_q, log_ratio)
    for share, own, is_own, is_others, to_other in shares:
        # Where the other one has nothing, the mixture has this share of its own.
        to_mixture = xla.filled(is_others, _log_mixture(to_other, share), math.log(share))
        total = classes.sum(_terms(own, mixture, to_mixture, is_own))
        slopes.append(-share * own * (to_mixture + total))
        totals.append(share * total)
    return sum(totals), tuple(slopes)


def _terms(p, q, log_ratio, in_p):
    """p (r - 1 - log r) for r = q / p; q where p has nothing."""
    is_far = log_ratio > 1  # exp may overflow where p is 0.
    near = p * exp_beyond_line(xla.filled(~is_far, log_ratio, 0))
    terms = jnp.where(is_far, q - p * (1 + log_ratio), near)
    return jnp.where(in_p, terms, q)


def _log_mixture(log_ratio, share):
    """log (share + (1 - share) exp(log_ratio)), accurate near 0."""
    is_up = log_ratio > 0  # The greater one is taken out.
    below = jnp.where(is_up, -log_ratio, log_ratio)
    own = jnp.where(is_up, jnp.asarray(1 - share, below.dtype), share)
    other = jnp.where(is_up, jnp.asarray(share, below.dtype), 1 - share)
    less = other * jnp.expm1(below)
    is_near = less > -0.5
    near = jnp.log1p(xla.filled(is_near, less, 0))
    far = jnp.logaddexp(jnp.log(own), jnp.log(other) + below)
    return jnp.where(is_near, near, far) + jnp.where(is_up, log_ratio, 0)
