"""Examples cut into portions and blocks that suit every device, and put together again."""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import checks, meshes
from jaxloss.core.linear.problem import How, Rows, Shared
from jaxloss.core.linear.products import rounds

T = TypeVar("T")

# How many logits a block makes by default; and how many examples it has even if they make more, for
# with these the products are limited by arithmetic rather than by reading and writing the kernel's
# gradient.
_BLOCK_LOGITS = 2**22
_BLOCK_EXAMPLES = 1024

# Where devices share a kernel: into how many blocks their examples are cut, unless these are too
# few for a product to be limited by arithmetic, and how many numbers of the kernel's gradient are
# made at a time, of whole tiles of classes.
_SHARED_BLOCKS = 16
_SHARED_BLOCK_EXAMPLES = 256
_PORTION = 2**24
_LANES = 128


def cut(
    rows: Rows, shared: Shared, how: How, chunk_size: int | None, copies: int = 1
) -> tuple[Rows, How]:
    """The examples as (blocks, examples of a block), along their longest dimension.

    With `copies` vmapped problems the blocks are smaller by that factor. Where examples may be
    spread over devices, each block has its share of every device's.
    """
    rows = flat(rows)
    axis = _longest(rows.shape)
    count, blocks, classes = _counts(rows, shared, how, chunk_size, copies)

    def divided(x):
        size = x.shape[axis] // count
        parts = (count, size) if meshes.is_local() else (size, count)
        x = x.reshape(*x.shape[:axis], *parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis if meshes.is_local() else axis + 1, 0)

    return jax.tree.map(divided, padded(rows, count)), how._replace(blocks=blocks, classes=classes)


def whole(blocks: T, rows: Rows) -> T:
    """What was found for each example, in the places that examples had before `cut`."""
    shape = _flat_shape(rows.shape)
    axis = _longest(shape)

    def joined(x):
        rest = x.shape[1 + len(shape) :]
        x = jnp.moveaxis(x, 0, axis if meshes.is_local() else axis + 1)
        merged = x.shape[axis] * x.shape[axis + 1]
        x = x.reshape(*shape[:axis], merged, *shape[axis + 1 :], *rest)
        return lax.slice_in_dim(x, 0, shape[axis], axis=axis).reshape(*rows.shape, *rest)

    return jax.tree.map(joined, blocks)


def _longest(shape: tuple[int, ...]) -> int:
    return max(range(len(shape)), key=shape.__getitem__)


def padded(rows: Rows, blocks: int) -> Rows:
    """Examples that can be cut into so many blocks, with absent ones behind if need be."""
    axis = _longest(rows.shape)
    missing = -rows.shape[axis] % blocks
    if not missing:
        return rows
    where = jnp.ones(rows.shape, bool) if rows.where is None else rows.where
    pad = [(0, missing) if a == axis else (0, 0) for a in range(len(rows.shape))]
    return jax.tree.map(
        lambda x: jnp.pad(x, pad + [(0, 0)] * (x.ndim - len(pad))), rows._replace(where=where)
    )


def flat(rows: Rows) -> Rows:
    """The examples in one dimension, except where the compiler may have spread two of them."""
    dimensions, shape = len(rows.shape), _flat_shape(rows.shape)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[dimensions:]), rows)


def _flat_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) > 1 and meshes.spread() > 1 else (math.prod(shape),)


def _counts(
    rows: Rows, shared: Shared, how: How, chunk_size: int | None, copies: int
) -> tuple[int, int, int | None]:
    """In how many blocks the examples go through, and how many of these make a portion.

    And for how many classes a kernel's gradient is made at a time, if not for all.
    """
    examples, features = math.prod(rows.shape), max(1, rows.inputs[0].shape[-1])
    # Each device has its share of a block.
    most = max(rows.shape) // math.gcd(max(rows.shape), meshes.spread())
    count = portions = min(fewest(rows, shared, chunk_size, copies), max(1, most))
    if chunk_size is None and any(rounds(x, how.precision) for x in rows.inputs):
        # The gradients of so many logits are as large as the kernel in float32, which is needed
        # besides only if they are more.
        at_once = -(-copies * examples // meshes.spread())
        shared_kernel = meshes.are_shared((rows.inputs, shared.kernels))
        if at_once <= 2 * features and shared_kernel:
            blocks = min(_SHARED_BLOCKS, -(-at_once // _SHARED_BLOCK_EXAMPLES))
            count = divisor_near(most, max(count, blocks))
            return count, count, max(_LANES, _PORTION // features // _LANES * _LANES)
        # Where devices share the kernel they have other things to hold besides.
        portion = max(1, features // 2) if shared_kernel else features
        portions = 1 if at_once <= 2 * features else min(count, -(-at_once // portion))
    blocks = -(-count // portions)
    return divisor_near(most, portions * blocks, blocks), blocks, None


def fewest(rows: Rows, shared: Shared, chunk_size: int | None, copies: int) -> int:
    """In how many blocks the examples go through at least."""
    examples, classes = math.prod(rows.shape), len(shared.kernels[0])
    features = rows.inputs[0].shape[-1]
    if chunk_size is None:
        logits = classes * len(shared.kernels)  # Of each example.
        most = max(_BLOCK_LOGITS, logits * min(features, _BLOCK_EXAMPLES)) * meshes.spread()
        return max(1, -(-copies * examples * logits // most))
    checks.at_least(1, "chunk_size", chunk_size)
    return -(-classes // chunk_size)


def divisor_near(examples: int, fewest: int, step: int = 1) -> int:
    """At least so many blocks, in steps; a divisor of the examples, if there is one near."""
    fewest = max(step, min(fewest, examples // step * step))
    near = range(fewest, min(2 * fewest, examples) + 1, step)
    return next((count for count in near if examples % count == 0), fewest)
