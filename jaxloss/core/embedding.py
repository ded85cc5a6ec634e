"""Embeddings that should lie close or apart: angles, p-norm distances, triplets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, norms
from jaxloss._base.call import public
from jaxloss.core.cosine import cosine_similarity


@public(static=("axis",))
def cosine_embedding_loss(
    x1: ArrayLike,
    x2: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cosine embedding loss: similar pairs should point the same way, dissimilar ones should not.

    loss = 1 - cos(x1, x2) if y = 1, max(0, cos(x1, x2) - margin) if y = -1; the hinge passes
    gradient at the kink. Any other y gives 0, as in torch.

    Args:
      x1: floating-point array (..., D).
      x2: array of the same shape.
      targets: 1 for similar and -1 for dissimilar pairs, in the shape of `x1` without `axis`.
      margin: the largest cosine that a dissimilar pair may have for free, in [-1, 1].
      axis: the dimension or dimensions of the vectors.
      where: boolean, one for each pair: which of them take part. The others may hold anything, in
        every argument: their loss and gradient are 0.

    Returns:
      One loss per pair, in the shape of `targets`; at least float32.

    Raises:
      TypeError: `x1` is not floating-point.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> x1, x2 = jnp.array([[3.0, 4.0], [3.0, 4.0]]), jnp.array([[4.0, 3.0], [4.0, 3.0]])
      >>> print(jaxloss.cosine_embedding_loss(x1, x2, jnp.array([1, -1]), margin=0.5))
      [0.04 0.46]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CosineEmbeddingLoss.html
    """
    x1, x2, targets = checks.arrays(x1=x1, x2=x2, targets=targets)
    checks.same_shape(x1=x1, x2=x2)
    axes = checks.axes(axis, x1, "x1")
    shape = _batch_shape(x1, axes)
    if targets.shape != shape:
        checks.fail(ValueError, "targets", f"have shape {shape}", targets.shape)
    where, keep = _pairs(where, x1, axes)
    x1, x2 = elementwise.masked(keep, x1), elementwise.masked(keep, x2)
    targets = elementwise.masked(where, targets, 1)
    similarity = cosine_similarity(x1, x2, axis=axis)
    checks.require(jnp.abs(targets) == 1, "targets", "be 1 or -1")
    margin = elementwise.masked(where, checks.hyper_parameter("margin", margin, similarity))
    similar = jnp.where(targets == 1, 1 - similarity, 0)
    losses = similar + jnp.where(targets == -1, elementwise.hinge(similarity - margin), 0)
    return elementwise.masked(where, losses)


def _batch_shape(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for a, size in enumerate(x.shape) if a not in axes)


def _pairs(
    where: ArrayLike | None, vectors: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Which pairs or triplets take part, as one boolean each, and as a mask of their vectors."""
    losses = jax.ShapeDtypeStruct(_batch_shape(vectors, axes), vectors.dtype)
    where = checks.mask(where, "losses", losses)
    return where, None if where is None else jnp.expand_dims(where, axes)


@public(static=("p", "axis", "keepdims"))
def pairwise_distance(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    p: float = 2.0,
    eps: ArrayLike = 1e-6,
    axis: checks.Axis = -1,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """p-norm of the difference of two vectors.

    distance = ‖x1 - x2 + eps‖_p, with gradient 0 where the difference is 0, for every p.

    Args:
      x1: floating-point array (..., D).
      x2: array of the same shape.
      p: the degree of the norm: a Python or numpy number, 0, negative and infinite ones
        included.
      eps: added to every difference, so that equal vectors have a small distance and a gradient.
      axis: the dimension or dimensions of the vectors.
      keepdims: whether `axis` stays as a dimension of size 1.
      where: boolean, one for each pair: which of them take part. The others may hold anything, in
        every argument: their loss and gradient are 0.

    Returns:
      One distance per pair, in the shape of `x1` without `axis`; at least float32.

    Raises:
      TypeError: `x1` is not floating-point, or `p` is traced.
      ValueError: the shapes or `axis` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> x1, x2 = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[3.0, 4.0], [1.0, 3.0]])
      >>> print(jaxloss.pairwise_distance(x1, x2, p=2.0, eps=0.0).round(4))
      [5. 2.]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.PairwiseDistance.html
    """
    x1, x2 = checks.arrays(x1=x1, x2=x2)
    checks.same_shape(x1=x1, x2=x2)
    axes = checks.axes(axis, x1, "x1")
    if not isinstance(p, int | float) or math.isnan(p):
        checks.fail(ValueError, "p", "be a number", repr(p))
    eps = checks.hyper_parameter("eps", eps, x1)
    _, keep = _pairs(where, x1, axes)
    x1, x2, eps = (elementwise.masked(keep, x) for x in (x1, x2, eps))
    distances = elementwise.masked(keep, norms.distance(x1, x2, eps, p, axes))
    return distances if keepdims else jnp.squeeze(distances, axes)


@public(
    static=("p", "swap", "axis"),
    domain={"margin": checks.POSITIVE},
    aliases={"norm_degree": "p"},
)
def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: checks.Axis = -1,
    p: float = 2.0,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 1e-6,
    *,
    swap: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Triplet margin loss: anchors should be closer to positives than to negatives by a margin.

    loss = max(0, d(a, p) - d(a, n) + margin), d(x, y) = ‖x - y + eps‖_p; the hinge passes
    gradient at the kink. `swap` takes min(d(a, n), d(p, n)) for d(a, n).

    Args:
      anchors: floating-point array (..., D).
      positives: embeddings that should be close to the anchors, in the same shape.
      negatives: embeddings that should be far from them, in the same shape.
      axis: the dimension or dimensions of the vectors.
      p: the degree of the norm, a Python or numpy number; optax's name for it is `norm_degree`.
      margin: above 0, in the unit of the distance; a number, or one for each triplet.
      eps: added to every difference.
      swap: whether to measure a negative from the positive where that is closer than the anchor.
      where: boolean, one for each triplet: which of them take part. The others may hold anything,
        in every argument: their loss and gradient are 0.

    Returns:
      One loss per triplet, in the shape of `anchors` without `axis`; at least float32.

    Raises:
      TypeError: `anchors` is not floating-point, or `p` is traced.
      ValueError: the shapes or `axis` do not fit, or `margin` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> anchors, positives = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> negatives = jnp.array([[1.5, 0.0]])
      >>> print(jaxloss.triplet_margin_loss(anchors, positives, negatives).round(4))
      [0.5]

    Source: Balntas et al., Learning local feature descriptors with triplets and shallow
    convolutional neural networks (2016).
    """
    anchors, positives, negatives = checks.arrays(
        anchors=anchors, positives=positives, negatives=negatives
    )
    checks.same_shape(anchors=anchors, positives=positives, negatives=negatives)
    axes = checks.axes(axis, anchors, "anchors")
    eps = checks.hyper_parameter("eps", eps, anchors)
    where, keep = _pairs(where, anchors, axes)
    anchors, positives, negatives, eps = (
        elementwise.masked(keep, x) for x in (anchors, positives, negatives, eps)
    )

    def distance(x1: jax.Array, x2: jax.Array, eps: jax.Array) -> jax.Array:
        return pairwise_distance(x1, x2, p=p, eps=eps, axis=axis)

    near = distance(anchors, positives, eps)
    # ‖a - n + eps‖. With the same eps in both, XLA would store it in the embeddings' full shape,
    # 1.12 of the bytes on a CPU. Of a constant eps `xla.recomputed` makes the same constant.
    far = distance(negatives, anchors, -eps)
    between = distance(positives, negatives, eps) if swap else None
    return _hinge_of_distances(near, far, between, margin=margin, where=where)


def triplet_margin_with_distance_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    distance_function: Callable[[Any, Any], jax.Array] | None = None,
    margin: ArrayLike = 1.0,
    swap: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Triplet margin loss with a distance function of your own.

    loss = max(0, d(a, p) - d(a, n) + margin); the hinge passes gradient at the kink. `swap` takes
    min(d(a, n), d(p, n)) for d(a, n).

    The distance function is called anew every time and never compiled here, so it may hold
    parameters that change, as a Flax module does.

    Args:
      anchors: whatever `distance_function` takes, as are the other two; arrays (..., D) by default.
      positives: what should be close to the anchors.
      negatives: what should be far from them.
      distance_function: maps two batches to one distance per pair; `pairwise_distance` if None.
      margin: above 0, in the unit of the distance; a number, or one for each triplet.
      swap: whether to measure a negative from the positive where that is closer than the anchor.
      where: boolean, one for each triplet: which of them take part. The others have loss and
        gradient 0, and may hold anything if the arguments are arrays or trees of them.

    Returns:
      One loss per triplet, in the shape of the distances; at least float32.

    Raises:
      TypeError: the distances are not floating-point.
      ValueError: the distances differ in shape, or `margin` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> anchors, positives = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> negatives = jnp.array([[1.5, 0.5]])
      >>> def manhattan(x, y):
      ...     return jnp.sum(jnp.abs(x - y), axis=-1)
      >>> print(jaxloss.triplet_margin_with_distance_loss(
      ...     anchors, positives, negatives, distance_function=manhattan, margin=2.0))
      [1.]

    Source: as `triplet_margin_loss`.
    """
    if distance_function is None:
        return _by_pairwise_distance(
            anchors, positives, negatives, margin=margin, swap=swap, where=where
        )
    if not callable(distance_function):
        with checks.speaking_for(_WITH_DISTANCE):
            checks.fail(
                TypeError, "distance_function", "be callable or None", repr(distance_function)
            )
    if where is not None:
        # Different numbers, between which a distance may be differentiated.
        anchors = elementwise.masked_tree(where, anchors, 1)
        positives = elementwise.masked_tree(where, positives, 2)
        negatives = elementwise.masked_tree(where, negatives, 3)
    return _of_distances(
        distance_function(anchors, positives),
        distance_function(anchors, negatives),
        distance_function(positives, negatives) if swap else None,
        margin=margin,
        where=where,
    )


_WITH_DISTANCE = checks.Caller("triplet_margin_with_distance_loss", {})


@public(static=("swap",), domain={"margin": checks.POSITIVE}, name=_WITH_DISTANCE.function)
def _by_pairwise_distance(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    margin: ArrayLike,
    swap: bool,
    where: ArrayLike | None,
) -> jax.Array:
    return triplet_margin_loss(anchors, positives, negatives, margin=margin, swap=swap, where=where)


@public(domain={"margin": checks.POSITIVE}, name=_WITH_DISTANCE.function)
def _of_distances(
    near: ArrayLike,
    far: ArrayLike,
    between: ArrayLike | None,
    *,
    margin: ArrayLike,
    where: ArrayLike | None,
) -> jax.Array:
    given = [near, far] if between is None else [near, far, between]
    names = ("anchor to positive", "anchor to negative", "positive to negative")
    distances = checks.arrays(**dict(zip(names, given, strict=False)))
    checks.same_shape(**dict(zip(names, distances, strict=False)))
    where = checks.mask(where, "anchor to positive", distances[0])
    return _hinge_of_distances(*distances, margin=margin, where=where)


def _hinge_of_distances(
    near: jax.Array,
    far: jax.Array,
    between: jax.Array | None = None,
    *,
    margin: ArrayLike,
    where: jax.Array | None,
) -> jax.Array:
    """`near` and `far` are the anchors' distances, `between` that of positive and negative."""
    if between is not None:
        far = elementwise.lesser(far, between)
    margin = elementwise.masked(where, checks.hyper_parameter("margin", margin, near))
    return elementwise.masked(where, elementwise.hinge(near - far + margin))
