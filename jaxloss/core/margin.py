"""Scores that must win by a margin: hinge embedding, margin ranking, multi-class, multi-label."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, meshes, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import Labels, at_label, find, label_weights, locate, pick


@public()
def hinge_embedding_loss(
    distances: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Hinge embedding loss: similar pairs should be close, others at least a margin apart.

    loss = d if y = 1, max(0, margin - d) if y = -1; the gradient at the kink is -1. Any other y
    gives the sum of both terms, as in torch.

    Args:
      distances: floating-point array of any shape.
      targets: 1 for similar and -1 for dissimilar pairs, in the same shape.
      margin: in the unit of `distances`; a number, or one for each element.
      where: boolean, of the rank of `distances` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `distances`; at least float32.

    Raises:
      TypeError: `distances` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> distances, targets = jnp.array([0.25, 0.25, 2.0]), jnp.array([1, -1, -1])
      >>> print(jaxloss.hinge_embedding_loss(distances, targets))
      [0.25 0.75 0.  ]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.HingeEmbeddingLoss.html
    """
    distances, targets = checks.arrays(distances=distances, targets=targets)
    checks.same_shape(distances=distances, targets=targets)
    where = checks.mask(where, "distances", distances)
    distances, targets = (elementwise.masked(where, x, 1) for x in (distances, targets))
    checks.require(jnp.abs(targets) == 1, "targets", "be 1 or -1")
    margin = elementwise.masked(where, checks.hyper_parameter("margin", margin, distances))
    return elementwise.masked(where, _hinge_embedding(distances, targets, margin))


@jax.custom_jvp
def _hinge_embedding(distances, targets, margin):
    dissimilar = elementwise.hinge(margin - distances)
    both = distances + dissimilar
    return jnp.where(targets == 1, distances, jnp.where(targets == -1, dissimilar, both))


@_hinge_embedding.defjvp
def _hinge_embedding_jvp(primals, tangents):
    # Autodiff would keep three arrays for the backward pass.
    (distances, targets, margin), (distances_dot, _, margin_dot) = primals, tangents
    inside = distances <= margin
    dissimilar = jnp.where(inside, -1, 0)
    both = jnp.where(targets == -1, dissimilar, 1 + dissimilar)
    by_distance = jnp.where(targets == 1, 1, both).astype(distances.dtype)
    by_margin = jnp.where(inside & (targets != 1), margin_dot, 0)
    tangent = by_distance * distances_dot + by_margin
    return _hinge_embedding(*primals), tangent


@public()
def margin_ranking_loss(
    scores1: ArrayLike,
    scores2: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Margin ranking loss: one score should exceed the other by a margin; the target says which.

    loss = max(0, -y (x1 - x2) + margin); the hinge passes gradient at the kink.

    Args:
      scores1: floating-point array of any shape.
      scores2: the scores to compare with, in the same shape.
      targets: 1 to rank the first score higher and -1 to rank the second, in the same shape.
      margin: in the unit of the scores; a number, or one for each element.
      where: boolean, of the rank of `scores1` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `scores1`; at least float32.

    Raises:
      TypeError: `scores1` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> scores1, scores2 = jnp.array([2.0, 0.5]), jnp.array([1.0, 1.0])
      >>> print(jaxloss.margin_ranking_loss(scores1, scores2, jnp.array([1, 1]), margin=0.25))
      [0.   0.75]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MarginRankingLoss.html
    """
    scores1, scores2, targets = checks.arrays(scores1=scores1, scores2=scores2, targets=targets)
    checks.same_shape(scores1=scores1, scores2=scores2, targets=targets)
    where = checks.mask(where, "scores1", scores1)
    scores1, scores2, targets = (
        elementwise.masked(where, x, 1) for x in (scores1, scores2, targets)
    )
    checks.require(jnp.abs(targets) == 1, "targets", "be 1 or -1")
    margin = elementwise.masked(where, checks.hyper_parameter("margin", margin, scores1))
    return elementwise.masked(where, elementwise.hinge(margin - targets * (scores1 - scores2)))


@public(static=("p", "axis"), labels=("labels",))
def multi_margin_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    p: int = 1,
    margin: ArrayLike = 1.0,
    class_weights: ArrayLike | None = None,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Multi-class margin loss: the label's score should exceed every other by a margin.

    loss = 1/C Σ_{c≠y} w_y max(0, margin - x_y + x_c)^p; the gradient at the kink is 0.

    A label outside [0, C), negative ones included, gives NaN in that example's value and gradient
    only.

    Args:
      scores: floating-point array (..., C).
      labels: integer array of the shape of `scores` without `axis`.
      p: 1 or 2.
      margin: in the unit of the scores.
      class_weights: one weight per class, shape (C,).
      axis: the class dimension, or a tuple of them, over which a label is a flat index.
      where: boolean, of the rank of `scores` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part; C counts only those.
        An example in which nothing takes part has loss and gradient 0, whatever it holds.

    Returns:
      One loss per example, in the shape of `labels`; at least float32.

    Raises:
      TypeError: `scores` is not floating-point or `labels` not integer.
      ValueError: the shapes or `axis` do not fit, or `p` is neither 1 nor 2.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> scores = jnp.array([[0.1, 0.2, 0.4, 0.8]])
      >>> print(jaxloss.multi_margin_loss(scores, jnp.array([3])).round(4))
      [0.325]

    Source: Crammer and Singer, On the algorithmic implementation of multiclass kernel-based
    vector machines (2001); https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiMarginLoss.html
    """
    checks.one_of("p", p, (1, 2))
    (scores,) = checks.arrays(scores=scores)
    classes = ClassAxes.of(axis, scores, "scores")
    where = checks.mask(where, "scores", scores)
    found = find(labels, scores, classes, where, names=("scores", "labels"))
    margin = checks.number("margin", margin, scores)
    scores = elementwise.masked(where, scores)
    losses = classes.expand(_hinges(scores, margin, found, where, p, classes))
    losses = classes.squeeze(losses / classes.count(scores, where))
    if class_weights is not None:
        weights = label_weights(class_weights, scores, found, classes)
        losses = elementwise.product(weights, losses)
    return losses


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _hinges(scores, margin, labels, where, p, classes):
    """Σ_c max(0, margin - x_y + x_c)^p over the classes c other than the label y."""
    short = _shortfalls(scores, margin, labels, where, classes)
    return jnp.sum(short if p == 1 else jnp.square(short), classes.axes)


def _shortfalls(scores, margin, labels, where, classes):
    short = scores - pick(scores, labels, classes) + margin
    return elementwise.masked(where, jnp.where(labels.hot | (short <= 0), 0, short))


def _hinges_jvp(p, classes, primals, tangents):
    # Autodiff would keep comparisons; the shortfalls of the value are all that is needed.
    scores, margin, labels, where = primals
    short = _shortfalls(scores, margin, labels, where, classes)
    total = classes.sum(jnp.sign(short) if p == 1 else 2 * short)
    # The total of a bad label is NaN already. Said once more, XLA stores it for no class: in JAX
    # 0.10 on a CPU it would take 1.3 of the bytes, in 0.12 no more.
    total = xla.nan_where(labels.bad, total)
    slope = jnp.where(short > 0, 1, short) if p == 1 else 2 * short  # NaN stays NaN.
    gradient = jnp.where(labels.hot, -total, slope)
    value = _hinges(*primals, p, classes)
    by_scores = elementwise.along(scores, (gradient, tangents[0]))
    by_margin = elementwise.along(value, (classes.squeeze(total), tangents[1]))
    return value, jnp.sum(by_scores, classes.axes) + by_margin


_hinges.defjvp(_hinges_jvp, symbolic_zeros=True)


@public(static=("axis",), labels=("labels",))
def multilabel_margin_loss(
    scores: ArrayLike, labels: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Multi-label margin loss: each label's score should exceed that of every other class by 1.

    loss = 1/C Σ_k Σ_{c not a label} max(0, 1 - x_{y_k} + x_c); the gradient at the kink is 0.

    An example's labels are the entries of its row before the first negative one; what comes after
    that is not read. A label of C or more gives NaN in that example's value and gradient only.

    Args:
      scores: floating-point array (..., C).
      labels: integer array of the same shape: class indices, padded with -1.
      axis: the class dimension.
      where: boolean, of the rank of `scores` and broadcastable to it: the classes, or with size 1
        along `axis` the examples, that take part. A label of an excluded class gives NaN.
        An example in which nothing takes part has loss and gradient 0, whatever it holds.

    Returns:
      One loss per example, in the shape of `scores` without `axis`; at least float32.

    Raises:
      TypeError: `scores` is not floating-point or `labels` not integer.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> scores, labels = jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([[3, 0, -1, 1]])
      >>> print(jaxloss.multilabel_margin_loss(scores, labels))
      [0.85]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelMarginLoss.html
    """
    (scores,) = checks.arrays(scores=scores)
    axes = checks.axes(axis, scores, "scores")
    if len(axes) != 1:
        checks.fail(ValueError, "axis", "be one dimension", axis)
    ClassAxes(axes).require(scores, "scores")
    labels = meshes.laid_as(checks.labels("labels", labels, scores.shape), scores)
    where = checks.mask(where, "scores", scores)
    scores = elementwise.masked(where, scores)
    if where is not None:
        labels = jnp.where(ClassAxes(axes).any(where), labels, -1)
        where = jnp.moveaxis(where, axes[0], -1)
    scores, labels = jnp.moveaxis(scores, axes[0], -1), jnp.moveaxis(labels, axes[0], -1)
    count = scores.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1)
    ends = jnp.min(jnp.where(labels < 0, place, count), -1, keepdims=True)
    losses, _, bad = _pairwise_hinge(scores, labels, ends, where)
    checks.require(bad == 0, "labels", f"be below {count}, the number of classes, and take part")
    classes = ClassAxes((scores.ndim - 1,))
    return classes.squeeze(classes.expand(losses) / classes.count(scores, where))


@jax.custom_jvp
def _pairwise_hinge(
    scores: jax.Array, labels: jax.Array, ends: jax.Array, where: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ_k Σ_c max(0, 1 - x_labels_k + x_c), its gradient, and 1 where a label is no class.

    k < ends, and c are the classes that are no label. The compiler leaves the gradient out where it
    is not asked for. Bad labels are told by a number: the derivative of a truth value does not say
    over which devices of a `jax.shard_map` it varies.
    """

    def take(k, so_far):
        free, bad = so_far
        label = _label(scores, labels, ends, where, k)
        return free & ~label.hot, bad | jnp.squeeze(label.bad & (k < ends), -1)

    def add(free, k, so_far):
        losses, gradient = so_far
        label = _label(scores, labels, ends, where, k)
        own = at_label(scores, label, ClassAxes((scores.ndim - 1,)))
        short = (scores - own) + 1
        short = jnp.where(free & ~label.bad & ~(short <= 0), short, 0)
        count = jnp.sum(jnp.sign(short), -1, keepdims=True)
        slope = jnp.where(short > 0, 1, short)  # Not the sign, which would be stored for both.
        gradient = gradient + jnp.where(label.hot, -count, slope)
        return losses + jnp.sum(short, -1), lax.stop_gradient(gradient)

    def run(repeat):
        all_free = jnp.ones_like(labels, bool)
        all_free = all_free if where is None else all_free & where
        free, bad = repeat(take, (all_free, jnp.zeros_like(labels[..., 0], bool)))
        # Made of all arguments, as `jax.shard_map` asks: it varies over the devices as what is
        # added.
        nothing = jnp.zeros_like(jnp.where(free, scores, 0))
        start = jnp.sum(nothing, -1), nothing
        losses, gradient = repeat(functools.partial(add, free), start)
        losses, gradient = xla.nan_where(bad, losses), xla.nan_where(bad[..., None], gradient)
        return losses, gradient, bad.astype(scores.dtype)

    return xla.by_count(_last(ends), run)


@_pairwise_hinge.defjvp
def _pairwise_hinge_jvp(primals, tangents):
    # Autodiff would keep arrays over all pairs of classes for the backward pass. The gradient is
    # piecewise constant, and has no derivative itself.
    found = _, gradient, bad = _pairwise_hinge(*primals)
    along = jnp.sum(gradient * tangents[0], -1)
    return found, (along, jnp.zeros_like(gradient), jnp.zeros_like(bad))


@custom_vmap
def _last(ends: jax.Array) -> jax.Array:
    return jnp.max(ends, initial=0)


@_last.def_vmap
def _last_of_all(axis_size, in_batched, ends):
    # One loop for all examples; with an end of its own for each, checkify cannot take it.
    return _last(ends), False


def _label(
    scores: jax.Array, labels: jax.Array, ends: jax.Array, where: jax.Array | None, k: jax.Array
) -> Labels:
    """Where the k-th label points; without one it points nowhere and is bad."""
    label = lax.dynamic_index_in_dim(labels, k, -1, keepdims=False)
    label = jnp.where(k < ends[..., 0], label, -1)
    return locate(label, scores, ClassAxes((scores.ndim - 1,)), where)
