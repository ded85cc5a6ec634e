"""Softmax cross entropy of a linear layer's outputs, which are made only a few rows at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxloss._base import checks, meshes, xla
from jaxloss._base.call import public
from jaxloss.core import cross_entropy
from jaxloss.core.classes.axes import AxisName, ClassAxes
from jaxloss.core.classes.labels import locate, weights_at
from jaxloss.core.linear import blocks, cutting, mesh
from jaxloss.core.linear.examples import of_examples
from jaxloss.core.linear.problem import How, Layer, Rows, Shared, along_last
from jaxloss.core.linear.scanning import each

# Where few examples take part: into how many blocks the batch is cut, so that some may be left out,
# and of how many examples at least.
_SPARSE_BLOCKS = 16
_SPARSE_BLOCK_EXAMPLES = 64


@public(
    static=("chunk_size", "precision", "axis_name", "features_axis_name"),
    labels=("labels",),
    domain={"label_smoothing": checks.FRACTION, "softcap": checks.POSITIVE},
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
    softcap: ArrayLike | None = None,
    chunk_size: int | None = None,
    precision: PrecisionLike = None,
    axis_name: AxisName = None,
    features_axis_name: AxisName = None,
) -> jax.Array:
    """Cross entropy between the softmax of `inputs @ kernel.T + bias` and the labels.

    loss = softmax_cross_entropy(logits, labels), logits_c = inputs · kernel_c + bias_c, without
    ever holding the logits of all examples, neither forwards nor backwards.

    Everything else is as in `softmax_cross_entropy_with_integer_labels`, and for class
    probabilities as in `softmax_cross_entropy`. A bad label gives NaN in its own loss, in the
    gradient of its own input, and in that of the kernel, which all examples share.
    The gradient of a sum or mean is cheaper from `jaxloss.functional.linear_cross_entropy`, which
    computes it along with the loss, also inside `jax.shard_map`.

    Half operands go into the matrix products as they are, and sums are in float32, also over the
    blocks of the kernel's gradient. The gradient of the logits is rounded to the operands' dtype
    before its two products, unless `precision` is "highest". A float32 operand widens the other.

    Examples are taken in blocks. On one device the gradients of half logits are kept for several
    blocks at a time, so that their products are large. That takes as much memory as the kernel in
    float32, or with `chunk_size` as much as a block.

    On a mesh, examples and classes stay where they are, and the memory on each device is bounded.
    With explicit axis types, and inside `jax.shard_map` with `axis_name`, each device works
    through its own examples and its own classes, and only numbers per example travel; a kernel
    whose features are sharded like the examples is gathered once, and its gradient scattered
    once. With automatic axis types the compiler decides; tell it the mesh with `jax.set_mesh`,
    and the blocks are made for all devices together.

    For half operands on a mesh, where a device has up to twice as many examples as there are
    features, the gradients of all their logits are kept as halves, and a kernel's gradient is made
    of a portion of the classes at a time, which is added up over the devices, scattered and rounded
    before the next. With more examples, or a `chunk_size`, the kernel's gradient is a float32 sum.
    A kernel that a `jax.shard_map` gathers by itself is whole in the gradient as well: leave it to
    explicit axes, or to `features_axis_name` (`benchmarks/README.md` has the figures of 16 chips).

    Args:
      inputs: floating-point array (..., D), features.
      kernel: (C, D), one row of weights per class, as in the table of a tied embedding. Flax's
        Dense and Linear have (D, C): pass its `.T`. Where C = D nothing tells the two apart, and
        without `.T` the loss is wrong.
      labels: class indices, integer (...), or class probabilities, floating-point (..., C).
      bias: (C,).
      where: boolean, (..., 1) or broadcastable to it with its rank: the examples that take part.
        The others have loss and gradient 0, whatever they hold.
      class_weights: one weight per class, shape (C,).
      label_smoothing: the share of the label spread evenly over the classes, in [0, 1].
      z_loss: factor of the squared log normalizer, a term that keeps the normalizer near 1.
      softcap: a positive bound on the logits, which become softcap·tanh(logits / softcap).
      chunk_size: bounds the memory: about as many logits exist at a time as `chunk_size` classes
        have over all examples, and at least those of one example. By default 4 million logits, or
        those of min(D, 1024) examples where that is more.
      precision: of the matrix products, a `jax.lax.PrecisionLike`; "highest" also keeps the
        gradient of the logits in float32, instead of rounding it to the dtype of half operands.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; labels
        are then global class indices, and `kernel`, `bias` and `class_weights` the local part.
      features_axis_name: inside `jax.shard_map`, the mesh axis over which the features of `kernel`
        are sharded, as with FSDP; `inputs` have all of them.

    Returns:
      One loss per example, shape (...); at least float32.

    Raises:
      TypeError: `inputs` is not floating-point, or `labels` neither integer nor floating-point.
      ValueError: the shapes, `label_smoothing`, `softcap` or `chunk_size` do not fit.

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
        softcap=softcap,
        axis_name=axis_name,
        features_axis_name=features_axis_name,
    )
    features = (meshes.named(features_axis_name),)
    how = How(losses, axis_name, precision, features=features)
    return of_examples(rows, shared, how, chunk_size)


def losses(
    logits: tuple[jax.Array, ...],
    labels: jax.Array,
    terms: cross_entropy.Terms,
    classes: ClassAxes,
) -> jax.Array:
    """The objective: cross entropy of one layer's logits."""
    (scores,) = logits
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return cross_entropy.losses_of_probabilities(scores, labels, None, terms, classes)
    found = locate(labels, scores, classes)
    return cross_entropy.losses_of_labels(scores, found, None, terms, classes)


def sum_and_weights(
    rows: Rows, shared: Shared, how: How, chunk_size: int | None, *, copies: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The sum of all losses, and the weight of each; `copies` as in `of_examples`."""

    def found(rows, shared, how, axes):
        cut, how = cutting.cut(rows, shared, how, chunk_size, copies)
        weights = cutting.whole(_weights(cut, shared, how), rows)
        total = blocks.sum_of_losses(cut, shared, how)
        return lax.psum(total, axes) if axes else total, weights

    return mesh.by_device(found, rows, shared, how, lambda examples: (PartitionSpec(), examples))


def _weights(rows: Rows, shared: Shared, how: How) -> jax.Array:
    """The weight of each example: that of its label's class, or 1; 0 where it takes no part."""

    def block(rows):
        wide = checks.wide(rows.inputs[0].dtype)
        if jnp.issubdtype(rows.labels.dtype, jnp.floating):
            present = xla.true_like(rows.labels[..., 0]).astype(wide)
            return rows.present(meshes.agreed(present, how.axes))
        scores: Any = jax.ShapeDtypeStruct((*rows.shape, len(shared.kernels[0])), wide)
        classes = ClassAxes((len(rows.shape),), how.axis_name)
        where = None if rows.where is None else rows.where[..., None]
        found = locate(rows.labels, scores, classes, where)
        weights = shared.terms.class_weights
        if weights is None:
            return classes.squeeze(found.present & ~found.bad).astype(wide)
        return classes.squeeze(weights_at(found, along_last(weights, scores), classes))

    return each(block, rows)


def losses_of_few(
    inputs: jax.Array, kernel: jax.Array, labels: jax.Array, where: jax.Array
) -> jax.Array:
    """`linear_softmax_cross_entropy` in a time that depends on how many examples take part."""
    if meshes.are_in_force(inputs):
        # Examples of several devices stay where they are.
        return linear_softmax_cross_entropy(inputs, kernel, labels, where=where)
    rows, shared = problem(inputs, kernel, labels, where=where)
    rows = cutting.flat(rows)
    (examples,) = rows.shape
    count = max(
        cutting.divisor_near(examples, cutting.fewest(rows, shared, None, 1)),
        min(_SPARSE_BLOCKS, examples // _SPARSE_BLOCK_EXAMPLES),
        1,
    )
    return blocks.results_of_few(rows, shared, How(losses), count).reshape(labels.shape)


def problem(
    inputs,
    kernel,
    labels,
    *,
    bias=None,
    where=None,
    class_weights=None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    softcap=None,
    axis_name=None,
    features_axis_name=None,
) -> tuple[Rows, Shared]:
    """Checks the arguments, which are those of `linear_softmax_cross_entropy`."""
    layer = Layer.of(inputs, kernel, bias, features_axis_name)
    taking_part = layer.mask(where)
    terms = cross_entropy.Terms(
        layer.per_class("class_weights", class_weights),
        cross_entropy.factor("label_smoothing", label_smoothing, layer.wide),
        cross_entropy.factor("z_loss", z_loss, layer.wide),
        cross_entropy.factor("softcap", softcap, layer.wide, absent=None),
    )
    labels = _labels(labels, layer, taking_part, axis_name)
    rows = Rows((layer.inputs,), labels, taking_part)
    return rows, Shared((layer.kernel,), (layer.bias,), terms)


def _labels(labels, layer, where, axis_name):
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        labels = checks.labels("labels", labels, layer.batch_shape)
        return layer.known(labels, where, axis_name)
    shape = (*layer.batch_shape, len(layer.kernel))
    if labels.shape != shape:
        rule = f"have shape {shape}, as class probabilities"
        checks.fail(ValueError, "labels", rule, labels.shape)
    where = where if where is None else where[..., None]
    within = (labels >= 0) & (labels <= 1)
    checks.require(within, "labels", "be probabilities in [0, 1]", where)
    return labels.astype(layer.wide.dtype)
