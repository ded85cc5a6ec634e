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
from jaxloss.core.linear import gradients
from jaxloss.core.linear.cutting import padded
from jaxloss.core.linear.partition import (
    combine,
    differentiable,
    partition,
    tangents_of,
    unmoved,
    widened,
)
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
    shared = _whole(shared, how)
    return each(lambda rows: _block(rows, shared, how), rows, shared if sparse else None)


def _of_blocks_jvp(how, sparse, primals, tangents):
    found = _of_blocks(*primals, how, sparse)
    smooth, others = differentiable(found)
    primals, dots = _differentiated(primals, tangents)

    def along(primals: tuple[Rows, Shared], dots: tuple[Rows, Shared]) -> Any:
        rows, shared = _same(primals[0], how), _whole(primals[1], how)
        dots = meshes.varying((dots[0], _whole(dots[1], how)), primals)
        own = partition((rows, shared), dots)[0]
        rows_dot, shared_dot = jax.tree.map(lambda dot, x: dot.astype(x.dtype), dots, own)

        def block(rows_and_dot):
            rows, rows_dot = rows_and_dot
            parts, fixed = partition((rows, shared), dots)

            def result(rows, shared):
                return differentiable(_block(*combine((rows, shared), fixed), how))[0]

            return jax.jvp(result, parts, (rows_dot, shared_dot))[1]

        return each(block, (rows, rows_dot), (shared, shared_dot) if sparse else None)

    def transposed(primals: tuple[Rows, Shared], factors: Any) -> tuple[Rows, Shared]:
        if how.classes is None:
            found = _results_and_gradients(*primals, factors, dots, how, sparse)[1]
            return gradients.laid(found, dots, how)
        _, found, slopes = _results_and_slopes(*primals, factors, dots, how)
        (to_rows, to_shared), kernels = gradients.laid(found, dots, how), dots[1].kernels
        kernels = gradients.of_kernels(_same(primals[0], how), slopes, 1, kernels, how)
        return to_rows, to_shared._replace(kernels=kernels)

    if how.axes and not jax.typeof(lax.axis_index(how.axis_name)).mat.varying:
        # Inside `jax.shard_map(check_vma=False)` only JAX knows what a transpose has to add up.
        dot = along(*jax.tree.map(widened, (primals, dots)))
    else:
        # The transpose that JAX would make of this loop keeps, besides the kernel's gradient,
        # another array of its size.
        dot = xla.linear(along, transposed, primals, dots, smooth)
    return found, combine(dot, unmoved(others))


_of_blocks.defjvp(_of_blocks_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def sum_of_losses(rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The sum of the results, of which there is one per example."""
    return jnp.sum(_of_blocks(rows, shared, how, False))


def _sum_of_losses_jvp(how, primals, tangents):
    # Here the factor of every loss is known, so that a block's gradient can be made while its
    # logits exist: with three products of the kernel's size in all instead of four.
    (rows, shared), dots = _differentiated(primals, tangents)
    if how.classes is None:
        losses, found = _results_and_gradients(rows, shared, None, dots, how, False)
        dot = gradients.along(found, dots, how)
    else:
        losses, found, slopes = _results_and_slopes(rows, shared, None, dots, how)
        kernels, dots = dots[1].kernels, (dots[0], dots[1]._replace(kernels=found[1].kernels))
        dot = gradients.along(found, dots, how)
        if jax.tree.leaves(kernels):
            # A kernel's gradient is rounded once: after the factor, and whole.
            dot += xla.linear(
                lambda known, kernels: gradients.along_kernels(*known, kernels, how),
                lambda known, factor: gradients.of_kernels(*known, factor, kernels, how),
                (_same(rows, how), slopes),
                kernels,
                jnp.sum(losses),
            )
    return meshes.agreed(jnp.sum(losses), how.axes), dot


sum_of_losses.defjvp(_sum_of_losses_jvp, symbolic_zeros=True)


def _differentiated(
    primals: tuple[Rows, Shared], tangents: tuple[Rows, Shared]
) -> tuple[tuple[Rows, Shared], tuple[Rows, Shared]]:
    """The problem, and the tangents of those of its leaves that have one.

    Inside `jax.shard_map` the problem is made to vary over all devices, so that each finds its own
    part of a gradient. The tangents vary as they came, which tells over which devices the parts are
    added up.
    """
    return meshes.varying(primals, primals), tangents_of(tangents)


def _results_and_gradients(
    rows: Rows,
    shared: Shared,
    factors: Any,
    moving: tuple[Rows, Shared],
    how: How,
    sparse: bool,
) -> tuple[Any, tuple[Rows, Shared]]:
    """The results of all blocks, and the gradients of their sum, weighted by `factors`.

    The gradients are those of the leaves that `moving` has.
    """
    rows, shared, (rows_moving, shared_moving) = _same(rows, how), _whole(shared, how), moving

    def portion(so_far, rows_and_factors):
        rows, _ = rows_and_factors
        kernels, so_far = so_far.kernels, so_far._replace(kernels=None)
        so_far, (to_rows, found, slopes) = _slopes(so_far, rows_and_factors, shared, moving, how)

        def operands(x, kernel, slope, x_moving, kernel_so_far):
            if slope is None:
                return None, None
            inputs, slope = gradients.merged((rows.present(x), slope), how)
            if kernel_so_far is not None:
                kernel_so_far = add_to_kernel(kernel_so_far, slope, inputs, how.precision)
            if x_moving is None:
                return None, kernel_so_far
            return _of_inputs(slope, kernel, rows, x, x_moving, how), kernel_so_far

        layers = rows.inputs, shared.kernels, slopes, rows_moving.inputs, kernels
        of_inputs, kernels = zip(*map(operands, *layers), strict=True)
        return so_far._replace(kernels=kernels), (to_rows._replace(inputs=of_inputs), found)

    portions, besides = (rows, factors), shared if sparse else None
    if how.blocks > 1:
        portions = jax.tree.map(lambda x: x.reshape(-1, how.blocks, *x.shape[1:]), portions)
    to_shared, out = scan(portion, _nothing(shared, shared_moving), portions, besides)
    if how.blocks > 1:
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    to_rows, found = out
    return found, (to_rows, to_shared)


def _results_and_slopes(
    rows: Rows, shared: Shared, factors: Any, moving: tuple[Rows, Shared], how: How
) -> tuple[Any, tuple[Rows, Shared], gradients.Slopes]:
    """`_results_and_gradients`, with the gradients of all logits in place of the kernels'."""
    rows, shared, (rows_moving, shared_moving) = _same(rows, how), _whole(shared, how), moving
    nothing = _nothing(shared, shared_moving)._replace(kernels=None)

    def block(so_far, rows_and_factors):
        rows, _ = rows_and_factors
        so_far, (to_rows, found, slopes) = _slopes(so_far, rows_and_factors, shared, moving, how)
        slopes = xla.apart(slopes)
        of_inputs = tuple(
            None if x_moving is None else _of_inputs(slope, kernel, rows, x, x_moving, how)
            for slope, kernel, x, x_moving in zip(
                slopes, shared.kernels, rows.inputs, rows_moving.inputs, strict=True
            )
        )
        return so_far, (to_rows._replace(inputs=of_inputs), found, slopes)

    to_shared, (to_rows, found, slopes) = scan(block, nothing, (rows, factors))
    none = (None,) * len(shared.kernels)
    return found, (to_rows, to_shared._replace(kernels=none)), slopes


def _slopes(
    so_far: Shared, rows_and_factors: Any, shared: Shared, moving: tuple[Rows, Shared], how: How
) -> tuple[Shared, tuple[Rows, Any, gradients.Slopes]]:
    """All gradients but those of inputs and kernels; results; and the gradients of the logits."""
    rows_moving, shared_moving = moving
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

    if how.blocks == 1 or how.classes is not None:
        return block(so_far, rows_and_factors)
    return scan(block, so_far, rows_and_factors)


def _of_inputs(
    slope: Slope, kernel: jax.Array, rows: Rows, x: jax.Array, like: jax.Array, how: How
) -> jax.Array:
    found = rows.present(to_inputs(slope, kernel, how.precision).reshape(x.shape))
    found = meshes.summed(found, like)
    # What float16 cannot hold the mean may still divide.
    return found if is_narrow(x) else found.astype(x.dtype)


def _whole(shared: Shared, how: How) -> Shared:
    return shared._replace(kernels=how.whole(shared.kernels))


def _nothing(shared: Shared, moving: Shared) -> Shared:
    """The gradient so far: a half kernel's is rounded once, when it is whole."""
    own = partition(shared, moving)[0]
    return jax.tree.map(lambda x: jnp.zeros_like(x, checks.wide(x.dtype)), own)


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
    """The examples, with labels and mask that JAX knows to be the same on all devices."""
    labels = rows.labels
    if labels is not None and not jnp.issubdtype(labels.dtype, jnp.floating):
        labels = meshes.agreed(labels, how.axes)
    return rows._replace(labels=labels, where=meshes.agreed(rows.where, how.axes))
