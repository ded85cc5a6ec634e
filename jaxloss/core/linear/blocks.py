"""What becomes of a linear layer's outputs, block by block of examples, and its derivatives.

The logits of a block exist while it is worked on: in one loop that makes the results, and in
another that makes them again for the gradient, or in the same loop where losses are summed. The
gradients of the logits of several blocks, a portion of the examples, go through the two products
behind them together.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import checks, meshes, xla
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.linear.cutting import padded
from jaxloss.core.linear.partition import combine, differentiable, partition, tangents_of, unmoved
from jaxloss.core.linear.problem import How, Rows, Shared, along_last
from jaxloss.core.linear.products import Slope, add_to_kernel, is_narrow, product, to_inputs
from jaxloss.core.linear.scanning import each, scan


def results(rows: Rows, shared: Shared, how: How) -> Any:
    """What the objective makes of each example, in blocks; 0 where it takes no part."""
    return _of_blocks(rows, shared, how, False)


def results_of_few(rows: Rows, shared: Shared, how: How, blocks: int) -> Any:
    """`results`, (N,), where few examples take part: blocks without any take no time.

    The rows are not in blocks yet. Where they are sharded over devices they change places.
    """
    examples, rows = len(rows.inputs[0]), padded(rows, blocks)
    where: Any = rows.where
    count = len(where)
    indices = jnp.arange(count)
    order = jnp.sort(jnp.where(where, indices, indices + count)) % max(count, 1)
    front, behind = (jnp.cumsum(x, dtype=order.dtype) for x in (where, ~where))
    rank = jnp.where(where, front, jnp.sum(where, dtype=order.dtype) + behind) - 1
    inputs = tuple(_permuted(x, order, rank) for x in rows.inputs)
    rows = Rows(inputs, *jax.tree.map(lambda x: _taken(x, order), (rows.labels, where)))
    rows = jax.tree.map(lambda x: x.reshape(blocks, count // blocks, *x.shape[1:]), rows)
    found = _of_blocks(rows, shared, how, True)
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
def _of_blocks(rows: Rows, shared: Shared, how: How, sparse: bool) -> Any:
    return each(lambda rows: _block(rows, shared, how), rows, shared if sparse else None)


def _of_blocks_jvp(how, sparse, primals, tangents):
    found = _of_blocks(*primals, how, sparse)
    smooth, others = differentiable(found)
    primals, dots = _differentiated(primals, tangents, how)

    def along(primals: tuple[Rows, Shared], dots: tuple[Rows, Shared]) -> Any:
        primals = rows, shared = _same(primals[0], how), primals[1]
        own = partition(primals, dots)[0]
        rows_dot, shared_dot = jax.tree.map(lambda dot, x: dot.astype(x.dtype), dots, own)

        def block(rows_and_dot):
            rows, rows_dot = rows_and_dot
            parts, fixed = partition((rows, shared), dots)

            def result(rows, shared):
                return differentiable(_block(*combine((rows, shared), fixed), how))[0]

            # Not keeping the logits for the backward pass is what bounds the memory.
            result = jax.checkpoint(result, prevent_cse=False)
            return jax.jvp(result, parts, (rows_dot, shared_dot))[1]

        return each(block, (rows, rows_dot), (shared, shared_dot) if sparse else None)

    def gradients(primals: tuple[Rows, Shared], factors: Any) -> tuple[Rows, Shared]:
        found = _results_and_gradients(*primals, factors, dots, how, sparse)[1]
        return jax.tree.map(lambda x, dot: x.astype(dot.dtype), found, dots)

    # The transpose that JAX would make of this loop keeps, besides the kernel's gradient, another
    # array of its size.
    if how.axis_name is None:
        dot = xla.linear(along, gradients, primals, dots, smooth)
    elif not jax.typeof(lax.axis_index(how.axis_name)).mat.varying:
        # Inside `jax.shard_map(check_vma=False)` only JAX knows what a transpose has to add up.
        dot = along(*jax.tree.map(_widened, (primals, dots)))
    else:
        # A linear equation has to vary over the same devices in all parts: each device has an equal
        # share of the tangent, and of the gradients what its own classes add.
        devices = lax.axis_size(how.axis_name)

        def share(primals, dots):
            return meshes.varying(
                jax.tree.map(lambda x: x / devices, along(primals, dots)), primals
            )

        dot = xla.linear(share, gradients, primals, dots, meshes.varying(smooth, primals))
        dot = lax.psum(dot, how.axis_name)
    return found, combine(dot, unmoved(others))


_of_blocks.defjvp(_of_blocks_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def sum_of_losses(rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The sum of the results, of which there is one per example."""
    return jnp.sum(_of_blocks(rows, shared, how, False))


def _sum_of_losses_jvp(how, primals, tangents):
    # Here the factor of every loss is known, so that a block's gradient can be made while its
    # logits exist: with three products of the kernel's size in all instead of four.
    (rows, shared), dots = _differentiated(primals, tangents, how)
    losses, gradients = _results_and_gradients(rows, shared, None, dots, how, False)
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


def _results_and_gradients(
    rows: Rows,
    shared: Shared,
    factors: Any,
    moving: tuple[Any, Any],
    how: How,
    sparse: bool,
) -> tuple[Any, tuple[Rows, Shared]]:
    """The results of all blocks, and the gradients of their sum, weighted by `factors`.

    The gradients are those of the leaves that `moving` has.
    """
    rows, (rows_moving, shared_moving) = _same(rows, how), moving
    layers = zip(rows_moving.inputs, shared_moving.kernels, strict=True)
    # The layers whose product has a gradient that somebody wants.
    wanted = tuple(None if x is None and kernel is None else True for x, kernel in layers)

    def block(so_far, rows_and_factors):
        rows, factors = rows_and_factors
        parts, fixed = partition((rows, shared), moving)
        inputs = tuple(xla.apart(rows.present(x)) for x in rows.inputs)
        products = tuple(
            product(x, kernel, how.precision)
            for x, kernel in zip(inputs, shared.kernels, strict=True)
        )
        own, others = partition(products, wanted)

        def result(rows, shared, products):
            rows, shared = combine((rows, shared), fixed)
            return differentiable(_result(combine(products, others), rows, shared, how))[0]

        found, backward = jax.vjp(result, *parts, own)
        if factors is None:
            factors = jax.tree.map(jnp.ones_like, found)
        else:
            factors = jax.tree.map(lambda x: meshes.agreed(x, how.axes), factors)
        to_rows, to_shared, slopes = backward(factors)
        slopes = tuple(
            None if slope is None else Slope.of(slope, x, how.precision)
            for slope, x in zip(slopes, inputs, strict=True)
        )
        so_far = jax.tree.map(jnp.add, so_far, to_shared._replace(kernels=None))
        return so_far, (to_rows._replace(inputs=None), found, slopes)

    def portion(so_far, rows_and_factors):
        rows, _ = rows_and_factors
        kernels, so_far = so_far.kernels, so_far._replace(kernels=None)
        if how.blocks == 1:
            so_far, (to_rows, found, slopes) = block(so_far, rows_and_factors)
        else:
            so_far, (to_rows, found, slopes) = scan(block, so_far, rows_and_factors)

        def operands(x, kernel, slope, x_moving, kernel_so_far):
            if slope is None:
                return None, None
            inputs = rows.present(x)
            if how.blocks > 1 and meshes.spread() == 1:
                # Of matrices XLA's products for a CPU are better; merged, spread examples would
                # move.
                inputs, slope = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (inputs, slope))
            if kernel_so_far is not None:
                kernel_so_far = add_to_kernel(kernel_so_far, slope, inputs, how.precision)
            if x_moving is None:
                return None, kernel_so_far
            of_inputs = rows.present(to_inputs(slope, kernel, how.precision).reshape(x.shape))
            # What float16 cannot hold the mean may still divide; nor is it whole where devices
            # share the classes.
            if not (is_narrow(x) or how.axes):
                of_inputs = of_inputs.astype(x.dtype)
            return of_inputs, kernel_so_far

        layers = rows.inputs, shared.kernels, slopes, rows_moving.inputs, kernels
        of_inputs, kernels = zip(*map(operands, *layers), strict=True)
        return so_far._replace(kernels=kernels), (to_rows._replace(inputs=of_inputs), found)

    # A half kernel's gradient is rounded once, when it is whole.
    nothing = partition(shared, shared_moving)[0]
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x, checks.wide(x.dtype)), nothing)
    besides, portions = shared if sparse else None, (rows, factors)
    if how.blocks > 1:
        portions = jax.tree.map(lambda x: x.reshape(-1, how.blocks, *x.shape[1:]), portions)
    to_shared, out = scan(portion, nothing, portions, besides)
    if how.blocks > 1:
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    to_rows, found = out
    return found, (to_rows, to_shared)


def _block(rows: Rows, shared: Shared, how: How) -> Any:
    """The results of one block."""
    products = tuple(
        product(xla.apart(rows.present(x)), kernel, how.precision)
        for x, kernel in zip(rows.inputs, shared.kernels, strict=True)
    )
    return _result(products, rows, shared, how)


def _result(products: tuple[jax.Array, ...], rows: Rows, shared: Shared, how: How) -> Any:
    """The results of one block, from `inputs @ kernel.T` of each layer."""
    logits = tuple(
        x if bias is None else x + along_last(bias, x)
        for x, bias in zip(products, shared.biases, strict=True)
    )
    classes = ClassAxes((logits[0].ndim - 1,), how.axis_name)

    def laid(term):
        return along_last(term, logits[0]) if term.ndim else meshes.agreed(term, how.axes)

    labels, terms = jax.tree.map(rows.present, rows.labels), jax.tree.map(laid, shared.terms)
    return jax.tree.map(rows.present, how.objective(logits, labels, terms, classes))


def _same(rows: Rows, how: How) -> Rows:
    """The examples, with what all devices know of them in one piece."""
    labels = rows.labels
    if labels is not None and not jnp.issubdtype(labels.dtype, jnp.floating):
        labels = meshes.agreed(labels, how.axes)
    return rows._replace(labels=labels, where=meshes.agreed(rows.where, how.axes))


def _widened(x: jax.Array) -> jax.Array:
    """Halves as float32; everything else as it is."""
    return x.astype(checks.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
