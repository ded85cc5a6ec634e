"""Softmax cross entropy of a linear layer's outputs, of which only a few rows exist at a time."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.sharding import AxisType
from jax.typing import ArrayLike

from jaxloss._base import checks
from jaxloss._base.call import public
from jaxloss.core import cross_entropy
from jaxloss.core.classes.axes import AxisName
from jaxloss.core.linear import blocks

# How many logits a block makes by default; and how many examples it has even if they make more, for
# with these the products are limited by arithmetic rather than by reading and writing the kernel's
# gradient.
_BLOCK_LOGITS = 2**22
_BLOCK_EXAMPLES = 1024

# Where few examples take part: into how many blocks the batch is cut, so that some may be left out,
# and of how many examples at least.
_SPARSE_BLOCKS = 16
_SPARSE_BLOCK_EXAMPLES = 64


@public(
    static=("chunk_size", "precision", "axis_name"),
    labels=("labels",),
    domain={"label_smoothing": checks.FRACTION},
    absent_at_default=("label_smoothing", "z_loss"),
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
    precision: PrecisionLike = None,
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

    Half operands go into the matrix products as they are, and are summed in float32; so are the
    blocks of the kernel's gradient. The gradient of the logits is rounded to the operands' dtype
    before its two products, unless `precision` is "highest". A float32 operand widens the other.

    Examples are taken in blocks, from their leading dimensions made one. Sharded over the first of
    these they stay where they are. Sharded over a later one, as sequences may be over time, every
    device gathers them all, or with explicit axis types JAX refuses: call this inside
    `jax.shard_map` over that axis, and `jaxloss.reduce` with its `axis_name`.

    Args:
      inputs: floating-point array (..., D), features.
      kernel: (C, D), one row of weights per class: the table of a tied embedding as it is. That
        of Flax's Dense or Linear is (D, C): give its `.T`. Where C = D nothing tells the two
        apart, and the loss without `.T` is another one.
      labels: class indices, integer (...), or class probabilities, floating-point (..., C).
      bias: (C,).
      where: boolean, (..., 1) or broadcastable to it with its rank: the examples that take part.
        The others have loss and gradient 0, whatever they hold.
      class_weights: one weight per class, shape (C,).
      label_smoothing: the share of the label spread evenly over the classes, in [0, 1].
      z_loss: factor of the squared log normalizer, which keeps it near 0.
      chunk_size: bounds the memory: the logits that exist at a time are about as many as
        `chunk_size` classes have for all examples, and at least those of one example. By default
        4 million, or those of min(D, 1024) examples where that is more.
      precision: of the matrix products, a `jax.lax.PrecisionLike`; "highest" also keeps the
        gradient of the logits in float32 where it would be rounded to the dtype of half operands.
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
    how = blocks.How(axis_name, precision)
    return blocks.losses(rows, shared, jnp.shape(inputs)[:-1], how)


def problem(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    chunk_size: int | None,
    copies: int = 1,
    **options: Any,
) -> tuple[blocks.Rows, blocks.Shared]:
    """Checks the arguments, and cuts the examples into blocks.

    The arguments are those of `linear_softmax_cross_entropy`; of `copies` vmapped ones, the blocks
    are as much smaller.
    """
    rows, shared = _checked(inputs, kernel, labels, **options)
    return blocks.in_blocks(rows, _block_count(rows, shared, chunk_size, copies)), shared


def losses_of_few(
    inputs: jax.Array, kernel: jax.Array, labels: jax.Array, where: jax.Array
) -> jax.Array:
    """`linear_softmax_cross_entropy` in a time that depends on how many examples take part."""
    if AxisType.Explicit in jax.typeof(inputs).sharding.mesh.axis_types:
        # There examples may not be moved between devices.
        return linear_softmax_cross_entropy(inputs, kernel, labels, where=where)
    rows, shared = _checked(inputs, kernel, labels, where=where)
    count = max(
        _block_count(rows, shared, None, 1),
        min(_SPARSE_BLOCKS, len(rows.inputs) // _SPARSE_BLOCK_EXAMPLES),
        1,
    )
    return blocks.losses_of_few(rows, shared, blocks.How(), count).reshape(labels.shape)


def _checked(
    inputs,
    kernel,
    labels,
    *,
    bias=None,
    where=None,
    class_weights=None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    axis_name=None,
) -> tuple[blocks.Rows, blocks.Shared]:
    """The problem, with one dimension of examples, not in blocks."""
    inputs, kernel = checks.operands(inputs=inputs, kernel=kernel)
    like = jnp.zeros((), checks.wide(inputs.dtype))  # What is no operand has its dtype.
    if not inputs.ndim:
        checks.fail(ValueError, "inputs", "have shape (..., D)", inputs.shape)
    features = inputs.shape[-1]
    if kernel.ndim != 2 or kernel.shape[1] != features:
        checks.fail(ValueError, "kernel", f"have shape (C, {features})", kernel.shape)
    if not len(kernel):
        checks.fail(ValueError, "kernel", "hold a row for at least one class", kernel.shape)
    classes = len(kernel)
    per_class = {
        name: checks.follower(name, value, like)
        for name, value in {"bias": bias, "class_weights": class_weights}.items()
    }
    for name, value in per_class.items():
        if value is not None and value.shape != (classes,):
            checks.fail(ValueError, name, f"have shape ({classes},)", value.shape)
    where = checks.mask(where, "inputs", inputs)
    if where is not None:
        if where.shape[-1] != 1:
            checks.fail(ValueError, "where", "have size 1 along the features", where.shape)
        where = jnp.broadcast_to(where[..., 0], inputs.shape[:-1])
    labels = _labels(labels, inputs, classes, where, axis_name)
    terms = cross_entropy.Terms(
        per_class["class_weights"],
        cross_entropy.factor("label_smoothing", label_smoothing, like),
        cross_entropy.factor("z_loss", z_loss, like),
    )
    shared = blocks.Shared(kernel, per_class["bias"], terms)
    rows = blocks.Rows(inputs, labels, where)
    if inputs.ndim != 2:
        count = math.prod(inputs.shape[:-1])
        rows = jax.tree.map(lambda x: x.reshape(count, *x.shape[inputs.ndim - 1 :]), rows)
    return rows, shared


def _labels(labels, inputs, classes, where, axis_name):
    labels = jnp.asarray(labels)
    shape = inputs.shape[:-1]
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.shape != (*shape, classes):
            rule = f"have shape {(*shape, classes)}, as class probabilities"
            checks.fail(ValueError, "labels", rule, labels.shape)
        where = where if where is None else where[..., None]
        within = (labels >= 0) & (labels <= 1)
        checks.require(within, "labels", "be probabilities in [0, 1]", where)
        return labels.astype(checks.wide(inputs.dtype))
    labels = checks.labels("labels", labels, shape)
    if axis_name is not None:
        classes = classes * lax.axis_size(axis_name)
    rule = f"be a class in [0, {classes}) that takes part"
    checks.require((labels >= 0) & (labels < classes), "labels", rule, where)
    return labels


def _block_count(
    rows: blocks.Rows, shared: blocks.Shared, chunk_size: int | None, copies: int
) -> int:
    """In how many blocks the examples go through; one that divides them, if there is one near."""
    examples, features = rows.inputs.shape
    classes = len(shared.kernel)
    if chunk_size is None:
        fewest = -(
            -copies
            * examples
            * classes
            // max(_BLOCK_LOGITS, classes * min(features, _BLOCK_EXAMPLES))
        )
    elif not isinstance(chunk_size, numbers.Integral) or chunk_size < 1:
        checks.fail(ValueError, "chunk_size", "be an integer of 1 or more", chunk_size)
    else:
        fewest = -(-classes // chunk_size)
    fewest = max(1, min(fewest, examples))
    near = range(fewest, min(2 * fewest, examples) + 1)
    return next((count for count in near if examples % count == 0), fewest)
