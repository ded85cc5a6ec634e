"""What rounding takes from sums and products: the building blocks of compensated arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def two_sum(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x + y, and exactly what rounding took from it."""
    total = x + y
    of_y = total - x
    return total, (x - (total - of_y)) + (y - of_y)


def product_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Exactly what rounding took from x * y."""
    x_high, y_high = _upper_half(x), _upper_half(y)
    x_low, y_low = x - x_high, y - y_high
    return ((x_high * y_high - x * y) + x_high * y_low + x_low * y_high) + x_low * y_low


def _upper_half(x: jax.Array) -> jax.Array:
    """x rounded to so few digits that the product of two such, or of two remainders, is exact."""
    info = jnp.finfo(x.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = lax.bitcast_convert_type(x, integer)
    # Of 53 digits one half is too long by one. The remainder of what is rounded to nearest, not cut
    # off, has its sign in place of that digit.
    width = (int(info.nmant) + 2) // 2
    bits = ((bits + (1 << (width - 1))) >> width) << width
    return lax.bitcast_convert_type(bits, x.dtype)


def long_sum(x: jax.Array, rest: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The sum over the last axis, and what rounding took from it, or had taken from the terms."""

    def add(so_far, term):
        total, lost = two_sum(so_far[0], term[0])
        return total, (so_far[1] + term[1]) + lost

    taken = jnp.zeros_like(x) if rest is None else lax.stop_gradient(rest)
    value, zero = lax.stop_gradient(x), jnp.zeros((), x.dtype)
    total, taken = lax.reduce((value, taken), (zero, zero), add, (x.ndim - 1,))
    # JAX differentiates no reduction of its user's; this adds 0 with the sum's derivative.
    return total + jnp.sum(x - value, -1), taken
