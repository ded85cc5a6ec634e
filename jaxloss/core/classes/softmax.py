"""Softmax probabilities p, and 1 - p, each or summed over the classes, without cancelling."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import xla
from jaxloss.core.classes.axes import ClassAxes


def softmax(
    logits: jax.Array, where: jax.Array | None, classes: ClassAxes
) -> tuple[jax.Array, jax.Array]:
    """p and 1 - p of every class; p is 0 for a class that `where` excludes, and so is 1 - p."""
    if where is not None:
        logits = jnp.where(where, logits, -jnp.inf)
    peak = classes.max(lax.stop_gradient(logits))
    peak = jnp.maximum(peak, jnp.finfo(peak.dtype).min)
    p, others = softmax_of(logits, peak, classes)
    return p, others if where is None else jnp.where(where, others, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_of(logits, peak, classes):
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


@softmax_of.defjvp
def _softmax_of_jvp(classes, primals, tangents):
    def along(primals, x):
        # A class of probability 0 may be -inf, and move infinitely far.
        return _moved(classes, primals, jnp.where(primals[0] == -jnp.inf, 0, x))

    back = functools.partial(_moved, classes)
    p_dot = xla.linear(along, back, primals, tangents[0], primals[0])
    return softmax_of(*primals, classes), (p_dot, -p_dot)


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
