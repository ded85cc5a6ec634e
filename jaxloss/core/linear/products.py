"""The matrix products of linear losses: half operands as they are, sums in float32."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import checks
from jaxloss.core.linear.problem import How


def product(inputs: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """inputs @ kernel.T; of half operands, summed in float32."""
    return _dot(inputs, kernel, 1, how)


class Slope(NamedTuple):
    """The gradient of a product, as it goes through the two products behind it."""

    value: jax.Array
    # Of each example, that of its gradient where the value is a share of it.
    peak: jax.Array | None

    @classmethod
    def of(cls, gradient: jax.Array, operands: jax.Array, how: How) -> Slope:
        """The gradient, rounded to the dtype of the operands unless precision forbids."""
        if not how.rounds(operands):
            return cls(gradient, None)
        peak = None
        if _is_narrow(operands):
            # As a share of its peak float16 loses nothing of it.
            peak = jnp.max(jnp.abs(lax.stop_gradient(gradient)), -1, keepdims=True)
            gradient = gradient / _or_one(peak)
        return cls(gradient.astype(operands.dtype), peak)


def to_inputs(slope: Slope, kernel: jax.Array, how: How) -> jax.Array:
    """The gradient of the inputs; of half ones in float32 while it may have to be divided."""
    gradient = _dot(slope.value, kernel, 0, how)
    # What float16 cannot hold the mean may still divide.
    if slope.peak is not None:
        return gradient * _or_one(slope.peak)
    # Nor is it whole where devices share the classes.
    return gradient if _is_narrow(kernel) or how.axes else gradient.astype(kernel.dtype)


def add_to_kernel(so_far: jax.Array, slope: Slope, inputs: jax.Array, how: How) -> jax.Array:
    """The gradient of the kernel, with what these inputs add to it."""
    if slope.peak is None:
        return _add_product(so_far, slope.value, inputs, None, how)
    wide = so_far.dtype
    scale = jnp.max(slope.peak, initial=float(jnp.finfo(wide).tiny))
    inputs = (slope.peak / scale * inputs.astype(wide)).astype(inputs.dtype)
    return _add_product(so_far, slope.value, inputs, scale, how)


def _is_narrow(operands: jax.Array) -> bool:
    """Whether the dtype holds smaller powers than what is computed from it: float16."""
    return jnp.finfo(operands.dtype).maxexp < jnp.finfo(checks.wide(operands.dtype)).maxexp


def _or_one(peak: jax.Array) -> jax.Array:
    return jnp.where(peak == 0, 1, peak)


def _dot(x: jax.Array, y: jax.Array, axis: int, how: How) -> jax.Array:
    """The product over the last dimension of x and one of y, in float32 at least."""
    return _products(x, y, ((x.ndim - 1,), (axis,)), how)


def _products(x: jax.Array, y: jax.Array, contracting: tuple, how: How) -> jax.Array:
    return lax.dot_general(
        x,
        y,
        (contracting, ((), ())),
        precision=how.precision,
        preferred_element_type=checks.wide(x.dtype),
    )


def _add_product(
    so_far: jax.Array, slope: jax.Array, inputs: jax.Array, scale: jax.Array | None, how: How
) -> jax.Array:
    """so_far + slope.T @ inputs * scale, of float32 with no more besides than another `slope`."""
    *examples, features = inputs.shape
    size, leading = math.prod(examples), tuple(range(len(examples)))

    def add(so_far, inputs):
        product = _products(slope, inputs, (leading, leading), how)
        return so_far + (product if scale is None else scale * product)

    # Products of halves are for chips, which add in place.
    if size >= features or so_far.dtype != inputs.dtype:
        return add(so_far, inputs)
    width = max(1, size // 2)

    def of_features(start, width, so_far):
        old = lax.dynamic_slice_in_dim(so_far, start, width, 1)
        some = lax.dynamic_slice_in_dim(inputs, start, width, inputs.ndim - 1)
        return lax.dynamic_update_slice_in_dim(so_far, add(old, some), start, 1)

    whole, rest = divmod(features, width)
    so_far = lax.fori_loop(0, whole, lambda i, x: of_features(i * width, width, x), so_far)
    return of_features(whole * width, rest, so_far) if rest else so_far
