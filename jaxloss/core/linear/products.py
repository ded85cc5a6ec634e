"""The matrix products of linear losses: half operands as they are, sums in float32."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike

from jaxloss._base import checks, meshes, xla


def product(inputs: jax.Array, kernel: jax.Array, precision: PrecisionLike) -> jax.Array:
    """inputs @ kernel.T; of half operands, summed in float32."""
    return _dot(inputs, kernel, 1, precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def product_as(
    inputs: jax.Array, kernel: jax.Array, dtype: jnp.dtype, precision: PrecisionLike
) -> jax.Array:
    """`product` of float32 operands, rounded to a half dtype; the derivatives stay in float32.

    So they can be summed over blocks and rounded once.
    """
    return product(inputs.astype(dtype), kernel.astype(dtype), precision)


@product_as.defjvp
def _product_as_jvp(dtype, precision, primals, tangents):
    found = product_as(*primals, dtype, precision)
    primals, tangents = meshes.varying((primals, tangents), found)

    def along(operands, dots):
        (x, kernel), (x_dot, kernel_dot) = operands, dots
        return product(x_dot, kernel, precision) + product(x, kernel_dot, precision)

    def gradients(operands, gradient):
        x, kernel = (operand.astype(dtype) for operand in operands)
        slope = Slope.of(gradient, x, precision)
        nothing = jnp.zeros_like(operands[1])
        return to_inputs(slope, kernel, precision), add_to_kernel(nothing, slope, x, precision)

    return found, xla.linear(along, gradients, primals, tangents, found)


def rounds(operands: jax.Array, precision: PrecisionLike) -> bool:
    """Whether what goes back through a product is rounded to the dtype of its operands."""
    if precision is None:
        # JAX defines its options at run time only.
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    asked = precision if isinstance(precision, tuple) else (precision,)
    exact = {"highest", "float32", lax.Precision.HIGHEST}
    return jnp.finfo(operands.dtype).bits < 32 and exact.isdisjoint(asked)


class Slope(NamedTuple):
    """The gradient of a product, as it goes through the two products behind it."""

    value: jax.Array
    # The largest magnitude of each example's gradient, if `value` is a share of that.
    peak: jax.Array | None

    @classmethod
    def of(cls, gradient: jax.Array, operands: jax.Array, precision: PrecisionLike) -> Slope:
        """The gradient, rounded to the dtype of the operands unless precision forbids."""
        if not rounds(operands, precision):
            return cls(gradient, None)
        peak = None
        if is_narrow(operands):
            # As a share of its peak float16 loses nothing of it.
            peak = jnp.max(jnp.abs(lax.stop_gradient(gradient)), -1, keepdims=True, initial=0)
            gradient = gradient / _or_one(peak)
        return cls(gradient.astype(operands.dtype), peak)


def to_inputs(slope: Slope, kernel: jax.Array, precision: PrecisionLike) -> jax.Array:
    """The gradient of the inputs, in float32 at least."""
    gradient = _dot(slope.value, kernel, 0, precision)
    return gradient if slope.peak is None else gradient * _or_one(slope.peak)


def add_to_kernel(
    so_far: jax.Array, slope: Slope, inputs: jax.Array, precision: PrecisionLike
) -> jax.Array:
    """The gradient of the kernel, with what these inputs add to it."""
    if slope.peak is None:
        return _add_product(so_far, slope.value, inputs, None, precision)
    wide = so_far.dtype
    scale = jnp.max(slope.peak, initial=float(jnp.finfo(wide).tiny))
    inputs = (slope.peak / scale * inputs.astype(wide)).astype(inputs.dtype)
    return _add_product(so_far, slope.value, inputs, scale, precision)


def product_of_slope(slope: Slope, inputs: jax.Array, precision: PrecisionLike) -> jax.Array:
    """What these inputs add to the gradient of the kernel."""
    nothing = jnp.zeros((), checks.wide(inputs.dtype))
    return add_to_kernel(nothing, slope, inputs, precision)


def is_narrow(operands: jax.Array) -> bool:
    """Whether the range of the dtype is smaller than that of its sums: float16."""
    return jnp.finfo(operands.dtype).maxexp < jnp.finfo(checks.wide(operands.dtype)).maxexp


def _or_one(peak: jax.Array) -> jax.Array:
    return jnp.where(peak == 0, 1, peak)


def _dot(x: jax.Array, y: jax.Array, axis: int, precision: PrecisionLike) -> jax.Array:
    """The product over the last dimension of x and one of y, in float32 at least."""
    return _products(x, y, ((x.ndim - 1,), (axis,)), precision)


def _products(
    x: jax.Array, y: jax.Array, contracting: tuple, precision: PrecisionLike
) -> jax.Array:
    return lax.dot_general(
        x,
        y,
        (contracting, ((), ())),
        precision=precision,
        preferred_element_type=checks.wide(x.dtype),
    )


def _add_product(
    so_far: jax.Array,
    slope: jax.Array,
    inputs: jax.Array,
    scale: jax.Array | None,
    precision: PrecisionLike,
) -> jax.Array:
    """so_far + slope.T @ inputs * scale; in float32 no more is stored than another `slope`."""
    *examples, features = inputs.shape
    size, leading = math.prod(examples), tuple(range(len(examples)))

    def add(so_far, inputs):
        product = _products(slope, inputs, (leading, leading), precision)
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
