"""Cross entropy of class probabilities and its gradient, with the term of the poly loss.

Both are accurate where one class has almost all of the probability p.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._base import elementwise, meshes, xla
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.capping import Given
from jaxloss.core.classes.peak import (
    below_and_exp,
    less_at_peak,
    log_of_sums,
    others_of,
    replaced,
)
from jaxloss.core.classes.softmax import softmax_of


def losses_and_log_sum(
    logits: jax.Array,
    labels: jax.Array,
    epsilon: jax.Array | None,
    given: Given,
    peak: jax.Array,
    present: jax.Array,
    classes: ClassAxes,
) -> tuple[jax.Array, jax.Array]:
    """Σ_c labels_c (lse - logits_c + ε (1 - p_c)), and log Σ exp(logits - peak).

    Without ε the first term alone. `given`, `peak` and `present` are those of `prepared`.
    """
    both = logits, labels  # A derivative varies over the devices over which either does.
    logits, labels, peak, present = meshes.varying((*both, peak, present), both)
    losses, log_sum, _ = _cross_entropy(
        logits, labels, epsilon, given, peak, present, False, classes
    )
    return losses, log_sum


@functools.partial(jax.custom_jvp, nondiff_argnums=(6, 7))
def _cross_entropy(logits, labels, epsilon, given, peak, present, with_gradient, classes):
    """Also the gradient by the logits, if asked, from the same sums, which one reading takes."""
    below, exps = below_and_exp(logits, peak, present)
    large = lax.stop_gradient(jnp.round(exps))  # 1 near the peak, as in `others_of`.

    def shares(x):
        near_peak = x * large
        return near_peak, x - near_peak

    distances = labels * xla.filled(present & (labels != 0), -below, 0)
    most = float(jnp.finfo(distances.dtype).max)
    near = jnp.clip(distances, -most, most) * large  # An infinite one is not near.
    hits = () if epsilon is None else shares(labels * exps)
    parts = exps, others_of(exps), near, distances - near, *shares(labels), *hits
    sums = map(classes.psum, xla.sums_at_once(parts, classes.axes))
    total, others, near, far, at_peak, of_others, *hits = map(classes.squeeze, sums)
    log_sum, alone = log_of_sums(total, others)
    scale, less = jnp.exp(-log_sum), jnp.expm1(-log_sum)  # p, and p - 1, of a class at the peak.
    mass = at_peak + of_others
    distance = far + less_at_peak(near, alone, 0)  # Alone at the peak, a class is at none.
    losses = distance + elementwise.product(mass, log_sum)
    if epsilon is not None:
        hits_at_peak, hits_of_others = (scale * x for x in hits)
        hits = hits_at_peak + hits_of_others
        apart = (of_others - hits_of_others) - at_peak * less
        losses = losses + epsilon * replaced(mass - hits, alone, apart)
        at_peak = at_peak + epsilon * hits_at_peak
        of_others, mass = of_others + epsilon * hits_of_others, mass + epsilon * hits
    rows = losses, log_sum, scale, less, at_peak, of_others, mass, alone
    losses, log_sum, scale, less, at_peak, of_others, mass, alone = map(classes.expand, rows)
    if not with_gradient:
        return losses, log_sum, None
    _, exps = below_and_exp(given.scores_again(logits, classes), peak, present)
    p = scale * exps
    own = labels if epsilon is None else labels * (1 + epsilon * p)
    # Where p is almost 1, p Σ own - own is p times what the others have, less its own times 1 - p.
    of_peak = scale * of_others + less * at_peak
    gradient = replaced(p * mass - own, alone & (exps > 0.75), of_peak)
    return losses, log_sum, jnp.where(present, gradient, 0)


def _cross_entropy_jvp(with_gradient, classes, primals, tangents):
    logits, labels, epsilon, given, peak, present = primals
    losses, log_sum, gradient = _cross_entropy(*primals, True, classes)
    again = xla.filled(present, given.scores_again(logits, classes), 0)
    p, wrong = softmax_of(again, peak, classes)
    at_peak = p > 0.75
    # Without any p, where all logits are -inf, all is wrong.
    p, wrong = (jnp.where(present, x, 0) for x in (p, jnp.where(at_peak, wrong, 1 - p)))
    parts = log_parts = jnp.zeros_like(logits)
    if not isinstance(tangents[0], SymbolicZero):
        parts, log_parts = gradient * tangents[0], p * tangents[0]
    if not isinstance(tangents[1], SymbolicZero):
        of_peak = -jnp.log1p(-jnp.where(at_peak, wrong, 0))
        surprise = jnp.where(present, jnp.where(at_peak, of_peak, log_sum - (again - peak)), 0)
        slope = elementwise.silenced(labels, surprise)
        slope = slope if epsilon is None else slope + epsilon * wrong
        parts = parts + slope * tangents[1]
    if epsilon is not None and not isinstance(tangents[2], SymbolicZero):
        parts = parts + labels * wrong * tangents[2]
    dots = [classes.sum(x) for x in (parts, log_parts)]
    if not with_gradient:
        return (losses, log_sum, None), (*dots, None)

    def in_turn(logits, labels, epsilon):
        """The gradient; nothing cancels, not in derivatives either, but it takes three readings."""
        p, wrong = softmax_of(xla.filled(present, logits, 0), peak, classes)
        own = labels if epsilon is None else labels * (1 + epsilon * p)
        at_peak = p > 0.75
        of_others = classes.sum(jnp.where(at_peak, 0, own))
        of_peak = p * of_others - wrong * own
        return jnp.where(present, jnp.where(at_peak, of_peak, p * classes.sum(own) - own), 0)

    along = jax.tree.map(
        lambda x, x_dot: jnp.zeros_like(x) if isinstance(x_dot, SymbolicZero) else x_dot,
        *(primals[:3], tangents[:3]),
    )
    return (losses, log_sum, gradient), (*dots, jax.jvp(in_turn, primals[:3], along)[1])


_cross_entropy.defjvp(_cross_entropy_jvp, symbolic_zeros=True)
