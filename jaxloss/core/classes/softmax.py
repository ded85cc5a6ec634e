"""Softmax probabilities p, each with a 1 - p that does not cancel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.classes.axes import ClassAxes


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
