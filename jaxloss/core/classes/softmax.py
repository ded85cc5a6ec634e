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
    peak = jnp.maximum(peak, jnp.finfo(peak.dtype).min)
    p, others = _softmax(logits, peak, classes)
    return p, others if where is None else jnp.where(where, others, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _softmax(logits, peak, classes):
    p, others, *_ = _parts(logits, peak, classes)
    return p, others


def _parts(logits, peak, classes):
    """p, 1 - p, the p of all small classes together, and 1 for a class alone above them, or else 0.

    A small class is at most half as likely as the peak.
    """
    exps = jnp.exp(logits - peak)
    total, small = classes.sum(exps), classes.sum(exps - exps * jnp.round(exps))
    # The peak is the only large one, or they add at least 1.5.
    alone = 2 - jnp.minimum(jnp.round(total - small), 2)
    above = alone * jnp.round(exps - 0.25)
    inverse = 1 / jnp.maximum(total, 0.5)  # At least 1, unless all are -inf.
    others = ((1 - above) * (total - exps) + above * small) * inverse
    return exps * inverse, others, small * inverse, above


@_softmax.defjvp
def _softmax_jvp(classes, primals, tangents):
    def along(primals, x):
        # A class of probability 0 may be -inf, and move infinitely far.
        return _moved(classes, primals, jnp.where(primals[0] == -jnp.inf, 0, x))

    back = functools.partial(_moved, classes)
    p_dot = xla.linear(along, back, primals, tangents[0], primals[0])
    return _softmax(*primals, classes), (p_dot, -p_dot)


def _moved(classes, given, x):
    """By how much p moves along x, p (x - Σ p x): a linear map that is its own transpose.

    Written so, it cancels at a class that has almost all of the probability.
    """
    logits, peak = given

    # Relative to the x of the class that has almost all of p, only the others move it.
    def at_once(logits):
        p, _, small, above = _parts(logits, peak, classes)
        of_peak, of_small = classes.sum(above * x), classes.sum((1 - above) * p * x)
        return p * ((x - of_peak) - (of_small - small * of_peak))

    def in_turn(logits):
        exps = jnp.exp(logits - peak)
        p = exps / jnp.maximum(classes.sum(exps), 0.5)
        above = lax.stop_gradient(jnp.round(p))
        further = x - classes.sum(above * x)
        return p * (further - classes.sum(p * further))

    return xla.by_sums(at_once, in_turn, logits)


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
