"""From the gradients of logits to those of inputs and kernels: the two products behind them.

On one device a kernel's gradient is one product, or a sum over portions of the examples. Where
devices share a kernel, as far as is known, its gradient would stand in float32 on each of them
until it is added up and rounded: as large as two kernels. There it is made of a portion of the
classes at a time, which is added up over the devices, scattered to where its features belong, and
rounded before the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import meshes, xla
from jaxloss.core.linear.partition import widened
from jaxloss.core.linear.problem import How, Rows, Shared
from jaxloss.core.linear.products import Slope, product_of_slope, to_inputs


class Known(NamedTuple):
    """What the gradients are made of when the results are known, of all examples."""

    rows: Rows
    shared: Shared
    slopes: tuple[Slope | None, ...]  # Of each layer's logits.
    to_rows: Rows  # The gradients, without those of the inputs.
    to_shared: Shared  # The gradients, without those of the kernels.


def of_all(known: Known, factor: Any, moving: tuple[Rows, Shared], how: How) -> tuple[Rows, Shared]:
    """The gradients times a factor, of the leaves that `moving` has, and laid as these are."""
    (rows, shared, slopes, to_rows, to_shared), (rows_moving, shared_moving) = known, moving

    def operands(x, kernel, slope, x_moving, kernel_moving, features):
        if slope is None:
            return None, None
        x = rows.present(x)
        of_x = of_kernel = None
        if x_moving is not None:
            of_x = rows.present(to_inputs(slope, kernel, how.precision))
        if kernel_moving is not None:
            x, slope = merged((x, slope), how)
            of_kernel = _by_classes(slope, x, factor, kernel_moving, features, how)
        return of_x, of_kernel

    layers = rows.inputs, how.whole(shared).kernels, slopes
    layers = *layers, rows_moving.inputs, shared_moving.kernels, how.gathered(shared)
    inputs, kernels = zip(*map(operands, *layers), strict=True)
    rest = to_rows._replace(inputs=inputs), to_shared
    like = rows_moving, shared_moving._replace(kernels=None)
    to_rows, to_shared = jax.tree.map(lambda x, dot: _finished(factor * x, dot), rest, like)
    return to_rows, to_shared._replace(kernels=kernels)


def along(found: tuple[Rows, Shared], dots: tuple[Rows, Shared], how: How) -> jax.Array:
    """The sum of all gradients times their tangents."""
    dots = dots[0], how.whole(jax.tree.map(widened, dots[1]))

    def part(gradient, dot):
        total = jnp.sum(widened(gradient) * widened(dot))
        axes = tuple(a for a in how.axes if a in jax.typeof(total).mat.varying)
        return lax.psum(total, axes) if axes else total

    return sum(jax.tree.leaves(jax.tree.map(part, found, dots)))


def along_slopes(known: Known, dots: tuple[Rows, Shared], how: How) -> jax.Array:
    """That of which `of_all` is the transpose: the sum over what this device works on."""
    (rows, shared, slopes, *others), (rows_dot, shared_dot) = known, dots
    parts = []
    for x, kernel, slope, x_dot, kernel_dot in zip(
        rows.inputs,
        how.whole(shared).kernels,
        slopes,
        rows_dot.inputs,
        how.whole(shared_dot).kernels,
        strict=True,
    ):
        if x_dot is not None:
            parts.append((to_inputs(slope, kernel, how.precision), rows.present(x_dot)))
        if kernel_dot is not None:
            turned = to_inputs(slope, kernel_dot.astype(kernel.dtype), how.precision)
            parts.append((turned, rows.present(x)))
    rest = rows_dot._replace(inputs=None), shared_dot._replace(kernels=None)
    parts += zip(jax.tree.leaves(tuple(others)), jax.tree.leaves(rest), strict=True)
    return sum(jnp.sum(widened(x) * widened(y)) for x, y in parts)


def laid(found: tuple[Rows, Shared], like: tuple[Rows, Shared], how: How) -> tuple[Rows, Shared]:
    """Gradients whole: added up over the devices, scattered and rounded as what they are of."""
    (rows, shared), (rows_like, shared_like) = found, like
    kernels = tuple(
        None if x is None else _finished(x, dot, axes)
        for x, dot, axes in zip(
            shared.kernels, shared_like.kernels, how.gathered(shared_like), strict=True
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
    """A gradient whole: added up over devices, of a kernel scattered by its features, rounded."""
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
    size = min(own, how.classes)
    value = slope.value.reshape(*slope.value.shape[:-1], shares, own)

    def add(i, found):
        start = jnp.minimum(i * size, own - size)  # The last may do a part once more.
        some = xla.apart(lax.dynamic_slice_in_dim(value, start, size, -1))
        some = some.reshape(*some.shape[:-2], shares * size)
        part = factor * product_of_slope(slope._replace(value=some), inputs, how.precision)
        part = _finished(part, like, features).reshape(shares, size, -1)
        return lax.dynamic_update_slice_in_dim(found, part, start, 1)

    nothing = jnp.zeros((shares, own, like.shape[1]), like.dtype)
    return lax.fori_loop(0, -(-own // size), add, meshes.varying(nothing, like)).reshape(like.shape)
