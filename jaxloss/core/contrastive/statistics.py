"""What is summed over the pairs of an example: in parts that merge, with its derivative.

The parts are a peak and a total, both 0 before anything is summed, so that blocks of pairs can be
merged in any order, on any device.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import elementwise, xla


class Parts(NamedTuple):
    """total · exp(peak) of a log-sum; of a plain sum the total alone."""

    peak: jax.Array
    total: jax.Array


def merged(one: Parts, other: Parts) -> Parts:
    """The parts of both sets of pairs together."""
    low = lowest(one.peak.dtype)
    peaks = [jnp.where(parts.total == 0, low, parts.peak) for parts in (one, other)]
    peak = jnp.maximum(*peaks)
    totals = (p.total * jnp.exp(x - peak) for p, x in zip((one, other), peaks, strict=True))
    return Parts(peak, sum(totals, start=jnp.zeros_like(peak)))


def lowest(dtype: jnp.dtype) -> float:
    """What stands for the log-sum of no pairs: infinities would make NaN of each other."""
    return float(jnp.finfo(dtype).min)


def exp_below(x: jax.Array) -> jax.Array:
    """exp(x) for x below 0, as a term less the logarithm of its sum is; 1 above, never infinity.

    x may come out above 0 where another product has rounded the similarities differently, by much
    if the temperature is low.
    """
    return jnp.exp(x - lax.stop_gradient(jnp.maximum(x, 0)))


class LogSum:
    """log Σ exp z; `lowest` where there is no pair."""

    @staticmethod
    def parts(z: jax.Array, mask: jax.Array, axis: int) -> Parts:
        # XLA stores a selection before it sums it, so that there is only one. What is absent lies
        # so far below any peak that its exponential is 0.
        low = lowest(z.dtype)
        z = jnp.where(mask, z, low)
        peak = jnp.max(z, axis, keepdims=True, initial=low / 2)
        return Parts(jnp.squeeze(peak, axis), jnp.sum(jnp.exp(z - peak), axis))

    @staticmethod
    def value(parts: Parts) -> jax.Array:
        none = parts.total == 0
        found = parts.peak + jnp.log(jnp.where(none, 1, parts.total))
        return jnp.where(none, lowest(found.dtype), found)

    @staticmethod
    def slope(z: jax.Array, mask: jax.Array, value: jax.Array) -> jax.Array:
        # Masked before the exponential, which has derivatives of its own.
        return exp_below(xla.filled(mask, z - value, -jnp.inf))


class _PlainSum:
    @staticmethod
    def value(parts: Parts) -> jax.Array:
        return parts.total


def _plain(terms: jax.Array, mask: jax.Array, axis: int) -> Parts:
    total = jnp.sum(jnp.where(mask, terms, 0), axis)
    return Parts(jnp.zeros_like(total), total)


class Sum(_PlainSum):
    """Σ z."""

    @staticmethod
    def parts(z: jax.Array, mask: jax.Array, axis: int) -> Parts:
        return _plain(z, mask, axis)

    @staticmethod
    def slope(z: jax.Array, mask: jax.Array, value: jax.Array) -> jax.Array:
        return mask.astype(z.dtype)


class Count(_PlainSum):
    """How many pairs there are."""

    @staticmethod
    def parts(z: jax.Array, mask: jax.Array, axis: int) -> Parts:
        return _plain(jnp.ones_like(z), mask, axis)

    @staticmethod
    def slope(z: jax.Array, mask: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.zeros_like(z)


class SoftplusSum(_PlainSum):
    """Σ log(1 + exp z)."""

    @staticmethod
    def parts(z: jax.Array, mask: jax.Array, axis: int) -> Parts:
        return _plain(elementwise.softplus(z), mask, axis)

    @staticmethod
    def slope(z: jax.Array, mask: jax.Array, value: jax.Array) -> jax.Array:
        return xla.filled(mask, lax.logistic(z), 0)
