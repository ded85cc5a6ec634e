"""The normalizer of logits, accurate where one symbol has almost all of the probability."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import xla


class Normalizer(NamedTuple):
    """log Σ exp(scores) over the last axis in two parts, the greatest score and the rest."""

    peak: jax.Array
    log_sum: jax.Array


@jax.custom_jvp
def normalizer(
    scores: jax.Array, present: jax.Array, symbol: jax.Array, score: jax.Array
) -> Normalizer:
    """The normalizer of scores (..., C), 0 where nothing is present.

    It is accurate where the one symbol given for each node, (...), has almost all of the
    probability; `score` is its score.
    """
    # One sum over plain arithmetic, masked afterwards, is what XLA turns into a fast loop on a CPU.
    peak = jnp.max(lax.stop_gradient(scores), -1)
    shape = (1,) * (scores.ndim - 1) + scores.shape[-1:]
    classes = xla.apart(lax.broadcasted_iota(scores.dtype, shape, scores.ndim - 1))
    other = jnp.minimum(jnp.abs(classes - symbol[..., None].astype(scores.dtype)), 1)
    others = jnp.sum(jnp.exp(scores - peak[..., None]) * other, -1)
    log_sum = jnp.log1p(others + jnp.expm1(score - peak))
    return Normalizer(jnp.where(present, peak, 0), jnp.where(present, log_sum, 0))


@normalizer.defjvp
def _normalizer_jvp(primals, tangents):
    # Autodiff would multiply the NaN in padding by 0.
    scores, present, _, _ = primals
    result = normalizer(*primals)
    tangent = jnp.sum(softmax(scores, present, result) * tangents[0], -1)
    return result, Normalizer(jnp.zeros_like(tangent), tangent)


def softmax(scores: jax.Array, present: jax.Array, normalizer: Normalizer) -> jax.Array:
    """The probabilities of all symbols, 0 where nothing is present."""
    log_probs = (scores - normalizer.peak[..., None]) - normalizer.log_sum[..., None]
    return jnp.exp(jnp.where(present[..., None], log_probs, -jnp.inf))
