"""Logits below the peak of each example, and the logarithm of the sum of their exponentials."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import checks, xla
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.capping import Given, capped


def prepared(given: Given, classes: ClassAxes) -> tuple[Given, jax.Array, jax.Array, jax.Array]:
    """What is given, the scores, each example's peak, and which examples take part.

    A peak is 0 where none is finite. It comes from that of the logits as they are, so that not all
    have to be capped for it. With a temperature it becomes the centre of what is given, so that the
    peak of the scores is 0.
    """
    logits, where = given.logits, given.where
    plain = given.masked(logits.astype(checks.wide(logits.dtype)), classes)
    peak = classes.max(lax.stop_gradient(plain))
    peak = lax.stop_gradient(capped(peak, given.softcap))
    present = xla.true_like(peak)
    if where is not None:
        present = classes.any(where)
    peak = jnp.where(present & (peak > -jnp.inf), peak, 0)
    if given.temperature is not None:
        given, peak = given._replace(centre=peak), jnp.zeros_like(peak)
    return given, given.scores(classes), peak, present


def below_and_exp(
    logits: jax.Array, peak: jax.Array, present: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """logits - peak, which is about 0 in examples that take no part, and its exponential."""
    below = xla.filled(present, logits, 0) - peak
    return below, jnp.exp(below)


def others_of(exps: jax.Array) -> jax.Array:
    """The exponentials, but 0 for a class that is alone at the peak."""
    # XLA may round a logit differently wherever it reads it, so that none need equal the peak, nor
    # any of these be 1. The others are those below 0.5; a selection would be stored on a CPU.
    return exps - lax.stop_gradient(exps * jnp.round(exps))


def log_of_sums(total: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log Σ exp(logits - peak), and whether one class is alone at the peak, for each example.

    Given are the sums of all exponentials and of the others. A class alone at the peak adds exactly
    1: left to log1p, it does not swallow what the others add.
    """
    # Two of 0.5 or more, one of them the peak, add at least 1.5. A large total needs no log1p.
    alone = (jnp.abs(total - others - 1) < 0.25) & (total < 8)
    log_total = jnp.log(jnp.where(total == 0, 1, total))
    return jnp.where(alone, jnp.log1p(others), log_total), alone


def less_at_peak(x: jax.Array, at_peak: jax.Array, otherwise: float) -> jax.Array:
    """x - otherwise, but exactly 0 at the peak, with the derivative of x."""
    return x - jnp.where(at_peak, lax.stop_gradient(x), otherwise)


def replaced(x: jax.Array, where: jax.Array, value: jax.Array) -> jax.Array:
    """x, but `value` where x cancels, with the derivative of x, which does not."""
    return less_at_peak(x, where, 0) + lax.stop_gradient(jnp.where(where, value, 0))


class Softmax(NamedTuple):
    """A softmax, as far below its peak as each class is."""

    below: jax.Array  # scores - peak; exactly 0 at a class alone at the peak, and where it is -inf.
    p: jax.Array
    log_sum: jax.Array  # log Σ exp(scores - peak)
    alone: jax.Array  # Whether one class is alone at the peak,
    at_peak: jax.Array  # and which.

    @classmethod
    def of(
        cls, scores: jax.Array, peak: jax.Array, present: jax.Array, classes: ClassAxes
    ) -> Softmax:
        """That of what `prepared` gives."""
        below, exps = below_and_exp(scores, peak, present)
        sums = classes.sum(exps), classes.sum(others_of(exps))
        log_sum, alone = map(classes.expand, log_of_sums(*map(classes.squeeze, sums)))
        return cls._of(below, exps, log_sum, alone)

    @classmethod
    def with_distance(
        cls, scores: jax.Array, peak: jax.Array, present: jax.Array, classes: ClassAxes
    ) -> tuple[Softmax, jax.Array]:
        """And Σ p (peak - scores): how far, on average, a class is below the most likely one."""
        below, exps = below_and_exp(scores, peak, present)
        near = below > -0.25
        weighed = exps * xla.filled(below > -jnp.inf, -below, 0)
        parts = exps, others_of(exps), xla.filled(near, weighed, 0), xla.filled(~near, weighed, 0)
        sums = map(classes.psum, xla.sums_at_once(parts, classes.axes))
        total, others, of_near, of_far = map(classes.squeeze, sums)
        log_sum, alone = log_of_sums(total, others)
        # What a class alone at the peak is below that is rounding, but has a derivative.
        of_near = less_at_peak(of_near, alone, 0)
        distance = jnp.exp(-log_sum) * (of_far + of_near)
        distance, log_sum, alone = map(classes.expand, (distance, log_sum, alone))
        again = xla.recomputed_difference(scores, peak)
        return cls._of(jnp.where(present, again, 0), exps, log_sum, alone), distance

    @classmethod
    def _of(
        cls, below: jax.Array, exps: jax.Array, log_sum: jax.Array, alone: jax.Array
    ) -> Softmax:
        at_peak = alone & (below > -0.25)
        below = less_at_peak(xla.filled(below > -jnp.inf, below, 0), at_peak, 0)
        return cls(below, exps * jnp.exp(-log_sum), log_sum, alone, at_peak)
