"""Losses of a linear layer's outputs, block by block of examples, and their derivatives.

The logits of a block exist while it is worked on: in one loop that makes losses, and in another
that makes them again for the gradient, or in the same loop where the losses are summed. The
gradients of the logits of several blocks, a portion of the examples, go through the two products
behind them together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import checks, meshes, xla
from jaxloss.core import cross_entropy
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import locate, weights_at
from jaxloss.core.linear.cutting import padded
from jaxloss.core.linear.partition import combine, partition, tangents_of
from jaxloss.core.linear.problem import How, Rows, Shared


def losses(rows: Rows, shared: Shared, how: How) -> jax.Array:
    """One loss per example, in blocks."""
    return _losses_of_blocks(rows, shared, how, False)


def losses_of_few(rows: Rows, shared: Shared, how: How, blocks: int) -> jax.Array:
    """One loss per example, (N,), of which few take part: blocks without any take no time.

    The rows are not in blocks yet. Where they are sharded over devices they change places.
    """
    examples, rows = len(rows.inputs), padded(rows, blocks)
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
    return _each(lambda rows: _block(rows, shared, how), rows, shared if sparse else None)


def _losses_of_blocks_jvp(how, sparse, primals, tangents):
    losses = _losses_of_blocks(*primals, how, sparse)
    primals, dots = _differentiated(primals, tangents, how)

    def along(primals: tuple[Rows, Shared], dots: tuple[Rows, Shared]) -> jax.Array:
        primals = rows, shared = _same(primals[0], how), primals[1]
        own = partition(primals, dots)[0]
        rows_dot, shared_dot = jax.tree.map(lambda dot, x: dot.astype(x.dtype), dots, own)

        def block(rows_and_dot):
            rows, rows_dot = rows_and_dot
            parts, fixed = partition((rows, shared), dots)

            def loss(rows, shared):
                return _block(*combine((rows, shared), fixed), how)

            # Not keeping the logits for the backward pass is what bounds the memory.
            loss = jax.checkpoint(loss, prevent_cse=False)
            return jax.jvp(loss, parts, (rows_dot, shared_dot))[1]

        return _each(block, (rows, rows_dot), (shared, shared_dot) if sparse else None)

    def gradients(primals: tuple[Rows, Shared], factors: jax.Array) -> tuple[Rows, Shared]:
        found = _losses_and_gradients(*primals, factors, dots, how, sparse)[1]
        return jax.tree.map(lambda x, dot: x.astype(dot.dtype), found, dots)

    # The transpose that JAX would make of this loop keeps, besides the kernel's gradient, another
    # array of its size.
    if how.axis_name is None:
        return losses, xla.linear(along, gradients, primals, dots, losses)
    if not jax.typeof(lax.axis_index(how.axis_name)).mat.varying:
        # Inside `jax.shard_map(check_vma=False)` only JAX knows what a transpose has to add up.
        return losses, along(*jax.tree.map(_widened, (primals, dots)))
    # A linear equation has to vary over the same devices in all parts: each device has an equal
    # share of the tangent, and of the gradients what its own classes add.
    devices = lax.axis_size(how.axis_name)

    def share(primals, dots):
        return meshes.varying(along(primals, dots) / devices, primals)

    dot = xla.linear(share, gradients, primals, dots, meshes.varying(losses, primals))
    return losses, lax.psum(dot, how.axis_name)


_losses_of_blocks.defjvp(_losses_of_blocks_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def sum_of_losses(rows: Rows, shared: Shared, how: How) -> jax.Array:
    return jnp.sum(_losses_of_blocks(rows, shared, how, False))


def _sum_of_losses_jvp(how, primals, tangents):
    # Here the factor of every loss is known, so that a block's gradient can be made while its
    # logits exist: with three products of the kernel's size in all instead of four.
    (rows, shared), dots = _differentiated(primals, tangents, how)
    losses, gradients = _losses_and_gradients(rows, shared, None, dots, how, False)
    parts = jax.tree.map(lambda x, dot: jnp.sum(_widened(x) * _widened(dot)), gradients, dots)
    total, dot = jnp.sum(losses), sum(jax.tree.leaves(parts))
    return meshes.agreed(total, how.axes), dot if how.axis_name is None else lax.psum(
        dot, how.axis_name
    )


sum_of_losses.defjvp(_sum_of_losses_jvp, symbolic_zeros=True)


def _differentiated(
    primals: tuple[Rows, Shared], tangents: tuple[Rows, Shared], how: How
) -> tuple[tuple[Rows, Shared], tuple[Rows, Shared]]:
    """The problem, and the tangents of those of its leaves that have one."""
    rows_dot, shared_dot = tangents_of(tangents)
    # A gradient that devices add up is rounded after that; those that share classes add up all.
    rows_dot = jax.tree.map(_widened, rows_dot) if how.axes else rows_dot
    dots = rows_dot, jax.tree.map(_widened, shared_dot)
    # Inside `jax.shard_map` the gradients of what devices share add up here until the end.
    return meshes.varying((primals, dots), primals)


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
    rows, (rows_moving, shared_moving) = _same(rows, how), moving
    wide, rounds = checks.wide(rows.inputs.dtype), how.rounds(rows.inputs)
    narrow = jnp.finfo(rows.inputs.dtype).maxexp < jnp.finfo(wide).maxexp

    def block(so_far, rows_and_factors):
        rows, factors = rows_and_factors
        parts, fixed = partition((rows, shared), moving)

        def loss(rows, shared, product):
            return _losses(product, *combine((rows, shared), fixed), how)

        inputs = xla.apart(_present(rows, rows.inputs))
        losses, backward = jax.vjp(loss, *parts, _product(inputs, shared.kernel, how))
        factors = jnp.ones_like(losses) if factors is None else meshes.agreed(factors, how.axes)
        to_rows, to_shared, slope = backward(factors)
        peak = None
        if rounds and narrow:
            # Each example's slope as a share of its peak, of which float16 loses nothing.
            peak = jnp.max(jnp.abs(lax.stop_gradient(slope)), -1, keepdims=True)
            slope = slope / _or_one(peak)
        if rounds:
            slope = slope.astype(inputs.dtype)
        so_far = jax.tree.map(jnp.add, so_far, to_shared._replace(kernel=None))
        return so_far, (to_rows._replace(inputs=None), losses, slope, peak)

    def portion(so_far, rows_and_factors):
        rows, _ = rows_and_factors
        kernel, so_far = so_far.kernel, so_far._replace(kernel=None)
        if how.blocks == 1:
            so_far, (to_rows, losses, slope, peak) = block(so_far, rows_and_factors)
        else:
            so_far, (to_rows, losses, slope, peak) = _scan(block, so_far, rows_and_factors)
        inputs = _present(rows, rows.inputs)
        if how.blocks > 1 and meshes.spread() == 1:
            # Of matrices XLA's products for a CPU are better; merged, spread examples would move.
            inputs, slope, peak = jax.tree.map(
                lambda x: x.reshape(-1, x.shape[-1]), (inputs, slope, peak)
            )
        if rows_moving.inputs is not None:
            to_inputs = _dot(slope, shared.kernel, 0, how)
            # What float16 cannot hold the mean may still divide.
            if peak is not None:
                to_inputs = to_inputs * _or_one(peak)
            elif not (narrow or how.axes):  # Nor is it whole where devices share the classes.
                to_inputs = to_inputs.astype(inputs.dtype)
            to_inputs = _present(rows, to_inputs.reshape(rows.inputs.shape))
            to_rows = to_rows._replace(inputs=to_inputs)
        if shared_moving.kernel is not None:
            scale = None
            if peak is not None:
                scale = jnp.max(peak, initial=float(jnp.finfo(wide).tiny))
                inputs = (peak / scale * inputs.astype(wide)).astype(inputs.dtype)
            kernel = _add_product(kernel, slope, inputs, scale, how)
        return so_far._replace(kernel=kernel), (to_rows, losses)

    # A half kernel's gradient is rounded once, when it is whole.
    nothing = partition(shared, shared_moving)[0]
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x, checks.wide(x.dtype)), nothing)
    besides, portions = shared if sparse else None, (rows, factors)
    if how.blocks > 1:
        portions = jax.tree.map(lambda x: x.reshape(-1, how.blocks, *x.shape[1:]), portions)
    to_shared, found = _scan(portion, nothing, portions, besides)
    if how.blocks > 1:
        found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    to_rows, losses = found
    return losses, (to_rows, to_shared)


def weights_of_rows(rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The weight of each example: that of its label's class, or 1; 0 where it takes no part."""

    def block(rows):
        wide = checks.wide(rows.inputs.dtype)
        if jnp.issubdtype(rows.labels.dtype, jnp.floating):
            return _present(rows, xla.true_like(rows.labels[..., 0]).astype(wide))
        scores: Any = jax.ShapeDtypeStruct((*rows.shape, len(shared.kernel)), wide)
        classes = ClassAxes((len(rows.shape),), how.axis_name)
        where = None if rows.where is None else rows.where[..., None]
        found = locate(rows.labels, scores, classes, where)
        weights = shared.terms.class_weights
        if weights is None:
            return classes.squeeze(found.present & ~found.bad).astype(wide)
        return classes.squeeze(weights_at(found, _along_last(weights, scores), classes))

    return _each(block, rows)


def _block(rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The losses of one block."""
    product = _product(xla.apart(_present(rows, rows.inputs)), shared.kernel, how)
    return _losses(product, rows, shared, how)


def _losses(product: jax.Array, rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The losses of one block, from `inputs @ kernel.T`."""
    _, bias, terms = shared
    logits = product if bias is None else product + _along_last(bias, product)
    labels = _present(rows, rows.labels)
    classes = ClassAxes((logits.ndim - 1,), how.axis_name)
    weights, *numbers = terms
    weights = None if weights is None else _along_last(weights, logits)
    terms = cross_entropy.Terms(weights, *(meshes.agreed(x, how.axes) for x in numbers))
    if jnp.issubdtype(labels.dtype, jnp.floating):
        losses = cross_entropy.losses_of_probabilities(logits, labels, None, terms, classes)
    else:
        found = locate(labels, logits, classes)
        losses = cross_entropy.losses_of_labels(logits, found, None, terms, classes)
    return _present(rows, losses)


def _same(rows: Rows, how: How) -> Rows:
    """The examples, with what all devices know of them in one piece."""
    is_spread = jnp.issubdtype(rows.labels.dtype, jnp.floating)
    labels = rows.labels if is_spread else meshes.agreed(rows.labels, how.axes)
    return rows._replace(labels=labels, where=meshes.agreed(rows.where, how.axes))


def _or_one(peak: jax.Array) -> jax.Array:
    return jnp.where(peak == 0, 1, peak)


def _along_last(x: jax.Array, like: jax.Array) -> jax.Array:
    """One number per class, with as many dimensions as `like` has."""
    return x.reshape((1,) * (like.ndim - 1) + x.shape)


def _widened(x: jax.Array) -> jax.Array:
    """Halves as float32; everything else as it is."""
    return x.astype(checks.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _present(rows: Rows, x: jax.Array) -> jax.Array:
    """0 for the examples of a block that take no part; a mask of the logits is not needed then."""
    where = rows.where
    if where is None:
        return x
    return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, 0)


def _product(inputs: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """inputs @ kernel.T; of half operands, summed in float32."""
    return _dot(inputs, kernel, 1, how)


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


def _each(f: Callable[[Any], jax.Array], blocks: Any, besides: Any = None) -> jax.Array:
    """f of every block; see `_scan` for `besides`."""
    return _scan(lambda _, block: (None, f(block)), None, blocks, besides)[1]


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
