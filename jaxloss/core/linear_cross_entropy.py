"""Softmax cross entropy of a linear layer's outputs, of which only a few rows exist at a time."""

from __future__ import annotations

import functools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss import _checks, _numerics
from jaxloss._public import public
from jaxloss.core import _classes, cross_entropy
from jaxloss.core._classes import AxisName

# Logits made at a time by default, and examples with which the products are limited by arithmetic
# rather than by reading and writing the kernel's gradient, even if they make more logits than that.
_PORTION = 2**22
_ENOUGH = 1024


@public(
    static=("chunk_size", "axis_name"),
    domain={"label_smoothing": _checks.FRACTION},
    absent_at_zero=("label_smoothing", "z_loss"),
)
def linear_softmax_cross_entropy(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Cross entropy between the softmax of `inputs @ kernel.T + bias` and the labels.

    loss = softmax_cross_entropy(logits, labels), logits_c = inputs · kernel_c + bias_c, without
    ever holding the logits of all examples, in either direction of differentiation.

    Everything else is as in `softmax_cross_entropy_with_integer_labels`, and for class
    probabilities as in `softmax_cross_entropy`. A bad label gives NaN in its own loss and the
    gradient of its own input; the gradient of the kernel, which all examples share, is NaN then.
    The gradient of a sum or mean is cheaper from `jaxloss.functional.linear_cross_entropy`, which
    makes it along with the loss.

    Args:
      inputs: floating-point array (..., D), features.
      kernel: (C, D), one row of weights per class: the table of a tied embedding as it is.
      labels: class indices, integer (...), or class probabilities, floating-point (..., C).
      bias: (C,).
      where: boolean, (..., 1) or broadcastable to it with its rank: the examples that take part.
        The others have loss and gradient 0, whatever they hold.
      class_weights: one weight per class, shape (C,).
      label_smoothing: the share of the label spread evenly over the classes, in [0, 1].
      z_loss: factor of the squared log normaliser, which keeps it near 0.
      chunk_size: bounds the memory: the logits that exist at a time are about as many as
        `chunk_size` classes have for all examples, and at least those of one example. By default
        4 million, or those of min(D, 1024) examples where that is more.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; labels
        are then global class indices, and `kernel`, `bias` and `class_weights` the local part.

    Returns:
      One loss per example, shape (...); at least float32.

    Raises:
      TypeError: `inputs` is not floating-point, or `labels` neither integer nor floating-point.
      ValueError: the shapes, `label_smoothing` or `chunk_size` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> inputs = jnp.array([[1.0, 2.0], [0.0, -1.0]])
      >>> embedding = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
      >>> losses = jaxloss.linear_softmax_cross_entropy(inputs, embedding, jnp.array([1, 3]))
      >>> print(losses)
      [0.7052 1.09  ]

    Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, arXiv:2411.09009;
    as `softmax_cross_entropy`.
    """
    rows, shared = problem(
        inputs,
        kernel,
        labels,
        bias=bias,
        where=where,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        chunk_size=chunk_size,
        axis_name=axis_name,
    )
    return losses(rows, shared, jnp.shape(inputs)[:-1], axis_name)


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


def problem(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None,
    where: ArrayLike | None,
    class_weights: ArrayLike | None,
    label_smoothing: ArrayLike,
    z_loss: ArrayLike,
    chunk_size: int | None,
    axis_name: AxisName,
    copies: int = 1,
) -> tuple[Rows, Shared]:
    """Checks the arguments, and cuts the examples into blocks.

    The arguments are those of `linear_softmax_cross_entropy`; of `copies` vmapped ones, the blocks
    are as much smaller.
    """
    inputs, kernel = _checks.arrays(inputs=inputs, kernel=kernel)
    if not inputs.ndim:
        _checks.fail(ValueError, "inputs", "have shape (..., D)", inputs.shape)
    features = inputs.shape[-1]
    if kernel.ndim != 2 or kernel.shape[1] != features:
        _checks.fail(ValueError, "kernel", f"have shape (C, {features})", kernel.shape)
    if not len(kernel):
        _checks.fail(ValueError, "kernel", "hold a row for at least one class", kernel.shape)
    classes = len(kernel)
    per_class = {
        name: _checks.follower(name, value, inputs)
        for name, value in {"bias": bias, "class_weights": class_weights}.items()
    }
    for name, value in per_class.items():
        if value is not None and value.shape != (classes,):
            _checks.fail(ValueError, name, f"have shape ({classes},)", value.shape)
    where = _checks.mask(where, "inputs", inputs)
    if where is not None:
        if where.shape[-1] != 1:
            _checks.fail(ValueError, "where", "have size 1 along the features", where.shape)
        where = jnp.broadcast_to(where[..., 0], inputs.shape[:-1])
    labels = _labels(labels, inputs, classes, where, axis_name)
    terms = cross_entropy.Terms(
        per_class["class_weights"],
        cross_entropy.factor("label_smoothing", label_smoothing, inputs),
        cross_entropy.factor("z_loss", z_loss, inputs),
    )
    shared = Shared(kernel, per_class["bias"], terms)
    rows = Rows(inputs, labels, where)
    if inputs.ndim != 2:
        count = math.prod(inputs.shape[:-1])
        rows = jax.tree.map(lambda x: x.reshape(count, *x.shape[inputs.ndim - 1 :]), rows)
    return _in_blocks(rows, _block_count(rows, shared, chunk_size, copies)), shared


def _labels(labels, inputs, classes, where, axis_name):
    labels = jnp.asarray(labels)
    shape = inputs.shape[:-1]
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.shape != (*shape, classes):
            rule = f"have shape {(*shape, classes)}, as class probabilities"
            _checks.fail(ValueError, "labels", rule, labels.shape)
        where = where if where is None else where[..., None]
        within = (labels >= 0) & (labels <= 1)
        _checks.require(within, "labels", "be probabilities in [0, 1]", where)
        return labels.astype(inputs.dtype)
    labels = _checks.labels("labels", labels, shape)
    if axis_name is not None:
        classes = classes * lax.axis_size(axis_name)
    rule = f"be a class in [0, {classes}) that takes part"
    _checks.require((labels >= 0) & (labels < classes), "labels", rule, where)
    return labels


def _block_count(rows: Rows, shared: Shared, chunk_size: int | None, copies: int) -> int:
    """In how many blocks the examples go through; one that divides them, if there is one near."""
    examples, features = rows.inputs.shape
    classes = len(shared.kernel)
    if chunk_size is None:
        fewest = -(-copies * examples * classes // max(_PORTION, classes * min(features, _ENOUGH)))
    elif not isinstance(chunk_size, numbers.Integral) or chunk_size < 1:
        _checks.fail(ValueError, "chunk_size", "be an integer of 1 or more", chunk_size)
    else:
        fewest = -(-classes // chunk_size)
    fewest = max(1, min(fewest, examples))
    near = range(fewest, min(2 * fewest, examples) + 1)
    return next((count for count in near if examples % count == 0), fewest)


def _in_blocks(rows: Rows, blocks: int) -> Rows:
    """Cuts the examples into blocks, each with its share of every device's examples."""
    examples = len(rows.inputs)
    size = -(-examples // blocks)
    if size * blocks > examples:
        where = jnp.ones(examples, bool) if rows.where is None else rows.where
        rows = jax.tree.map(
            lambda x: jnp.pad(x, [(0, size * blocks - examples)] + [(0, 0)] * (x.ndim - 1)),
            rows._replace(where=where),
        )
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(size, blocks, *x.shape[1:]), 1, 0), rows)


def losses(rows: Rows, shared: Shared, shape: tuple[int, ...], axis_name: AxisName) -> jax.Array:
    """One loss per example, as an array of the shape."""
    found = _losses_of_blocks(rows, shared, axis_name)
    return jnp.moveaxis(found, 0, 1).reshape(-1)[: math.prod(shape)].reshape(shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _losses_of_blocks(rows: Rows, shared: Shared, axis_name: AxisName) -> jax.Array:
    return _scan(lambda _, rows: (None, _block(rows, shared, axis_name)), None, rows)[1]


def _losses_of_blocks_jvp(axis_name, primals, tangents):
    (rows, shared), moving, dots = _movement(*primals, *tangents)

    def along(given, dots):
        rows, shared = given

        def block(_, rows_and_dot):
            rows, own_dot = rows_and_dot

            def loss(own, common):
                return _block(*_with(rows, shared, moving, own, common), axis_name)

            # Not keeping the logits for the backward pass is what bounds the memory.
            loss = jax.checkpoint(loss, prevent_cse=False)
            leaves = _leaves(rows, moving[0]), _leaves(shared, moving[1])
            return None, jax.jvp(loss, leaves, (own_dot, dots[1]))[1]

        return _scan(block, None, (rows, dots[0]))[1]

    def gradients(given, factors):
        rows, shared = given
        return _losses_and_gradients(rows, shared, factors, moving, axis_name)[1]

    found = _losses_of_blocks(rows, shared, axis_name)
    if axis_name is not None:  # JAX's equations cannot vary over some devices in parts.
        return found, along((rows, shared), dots)
    # The transpose that JAX would make of this loop keeps, besides the kernel's gradient, another
    # array of its size.
    return found, _numerics.linear(along, gradients, (rows, shared), dots, found)


_losses_of_blocks.defjvp(_losses_of_blocks_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def total(rows: Rows, shared: Shared, axis_name: AxisName) -> jax.Array:
    """The sum of the losses."""
    return jnp.sum(_losses_of_blocks(rows, shared, axis_name))


def _total_jvp(axis_name, primals, tangents):
    # Here the factor of every loss is known, so that a block's gradient can be made while its
    # logits exist: with three products of the kernel's size in all instead of four.
    (rows, shared), moving, dots = _movement(*primals, *tangents)
    found, gradients = _losses_and_gradients(rows, shared, None, moving, axis_name)
    parts = jax.tree.map(lambda gradient, dot: jnp.sum(gradient * dot), gradients, dots)
    return jnp.sum(found), sum(jax.tree.leaves(parts))


total.defjvp(_total_jvp, symbolic_zeros=True)


def _losses_and_gradients(rows, shared, factors, moving, axis_name):
    """The losses of all blocks, and the gradients of their sum, weighted by `factors`.

    The gradients are those of the leaves that are `moving`.
    """
    inputs_moving, kernel_moving = (0 in which for which in moving)

    def block(so_far, rows_and_factors):
        rows, factors = rows_and_factors
        if factors is None:
            # No constant: its 1 would be stored in the logits' shape, see `_numerics.where`.
            factors = (jnp.any(rows.inputs == 0, -1) | True).astype(rows.inputs.dtype)

        def loss(own, common, product):
            return _losses(product, *_with(rows, shared, moving, own, common), axis_name)

        inputs = _present(rows, rows.inputs)
        product, to_inputs = jax.vjp(lambda x: _product(x, shared.kernel), inputs)
        leaves = _leaves(rows, moving[0]), _leaves(shared, moving[1])
        losses, backward = jax.vjp(loss, *leaves, product)
        own, common, slope = backward(factors)
        if inputs_moving:
            own[0] = _present(rows, *to_inputs(slope))
        if not kernel_moving:
            return jax.tree.map(jnp.add, so_far, common), (own, losses)
        kernel_gradient = _add_product(so_far[0], slope, inputs)
        others = jax.tree.map(jnp.add, so_far[1:], common[1:])
        return [kernel_gradient, *others], (own, losses)

    # Zeros that vary over the devices of `jax.shard_map` as the leaves do.
    nothing = [((x == 0) & False).astype(x.dtype) for x in _leaves(shared, moving[1])]
    common, (own, losses) = _scan(block, nothing, (rows, factors))
    return losses, (own, common)


def _movement(rows, shared, rows_dot, shared_dot):
    """The problem, which of its leaves have a tangent, and these tangents."""
    moving = _moving(rows_dot), _moving(shared_dot)
    dots = _leaves(rows_dot, moving[0]), _leaves(shared_dot, moving[1])
    # Made of the labels, so that inside `jax.shard_map` gradients add up here until the end.
    zero = jnp.any(rows.labels == 0) & False
    shared, dots = jax.tree.map(lambda x: x + zero.astype(x.dtype), (shared, dots))
    return (rows, shared), moving, dots


def _moving(tangents: NamedTuple) -> list[int]:
    """Which of the leaves have a tangent."""
    leaves = jax.tree.leaves(tangents, is_leaf=lambda x: isinstance(x, SymbolicZero))
    return [i for i, x in enumerate(leaves) if not isinstance(x, SymbolicZero)]


def _leaves(tree: NamedTuple, which: list[int]) -> list[jax.Array]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, SymbolicZero))
    return [leaves[i] for i in which]


def _with(rows: Rows, shared: Shared, moving, own: list, common: list) -> tuple[Rows, Shared]:
    """The problem with the leaves exchanged that are moving."""

    def exchanged(tree, which, values):
        leaves, structure = jax.tree.flatten(tree)
        for i, value in zip(which, values, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(structure, leaves)

    return exchanged(rows, moving[0], own), exchanged(shared, moving[1], common)


def label_weights(rows: Rows, shared: Shared) -> jax.Array:
    """The weight of each example: that of its label's class, or 1; 0 where it takes no part."""

    def block(_, rows):
        inputs, labels, where = rows
        part = jnp.ones(len(inputs), bool) if where is None else where
        if jnp.issubdtype(labels.dtype, jnp.floating):
            return None, part.astype(inputs.dtype)
        weights = shared.terms.class_weights
        part = part & (labels >= 0) & (labels < len(shared.kernel))
        if weights is None:
            return None, part.astype(inputs.dtype)
        classes = jnp.arange(len(weights), dtype=labels.dtype)
        hot = part[:, None] & (labels[:, None] == classes[None])
        return None, jnp.sum(_numerics.where(hot, weights[None], 0), 1)

    return _scan(block, None, rows)[1]


def _block(rows: Rows, shared: Shared, axis_name: AxisName) -> jax.Array:
    """The losses of one block."""
    product = _product(_present(rows, rows.inputs), shared.kernel)
    return _losses(product, rows, shared, axis_name)


def _losses(product, rows, shared, axis_name):
    """The losses of one block, from `inputs @ kernel.T`."""
    _, bias, terms = shared
    logits = product if bias is None else product + bias[None]
    labels = _present(rows, rows.labels)
    if terms.class_weights is not None:
        terms = terms._replace(class_weights=terms.class_weights[None])
    if jnp.issubdtype(labels.dtype, jnp.floating):
        losses = cross_entropy.losses_of_probabilities(logits, labels, None, terms, (1,), axis_name)
    else:
        found = _classes.locate(labels, logits, (1,), None, axis_name)
        losses = cross_entropy.losses_of_labels(logits, found, None, terms, (1,), axis_name)
    return _present(rows, losses)


def _present(rows, x):
    """0 for the examples of a block that take no part; a mask of the logits is not needed then."""
    return x if rows.where is None else jnp.where(rows.where.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def _product(inputs, kernel):
    return lax.dot_general(inputs, kernel, (((1,), (1,)), ((), ())))


def _add_product(so_far, slope, inputs):
    """so_far + slope.T @ inputs, with no more besides than another array of the size of `slope`."""
    size, features = inputs.shape
    width = max(1, size // 2)

    def add(so_far, inputs):
        # The transpose of the product goes where the product came from on a mesh.
        backward = jax.vjp(lambda kernel: _product(inputs, kernel), so_far)[1]
        return so_far + backward(slope)[0]

    def portion(start, width, so_far):
        old, some = (lax.dynamic_slice_in_dim(x, start, width, 1) for x in (so_far, inputs))
        return lax.dynamic_update_slice_in_dim(so_far, add(old, some), start, 1)

    if size >= features:
        return add(so_far, inputs)
    whole, rest = divmod(features, width)
    so_far = lax.fori_loop(0, whole, lambda i, x: portion(i * width, width, x), so_far)
    return portion(whole * width, rest, so_far) if rest else so_far


def _scan(f, carry, blocks):
    """`lax.scan`, without a loop where there is one block only."""
    if len(jax.tree.leaves(blocks)[0]) > 1:
        return lax.scan(f, carry, blocks)
    carry, out = f(carry, jax.tree.map(lambda x: x[0], blocks))
    return carry, jax.tree.map(lambda x: x[None], out)
