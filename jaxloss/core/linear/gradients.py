"""From the gradients of logits to those of inputs and kernels: the two products behind them.

On one device a kernel's gradient is one product, or a sum over portions of the examples. Where
devices share a half kernel, its gradient would be in float32 on each of them until it is added up
and rounded: as large as two kernels. Unless a device has too many examples, or `chunk_size` asks
for less memory, it is made for a portion of the classes at a time, which is added up over the
devices, scattered to where its features belong, and rounded before the next.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import meshes
from jaxloss.core.linear.partition import widened
from jaxloss.core.linear.problem import How, Rows, Shared
from jaxloss.core.linear.products import Slope, product_of_slope, to_inputs

Slopes = tuple[Any, ...]  # A `Slope` of the logits of each layer, of all examples, or None.
Kernels = tuple[Any, ...]  # None for one whose gradient nobody wants.


def of_kernels(rows: Rows, slopes: Slopes, factor: Any, like: Kernels, how: How) -> Kernels:
    """The kernels' gradients times a factor, laid and rounded as `like`."""

    def of_kernel(x, slope, kernel, features):
        if kernel is None:
            return None
        x, slope = merged((rows.present(x), slope), how)
        return _by_classes(slope, x, factor, kernel, features, how)

    layers = rows.inputs, slopes, like, how.gathered(like)
    return tuple(map(of_kernel, *layers))


def along_kernels(rows: Rows, slopes: Slopes, dots: Kernels, how: How) -> jax.Array:
    """The map whose transpose is `of_kernels`."""
    parts = [
        jnp.sum(to_inputs(slope, dot.astype(x.dtype), how.precision) * widened(rows.present(x)))
        for x, slope, dot in zip(rows.inputs, slopes, how.whole(dots), strict=True)
        if dot is not None
    ]
    total = sum(parts[1:], parts[0])
    return lax.psum(total, how.axes) if how.axes else total


def along(found: tuple[Rows, Shared], dots: tuple[Rows, Shared], how: How) -> jax.Array | int:
    """The sum of all gradients times their tangents, of which there may be none."""
    rows_dot, shared_dot = jax.tree.map(widened, dots)
    dots = rows_dot, shared_dot._replace(kernels=how.whole(shared_dot.kernels))

    def part(gradient, dot):
        total = jnp.sum(widened(gradient) * dot)
        axes = tuple(a for a in how.axes if a in jax.typeof(total).mat.varying)
        return lax.psum(total, axes) if axes else total

    return sum(jax.tree.leaves(jax.tree.map(part, found, dots)))


def laid(found: tuple[Rows, Shared], like: tuple[Rows, Shared], how: How) -> tuple[Rows, Shared]:
    """Whole gradients: added up over devices, then scattered and rounded like their arrays."""
    (rows, shared), (rows_like, shared_like) = found, like
    kernels = tuple(
        None if x is None else _finished(x, dot, axes)
        for x, dot, axes in zip(
            shared.kernels, shared_like.kernels, how.gathered(shared_like.kernels), strict=True
        )
    )
    rest = shared._replace(kernels=None), shared_like._replace(kernels=None)
    shared = jax.tree.map(_finished, *rest)
    return jax.tree.map(_finished, rows, rows_like), shared._replace(kernels=kernels)


def merged(arrays: Any, how: How) -> Any:
    """Matrices of several blocks as one each, for which XLA's products for a CPU are better."""
    if how.blocks == 1 or meshes.spread() > 1:  # Merged, spread examples would move.
        return arrays
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), arrays)


def _finished(gradient: jax.Array, like: jax.Array, features: tuple[str, ...] = ()) -> jax.Array:
    """A whole gradient: added up over devices, scattered by features if a kernel's, rounded."""
    if features:
        gradient = lax.psum_scatter(gradient, features, scatter_dimension=1, tiled=True)
    return meshes.summed(gradient, like).astype(like.dtype)


def _by_classes(
    slope: Slope,
    inputs: jax.Array,
    factor: Any,
    like: jax.Array,
    features: tuple[str, ...],
    how: How,
) -> jax.Array:
    """The kernel's gradient, as the tangent `like`, of a portion of the classes at a time."""
    classes = slope.value.shape[-1]
    # A portion has its share of every device's classes.
    shares = meshes.spread() if classes % meshes.spread() == 0 else 1
    own = classes // shares
    size = own if how.classes is None else min(own, how.classes)
    value = slope.value.reshape(*slope.value.shape[:-1], shares, own)

    def add(i, found):
        start = jnp.minimum(i * size, own - size)  # The last may do a part once more.
        some = lax.dynamic_slice_in_dim(value, start, size, -1)
        some = some.reshape(*some.shape[:-2], shares * size)
        part = factor * product_of_slope(slope._replace(value=some), inputs, how.precision)
        part = _finished(part, like, features).reshape(shares, size, -1)
        return lax.dynamic_update_slice_in_dim(found, part, start, 1)

    nothing = lax.empty((shares, own, like.shape[1]), like.dtype)
    return lax.fori_loop(0, -(-own // size), add, meshes.varying(nothing, like)).reshape(like.shape)
