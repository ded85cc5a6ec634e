"""Softmax probabilities p, and 1 - p, each or summed over the classes, without cancelling."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._base import xla
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.capping import Given
from jaxloss.core.classes.peak import below_and_exp, less_at_peak, log_of_sum, prepared


def softmax(
    logits: jax.Array, where: jax.Array | None, classes: ClassAxes
) -> tuple[jax.Array, jax.Array]:
    """p and 1 - p of every class; p is 0 for a class that `where` excludes, and so is 1 - p."""
    if where is not None:
        logits = jnp.where(where, logits, -jnp.inf)
    peak = classes.max(lax.stop_gradient(logits))
    p, others = _softmax(logits, jnp.where(peak > -jnp.inf, peak, 0), classes)
    return p, others if where is None else jnp.where(where, others, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _softmax(logits, peak, classes):
    p, others, _ = _parts(logits, peak, classes)
    return p, others


def _parts(logits, peak, classes):
    """p, 1 - p, and which class is above all others together, if one is."""
    exps = jnp.exp(logits - peak)
    # XLA may round a logit differently wherever it reads it, so that none need equal the peak: the
    # large ones are those above 0.5, of which the peak is the only one or they add at least 1.5.
    is_large = exps > 0.5
    large = classes.sum(jnp.where(is_large, exps, 0))
    small = classes.sum(jnp.where(is_large, 0, exps))
    above = is_large & (large < 1.25)
    total = large + small
    inverse = 1 / jnp.where(total == 0, 1, total)
    return exps * inverse, jnp.where(above, small, total - exps) * inverse, above


@_softmax.defjvp
def _softmax_jvp(classes, primals, tangents):
    # The usual p (ẋ - Σ p ẋ) cancels at a class that has almost all of the probability.
    logits, peak = primals
    p, others, above = _parts(logits, peak, classes)
    moved = jnp.where(p == 0, 0, p * tangents[0])  # A class of probability 0 may be -inf.
    rest = classes.sum(jnp.where(above, 0, moved))
    by_others = jnp.where(above, rest, rest - moved + classes.sum(jnp.where(above, moved, 0)))
    p_dot = others * moved - p * by_others
    return (p, others), (p_dot, -p_dot)


def missed(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, classes: ClassAxes
) -> jax.Array:
    """Σ_c labels_c (1 - p_c) of each example, accurate down to 0; `labels` are 0 where masked."""
    _, logits, peak, present = prepared(Given(logits, where), classes)
    return classes.squeeze(_missed(logits, labels, peak, present, classes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _missed(logits, labels, peak, present, classes):
    """It is made of sums that need no other sum first, so that one reading takes them all."""
    _, exps = below_and_exp(logits, peak, present)
    log_sum, alone = log_of_sum(exps, classes)
    (at_peak, others), (exps_at_peak, exps_of_others) = _shares(labels, exps, alone, classes)
    p = jnp.exp(-log_sum)  # Of a class that is alone at the peak.
    apart = (others - exps_of_others * p) - at_peak * jnp.expm1(-log_sum)
    together = (at_peak + others) - (exps_at_peak + exps_of_others) * p
    return jnp.where(alone, apart, together)


def _shares(labels, exps, alone, classes):
    """Σ labels_c and Σ labels_c exps_c, each of what is near the peak and of the other classes.

    A class alone at the peak has an exponential of exactly 1, with its derivative.
    """
    large = lax.stop_gradient(jnp.round(exps))  # As in `others_of`.
    at_peak, exps_at_peak = (classes.sum(labels * x) for x in (large, exps * large))
    parts = labels * (1 - large), labels * exps * (1 - large)
    others, exps_of_others = map(classes.psum, xla.sums(*parts, classes.axes))
    exact = lax.stop_gradient(at_peak) + less_at_peak(exps_at_peak, alone, 0)
    return (at_peak, others), (jnp.where(alone, exact, exps_at_peak), exps_of_others)


def _missed_jvp(classes, primals, tangents):
    # Autodiff's labels_c - Σ labels p cancels where the model is confident; labels_c (1 - p_c) and
    # what the other labels add are taken apart instead.
    logits, labels, peak, present = primals
    missed = _missed(*primals, classes)
    _, exps = below_and_exp(logits, peak, present)
    log_sum, alone = log_of_sum(exps, classes)
    _, (of_peak, of_others) = _shares(labels, exps, alone, classes)
    at_peak = alone & (exps > 0.75)
    less, scale = less_at_peak(exps, at_peak, 1), jnp.exp(-log_sum)
    exps = jnp.where(at_peak, 1 + less, exps)
    p_minus_1 = jnp.expm1(-log_sum) + scale * less
    parts = jnp.zeros_like(logits)
    if not isinstance(tangents[0], SymbolicZero):
        own = labels * exps
        others = of_others + jnp.where(at_peak, 0, of_peak - own)
        gradient = scale * exps * (labels * p_minus_1 + scale * others)
        parts = jnp.where(present, gradient, 0) * tangents[0]
    if not isinstance(tangents[1], SymbolicZero):
        parts = parts - jnp.where(present, p_minus_1, 0) * tangents[1]
    return missed, classes.sum(parts)


_missed.defjvp(_missed_jvp, symbolic_zeros=True)
