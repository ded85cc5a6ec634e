"""Losses of a linear layer's outputs, block by block of examples, and their derivatives.

The logits of a block exist while it is worked on: in one loop that makes losses, and in another
that makes them again for the gradient, or in the same loop where the losses are summed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.sharding import AxisType

from jaxloss._base import checks, xla
from jaxloss.core import cross_entropy
from jaxloss.core.classes.axes import AxisName, ClassAxes
from jaxloss.core.classes.labels import locate
from jaxloss.core.linear.partition import combine, partition, tangents_of


class Rows(NamedTuple):
    """Examples; in blocks, (blocks, examples of a block, ...)."""

    inputs: jax.Array  # (N, D)
    labels: jax.Array  # (N,) class indices, or (N, C) class probabilities.
    where: jax.Array | None  # (N,), which of them take part.


class Shared(NamedTuple):
    """What all examples have in common."""

    kernel: jax.Array  # (C, D)
    bias: jax.Array | None  # (C,)
    terms: cross_entropy.Terms


class How(NamedTuple):
    """What shapes the computation."""

    axis_name: AxisName = None
    precision: PrecisionLike = None  # Of every product.

    def rounds(self, operands: jax.Array) -> bool:
        """Whether what goes back through a product is rounded to the dtype of its operands."""
        precision = self.precision
        if precision is None:
            # JAX defines its options at run time only.
            precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        asked = precision if isinstance(precision, tuple) else (precision,)
        exact = {"highest", "float32", lax.Precision.HIGHEST}
        return jnp.finfo(operands.dtype).bits < 32 and exact.isdisjoint(asked)


def in_blocks(rows: Rows, blocks: int) -> Rows:
    """Cuts the examples into blocks, each with its share of every device's examples."""
    rows = _padded(rows, blocks)
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(len(x) // blocks, blocks, *x.shape[1:]), 1, 0), rows
    )


def _padded(rows: Rows, blocks: int) -> Rows:
    """Examples that can be cut into so many blocks, with absent ones behind if need be."""
    examples = len(rows.inputs)
    missing = -examples % blocks
    if not missing:
        return rows
    where = jnp.ones(examples, bool) if rows.where is None else rows.where
    return jax.tree.map(
        lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), rows._replace(where=where)
    )


def losses(rows: Rows, shared: Shared, shape: tuple[int, ...], how: How) -> jax.Array:
    """One loss per example, as an array of the shape."""
    found = _losses_of_blocks(rows, shared, how, False)
    return jnp.moveaxis(found, 0, 1).reshape(-1)[: math.prod(shape)].reshape(shape)


def losses_of_few(rows: Rows, shared: Shared, how: How, blocks: int) -> jax.Array:
    """One loss per example, (N,), of which few take part: blocks without any take no time.

    The rows are not in blocks yet. Where they are sharded over devices they change places.
    """
    examples, rows = len(rows.inputs), _padded(rows, blocks)
    where: Any = rows.where
    count = len(where)
    indices = jnp.arange(count)
    order = jnp.sort(jnp.where(where, indices, indices + count)) % max(count, 1)
    front, behind = (jnp.cumsum(x, dtype=order.dtype) for x in (where, ~where))
    rank = jnp.where(where, front, jnp.sum(where, dtype=order.dtype) + behind) - 1
    inputs = _permuted(rows.inputs, order, rank)
    rows = Rows(inputs, _taken(rows.labels, order), _taken(where, order))
    rows = jax.tree.map(lambda x: x.reshape(blocks, count // blocks, *x.shape[1:]), rows)
    found = _losses_of_blocks(rows, shared, how, True)
    return _permuted(found.reshape(count), rank, order)[:examples]


def _permuted(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[order], whose transpose JAX would make a scatter."""
    return xla.linear(
        lambda orders, x: _taken(x, orders[0]),
        lambda orders, x: _taken(x, orders[1]),
        (order, inverse),
        x,
        x,
    )


def _taken(x: jax.Array, order: jax.Array) -> jax.Array:
    return x.at[order].get(mode="promise_in_bounds", wrap_negative_indices=False)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _losses_of_blocks(rows: Rows, shared: Shared, how: How, sparse: bool) -> jax.Array:
    return _scan(
        lambda _, rows: (None, _block(rows, shared, how)),
        None,
        rows,
        shared if sparse else None,
    )[1]


def _losses_of_blocks_jvp(how, sparse, primals, tangents):
    primals, dots = _differentiated(primals, tangents)

    def along(primals: tuple[Rows, Shared], dots: tuple[Rows, Shared]) -> jax.Array:
        rows, shared = primals
        own = partition(primals, dots)[0]
        rows_dot, shared_dot = jax.tree.map(lambda dot, x: dot.astype(x.dtype), dots, own)

        def block(_, rows_and_dot):
            rows, rows_dot = rows_and_dot
            parts, fixed = partition((rows, shared), dots)

            def loss(rows, shared):
                return _block(*combine((rows, shared), fixed), how)

            # Not keeping the logits for the backward pass is what bounds the memory.
            loss = jax.checkpoint(loss, prevent_cse=False)
            return None, jax.jvp(loss, parts, (rows_dot, shared_dot))[1]

        return _scan(block, None, (rows, rows_dot), (shared, shared_dot) if sparse else None)[1]

    def gradients(primals: tuple[Rows, Shared], factors: jax.Array) -> tuple[Rows, Shared]:
        found = _losses_and_gradients(*primals, factors, dots, how, sparse)[1]
        return jax.tree.map(lambda x, dot: x.astype(dot.dtype), found, dots)

    losses = _losses_of_blocks(*primals, how, sparse)
    if how.axis_name is not None:  # JAX's equations cannot vary over some devices in parts.
        # Nor would the transpose of a half kernel's products be summed in float32.
        return losses, along(*jax.tree.map(_widened, (primals, dots)))
    # The transpose that JAX would make of this loop keeps, besides the kernel's gradient, another
    # array of its size.
    return losses, xla.linear(along, gradients, primals, dots, losses)


_losses_of_blocks.defjvp(_losses_of_blocks_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def sum_of_losses(rows: Rows, shared: Shared, how: How) -> jax.Array:
    return jnp.sum(_losses_of_blocks(rows, shared, how, False))


def _sum_of_losses_jvp(how, primals, tangents):
    # Here the factor of every loss is known, so that a block's gradient can be made while its
    # logits exist: with three products of the kernel's size in all instead of four.
    (rows, shared), dots = _differentiated(primals, tangents)
    losses, gradients = _losses_and_gradients(rows, shared, None, dots, how, False)
    parts = jax.tree.map(lambda x, dot: jnp.sum(_widened(x) * _widened(dot)), gradients, dots)
    return jnp.sum(losses), sum(jax.tree.leaves(parts))


sum_of_losses.defjvp(_sum_of_losses_jvp, symbolic_zeros=True)


def _differentiated(
    primals: tuple[Rows, Shared], tangents: tuple[Rows, Shared]
) -> tuple[tuple[Rows, Shared], tuple[Rows, Shared]]:
    """The problem, and the tangents of those of its leaves that have one."""
    rows, shared = primals
    rows_dot, shared_dot = tangents_of(tangents)
    # A gradient that devices add up is rounded after that.
    shared_dot = jax.tree.map(_widened, shared_dot)
    # Made of the rows, so that inside `jax.shard_map` gradients add up here until the end.
    zero = ~(xla.true_like(jnp.sum(rows.labels)) & xla.true_like(jnp.sum(rows.inputs)))
    shared, dots = jax.tree.map(
        lambda x: x + zero.astype(x.dtype), (shared, (rows_dot, shared_dot))
    )
    return (rows, shared), dots


def _losses_and_gradients(
    rows: Rows,
    shared: Shared,
    factors: jax.Array | None,
    moving: tuple[Any, Any],
    how: How,
    sparse: bool,
) -> tuple[jax.Array, tuple[Rows, Shared]]:
    """The losses of all blocks, and the gradients of their sum, weighted by `factors`.

    The gradients are those of the leaves that `moving` has.
    """
    rows_moving, shared_moving = moving
    wide, rounds = checks.wide(rows.inputs.dtype), how.rounds(rows.inputs)
    narrow = jnp.finfo(rows.inputs.dtype).maxexp < jnp.finfo(wide).maxexp

    def block(so_far, rows_and_factors):
        rows, factors = rows_and_factors
        if factors is None:
            factors = xla.true_like(rows.inputs[:, 0]).astype(wide)
        parts, fixed = partition((rows, shared), moving)

        def loss(rows, shared, product):
            return _losses(product, *combine((rows, shared), fixed), how)

        inputs = _present(rows, rows.inputs)
        losses, backward = jax.vjp(loss, *parts, _product(inputs, shared.kernel, how))
        to_rows, to_shared, slope = backward(factors)
        peak = scale = None
        if rounds and narrow:
            # Each example's slope as a share of its peak, of which float16 loses nothing.
            peak = jnp.max(jnp.abs(lax.stop_gradient(slope)), 1, keepdims=True)
            peak = jnp.where(peak == 0, 1, peak)
            slope = slope / peak
        if rounds:
            slope = slope.astype(inputs.dtype)
        if rows_moving.inputs is not None:
            to_inputs = _dot(slope, shared.kernel, (1, 0), how, inputs)
            # What float16 cannot hold the mean may still divide.
            to_inputs = to_inputs.astype(inputs.dtype) if peak is None else to_inputs * peak
            to_rows = to_rows._replace(inputs=_present(rows, to_inputs))
        if peak is not None:
            scale = jnp.max(peak, initial=float(jnp.finfo(wide).tiny))
            inputs = (peak / scale * inputs.astype(wide)).astype(inputs.dtype)
        kernel = None
        if shared_moving.kernel is not None:
            kernel = _add_product(so_far.kernel, slope, inputs, scale, how)
        so_far, to_shared = (x._replace(kernel=None) for x in (so_far, to_shared))
        so_far = jax.tree.map(jnp.add, so_far, to_shared)._replace(kernel=kernel)
        return so_far, (to_rows, losses)

    # A half kernel's gradient is rounded once, when it is whole.
    nothing = partition(shared, shared_moving)[0]
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x, checks.wide(x.dtype)), nothing)
    besides = shared if sparse else None
    to_shared, (to_rows, losses) = _scan(block, nothing, (rows, factors), besides)
    return losses, (to_rows, to_shared)


def weights_of_rows(rows: Rows, shared: Shared) -> jax.Array:
    """The weight of each example: that of its label's class, or 1; 0 where it takes no part."""

    def block(_, rows):
        inputs, labels, where = rows
        part = jnp.ones(len(inputs), bool) if where is None else where
        if jnp.issubdtype(labels.dtype, jnp.floating):
            return None, part.astype(checks.wide(inputs.dtype))
        weights = shared.terms.class_weights
        part = part & (labels >= 0) & (labels < len(shared.kernel))
        if weights is None:
            return None, part.astype(checks.wide(inputs.dtype))
        classes = jnp.arange(len(weights), dtype=labels.dtype)
        hot = part[:, None] & (labels[:, None] == classes[None])
        return None, jnp.sum(xla.filled(hot, weights[None], 0), 1)

    return _scan(block, None, rows)[1]


def _block(rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The losses of one block."""
    product = _product(_present(rows, rows.inputs), shared.kernel, how)
    return _losses(product, rows, shared, how)


def _losses(product: jax.Array, rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The losses of one block, from `inputs @ kernel.T`."""
    _, bias, terms = shared
    logits = product if bias is None else product + bias[None]
    labels = _present(rows, rows.labels)
    classes = ClassAxes((1,), how.axis_name)
    if terms.class_weights is not None:
        terms = terms._replace(class_weights=terms.class_weights[None])
    if jnp.issubdtype(labels.dtype, jnp.floating):
        losses = cross_entropy.losses_of_probabilities(logits, labels, None, terms, classes)
    else:
        found = locate(labels, logits, classes)
        losses = cross_entropy.losses_of_labels(logits, found, None, terms, classes)
    return _present(rows, losses)


def _widened(x: jax.Array) -> jax.Array:
    """Halves as float32; everything else as it is."""
    return x.astype(checks.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _present(rows: Rows, x: jax.Array) -> jax.Array:
    """0 for the examples of a block that take no part; a mask of the logits is not needed then."""
    return x if rows.where is None else jnp.where(rows.where.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def _product(inputs: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """inputs @ kernel.T; of half operands, summed in float32."""
    return _dot(inputs, kernel, (1, 1), how)


def _dot(
    x: jax.Array,
    y: jax.Array,
    contracting: tuple[int, int],
    how: How,
    like: jax.Array | None = None,
) -> jax.Array:
    """The product over one dimension of each, in float32 at least, and sharded as `like`."""
    sharding = None if like is None else jax.typeof(like).sharding
    if sharding is not None and AxisType.Explicit not in sharding.mesh.axis_types:
        sharding = None  # It is the compiler's.
    return lax.dot_general(
        x,
        y,
        (((contracting[0],), (contracting[1],)), ((), ())),
        precision=how.precision,
        preferred_element_type=checks.wide(x.dtype),
        out_sharding=sharding,
    )


def _add_product(
    so_far: jax.Array, slope: jax.Array, inputs: jax.Array, scale: jax.Array | None, how: How
) -> jax.Array:
    """so_far + slope.T @ inputs * scale, with no more besides than another array like `slope`."""
    size, features = inputs.shape
    width = max(1, size // 2)

    def add(so_far, inputs):
        product = _dot(slope, inputs, (0, 0), how, so_far)
        return so_far + (product if scale is None else scale * product)

    def portion(start, width, so_far):
        old, some = (lax.dynamic_slice_in_dim(x, start, width, 1) for x in (so_far, inputs))
        return lax.dynamic_update_slice_in_dim(so_far, add(old, some), start, 1)

    if size >= features:
        return add(so_far, inputs)
    whole, rest = divmod(features, width)
    so_far = lax.fori_loop(0, whole, lambda i, x: portion(i * width, width, x), so_far)
    return portion(whole * width, rest, so_far) if rest else so_far


def _scan(f: Callable, carry: Any, blocks: Any, besides: Any = None) -> tuple[Any, Any]:
    """`lax.scan`, without a loop where there is one block only.

    Given what f reads besides, blocks of which no example takes part are skipped: the carry stays
    as it is, and the output is 0.
    """
    if besides is not None:
        f = _where_any(f, besides)
    if len(jax.tree.leaves(blocks)[0]) > 1:
        return lax.scan(f, carry, blocks)
    carry, out = f(carry, jax.tree.map(lambda x: x[0], blocks))
    return carry, jax.tree.map(lambda x: x[None], out)


def _where_any(f: Callable, besides: Any) -> Callable:
    f = jax.jit(f)  # Traced once for the shapes and the branch.

    def skipping(carry, block):
        rows: Any = block if isinstance(block, Rows) else block[0]

        def skip(carry, block):
            _, out = jax.eval_shape(f, carry, block)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), out)
            # As inside `jax.shard_map` they vary over the same devices as what f gives.
            return carry, jax.tree.map(lambda x: xla.tied(x, (block, besides)), zeros)

        return lax.cond(jnp.any(rows.where), f, skip, carry, block)

    return skipping
