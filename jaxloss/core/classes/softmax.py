"""Probabilities by softmax, each with what it leaves to the others, which does not cancel."""

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
    exps = jnp.exp(logits - peak)
    # XLA may round a logit differently wherever it reads it, so that none need equal the peak: the
    # large ones are those above 0.5, of which the peak is the only one or they add at least 1.5.
    is_large = exps > 0.5
    large = classes.sum(jnp.where(is_large, exps, 0))
    small = classes.sum(jnp.where(is_large, 0, exps))
    total = large + small
    inverse = 1 / jnp.where(total == 0, 1, total)
    others = jnp.where(is_large & (large < 1.25), small, total - exps)
    return exps * inverse, others * inverse


@_softmax.defjvp
def _softmax_jvp(classes, primals, tangents):
    # Autodiff would keep the exponentials beside the probabilities.
    p, others = _softmax(*primals, classes)
    # An impossible class may be -inf: what moves it moves nothing.
    moved = jnp.where(p == 0, 0, p * tangents[0])
    p_dot = moved - p * classes.sum(moved)
    return (p, others), (p_dot, -p_dot)
