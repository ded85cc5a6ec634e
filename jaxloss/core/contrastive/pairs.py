"""Numbers for each example from its similarities to all others: in blocks, around the ring.

A block has all rows of this device and some of the columns. Its similarities exist only while it is
worked on: once for the numbers, and once more for their gradient. Where examples are spread over
devices the rows stay, and the columns go round from device to device, together with what is summed
for them, until they are home again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._base import meshes, xla
from jaxloss.core.classes.axes import AxisName
from jaxloss.core.contrastive.statistics import Count, LogSum, Parts, SoftplusSum, Sum, merged
from jaxloss.core.linear.products import Slope, product, rounds, to_inputs
from jaxloss.core.linear.scanning import scan

T = TypeVar("T")

BLOCK_SCORES = 2**22  # How many similarities a block makes by default.


class Side(NamedTuple):
    """The examples in the rows, or those in the columns."""

    embeddings: jax.Array  # (N, D), float32 at least.
    labels: jax.Array  # (N,)
    places: jax.Array | None = None  # (N,), which tell apart examples of the same label.
    where: jax.Array | None = None  # (N,), which of them take part.


class Pairs(NamedTuple):
    """Rows and columns with z_ij = scale · row_i · column_j + bias."""

    rows: Side
    columns: Side
    scale: jax.Array
    bias: jax.Array | None = None


class Statistic(NamedTuple):
    """A number for each example: a sum over those of other labels, or of its own."""

    kind: type[LogSum | Sum | Count | SoftplusSum]
    positive: bool = False


class How(NamedTuple):
    """What shapes the computation."""

    of_rows: tuple[Statistic, ...]
    of_columns: tuple[Statistic, ...]
    operands: Any  # The dtype in which embeddings go into the products.
    chunk_size: int
    axis_name: AxisName = None


class Moved(NamedTuple):
    """The tangents of what is differentiated; None for what is not."""

    rows: jax.Array | None  # Of scale · row_i, (N, D).
    columns: jax.Array | None
    bias: jax.Array | None


def found(pairs: Pairs, how: How) -> tuple[list[jax.Array], list[jax.Array]]:
    """The numbers of the rows and those of the columns, each (N,)."""
    columns = pairs.columns
    count, length = _blocks(len(columns.labels), how)
    if columns.where is None and count * length > len(columns.labels):
        columns = columns._replace(where=jnp.ones_like(columns.labels, bool))  # To tell padding.
    pairs = pairs._replace(columns=columns)
    both = [*_statistics(meshes.varying(pairs, pairs), how)]
    return both[: len(how.of_rows)], both[len(how.of_rows) :]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _statistics(pairs: Pairs, how: How) -> jax.Array:
    """The numbers of the rows and then those of the columns, each (N,), as one array."""
    rows, scale, bias = pairs.rows, pairs.scale, pairs.bias

    def block(here, columns):
        z = _added(scale * _product(rows.embeddings, columns.embeddings, how), bias)

        def parts(statistics, axis):
            return [s.kind.parts(z, _mask(s, rows, columns), axis) for s in statistics]

        return _merged(here, parts(how.of_rows, 1)), parts(how.of_columns, 0)

    nothing = jnp.zeros_like(rows.embeddings[:, 0])
    start = [Parts(nothing, nothing) for _ in how.of_rows]
    here, there = _around(block, start, pairs.columns, _merged, how)
    both = zip((*how.of_rows, *how.of_columns), (*here, *there), strict=True)
    return jnp.stack([s.kind.value(parts) for s, parts in both])


def _statistics_jvp(how, primals, tangents):
    # Autodiff would keep the similarities of all blocks, and so all of them.
    pairs, found = primals[0], _statistics(*primals, how)
    moved = _moved(pairs, tangents[0])

    def along(given: tuple[Pairs, jax.Array], moved: Moved) -> jax.Array:
        pairs, found = given
        rows, scale, bias = pairs.rows, pairs.scale, pairs.bias
        of_rows, of_columns = jnp.split(found, [len(how.of_rows)])

        def block(here, there):
            columns, of_columns, columns_dot = there
            # In float32: there halves and their tangents are exact, to any order.
            z = _added(scale * product(rows.embeddings, columns.embeddings, None), bias)
            z_dot = jnp.zeros_like(z)
            if moved.rows is not None:
                z_dot = z_dot + product(moved.rows, columns.embeddings, None)
            if columns_dot is not None:
                z_dot = z_dot + scale * product(rows.embeddings, columns_dot, None)
            z_dot = _added(z_dot, moved.bias)

            def sums(statistics, values, axis):
                slopes = _slopes(statistics, z, rows, columns, values)
                return [jnp.sum(slope * z_dot, axis) for slope in slopes]

            here = _sum(here, sums(how.of_rows, of_rows[:, :, None], 1))
            return here, sums(how.of_columns, of_columns.T[:, None], 0)

        start = [jnp.zeros_like(x) for x in of_rows]
        travelling = pairs.columns, of_columns.T, moved.columns
        here, there = _around(block, start, travelling, _sum, how)
        return jnp.stack([*here, *there])

    def gradients(given: tuple[Pairs, jax.Array], factors: jax.Array) -> Moved:
        pairs, found = given
        rows, scale, bias = pairs.rows, pairs.scale, pairs.bias
        of_rows, of_columns = jnp.split(found, [len(how.of_rows)])
        by_rows, by_columns = jnp.split(factors, [len(how.of_rows)])

        def block(here, there):
            columns, of_columns, by_columns = there
            z = _added(scale * _product(rows.embeddings, columns.embeddings, how), bias)
            slope = jnp.zeros_like(z)
            for statistics, values, factors in (
                (how.of_rows, of_rows[:, :, None], by_rows[:, :, None]),
                (how.of_columns, of_columns.T[:, None], by_columns.T[:, None]),
            ):
                parts = _slopes(statistics, z, rows, columns, values)
                slope = sum((f * s for f, s in zip(factors, parts, strict=True)), start=slope)
            to_columns = None
            if moved.columns is not None:
                to_columns = scale * _product_back(slope, rows.embeddings, 0, how)
            new = Moved(
                None if here.rows is None else _product_back(slope, columns.embeddings, 1, how),
                None,
                None if here.bias is None else jnp.sum(slope),
            )
            return _sum(here, new), to_columns

        start = jax.tree.map(jnp.zeros_like, moved._replace(columns=None))
        travelling = pairs.columns, of_columns.T, by_columns.T
        here, to_columns = _around(block, start, travelling, _sum, how)
        return here._replace(columns=to_columns)

    return found, xla.linear(along, gradients, (pairs, found), moved, found)


_statistics.defjvp(_statistics_jvp, symbolic_zeros=True)


def _moved(pairs: Pairs, dots: Pairs) -> Moved:
    rows, columns, scale, bias = (
        None if x is None or isinstance(x, SymbolicZero) else x
        for x in (dots.rows.embeddings, dots.columns.embeddings, dots.scale, dots.bias)
    )
    rows = None if rows is None else pairs.scale * rows
    if scale is not None:
        rows = _added(scale * pairs.rows.embeddings, rows)
    return Moved(rows, columns, bias)


def _mask(statistic: Statistic, rows: Side, columns: Side) -> jax.Array:
    """Which pairs a number is made of."""
    mask = (rows.labels[:, None] == columns.labels[None]) == statistic.positive
    if statistic.positive and rows.places is not None and columns.places is not None:
        mask = mask & (rows.places[:, None] != columns.places[None])
    if rows.where is not None:
        mask = mask & rows.where[:, None]
    return mask if columns.where is None else mask & columns.where[None]


def _slopes(statistics, z, rows, columns, values):
    pairs = zip(statistics, values, strict=True)
    return [s.kind.slope(z, _mask(s, rows, columns), value) for s, value in pairs]


def _product(x: jax.Array, y: jax.Array, how: How) -> jax.Array:
    """x @ y.T, of halves as they are, summed in float32."""
    return product(x.astype(how.operands), y.astype(how.operands), None)


def _product_back(slope: jax.Array, x: jax.Array, axis: int, how: How) -> jax.Array:
    """The sum over one axis of the slopes, each times its row of x."""
    operands = x.astype(how.operands)
    operands = operands if rounds(operands, None) else x
    slope = slope if axis else slope.T
    return to_inputs(Slope.of(slope, operands, None), operands, None)


def _added(x: jax.Array, y: jax.Array | None) -> jax.Array:
    return x if y is None else x + y


def _sum(one: T, other: T) -> T:
    return jax.tree.map(jnp.add, one, other)


def _merged(one: list[Parts], other: list[Parts]) -> list[Parts]:
    return [merged(*both) for both in zip(one, other, strict=True)]


def _around(
    f: Callable[[T, Any], tuple[T, Any]],
    here: T,
    columns: Any,
    merge: Callable[[Any, Any], Any],
    how: How,
) -> tuple[T, Any]:
    """f of every block of columns, of this device and then of all others.

    f(here, block) gives what becomes of `here`, and something for each column of the block. That
    comes back merged from all devices, for the columns of this one.
    """
    leaves = jax.tree.leaves(columns)
    size = len(leaves[0])
    count, length = _blocks(size, how)

    def cut(x):
        pad = [(0, count * length - size)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, pad).reshape(count, length, *x.shape[1:])

    columns = jax.tree.map(cut, columns)
    if how.axis_name is None:
        here, there = scan(f, here, columns)
    else:
        devices = lax.axis_size(how.axis_name)
        ring = [(i, (i + 1) % devices) for i in range(devices)]

        def step(state, _):
            here, columns, there = state
            here, new = scan(f, here, columns)
            moved_on = lax.ppermute((columns, merge(there, new)), how.axis_name, ring)
            return (here, *moved_on), None

        shapes = jax.eval_shape(functools.partial(scan, f), here, columns)[1]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = meshes.varying((here, columns, nothing), columns)
        (here, _, there), _ = lax.scan(step, start, length=devices)
    return here, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], there)


def _blocks(size: int, how: How) -> tuple[int, int]:
    """How many blocks of columns there are, and how many columns in each, the last padded."""
    count = max(1, -(-size // how.chunk_size))
    return count, -(-size // count)
