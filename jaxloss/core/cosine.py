"""The angle between vectors, as similarity and as distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, norms
from jaxloss._base.call import public


@public(
    static=("axis",),
    domain={"eps": checks.NON_NEGATIVE, "epsilon": checks.NON_NEGATIVE},
    aliases={"predictions": "x1", "targets": "x2"},
)
def cosine_similarity(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: checks.Axis = -1,
    eps: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cosine of the angle between two vectors.

    similarity = x1·x2 / (max(‖x1‖, eps) max(‖x2‖, eps)). `x1` and `x2` may also be passed by
    optax's names, `predictions` and `targets`.

    It is 0, with gradient 0, where a vector is 0. Large vectors do not overflow, nor do small ones
    vanish.

    Args:
      x1: floating-point array (..., D).
      x2: array that broadcasts with it.
      epsilon: the least squared norm to divide by, as in optax.
      axis: the dimension or dimensions of the vectors, counted in the broadcast shape.
      eps: the least norm to divide by, as in torch.
      where: boolean, of the rank of the broadcast vectors and broadcastable to them: the entries,
        or with size 1 along `axis` the pairs, that take part. A pair in which nothing does is 0.

    Returns:
      One similarity in [-1, 1] for each pair, in the broadcast shape without `axis`; at least
      float32.

    Raises:
      TypeError: `x1` is not floating-point.
      ValueError: the shapes or `axis` do not fit, or `eps` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> x1, x2 = jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([[4.0, 3.0], [0.0, 2.0]])
      >>> print(jaxloss.cosine_similarity(x1, x2).round(4))
      [0.96 0.  ]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CosineSimilarity.html
    """
    x1, x2, least, axes, _ = _vectors(x1, x2, axis, epsilon, eps, where)
    return jnp.squeeze(norms.cosine(x1, x2, least, axes), axes)


@public(static=("axis",), domain={"epsilon": checks.NON_NEGATIVE})
def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: checks.Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cosine distance: 0 for vectors of the same direction, 2 for opposite ones.

    distance = 1 - x·y / (max(‖x‖, √epsilon) max(‖y‖, √epsilon)).

    Accurate where the vectors are almost parallel. It is 1, with gradient 0, where a vector is 0.
    Large vectors do not overflow, nor do small ones vanish.

    Args:
      predictions: x, floating-point array (..., D).
      targets: y, array that broadcasts with it.
      epsilon: the least squared norm to divide by.
      axis: the dimension or dimensions of the vectors, counted in the broadcast shape.
      where: boolean, of the rank of the broadcast vectors and broadcastable to them: the entries,
        or with size 1 along `axis` the pairs, that take part. A pair in which nothing does is 0.

    Returns:
      One distance for each pair, in the broadcast shape without `axis`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes or `axis` do not fit, or `epsilon` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> x, y = jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([[4.0, 3.0], [1.0, 1e-4]])
      >>> jnp.set_printoptions(precision=4)
      >>> print(jaxloss.cosine_distance(x, y))
      [4.e-02 5.e-09]

    Source: https://en.wikipedia.org/wiki/Cosine_similarity
    """
    names = "predictions", "targets"
    x, y, least, axes, where = _vectors(predictions, targets, axis, epsilon, 0.0, where, names)
    distances = norms.cosine_distance(x, y, least, axes)
    if where is not None:
        distances = jnp.where(jnp.any(where, axes, keepdims=True), distances, 0)
    return jnp.squeeze(distances, axes)


def _vectors(
    x1: ArrayLike,
    x2: ArrayLike,
    axis: checks.Axis,
    epsilon: ArrayLike,
    eps: ArrayLike,
    where: ArrayLike | None,
    names: tuple[str, str] = ("x1", "x2"),
) -> tuple[jax.Array, jax.Array, jax.Array, tuple[int, ...], jax.Array | None]:
    """The checked vectors of angles, with the least norm, their dimensions and the mask."""
    x1, x2 = checks.arrays(complex_too=False, **dict(zip(names, (x1, x2), strict=True)))
    try:
        pairs = jax.ShapeDtypeStruct(jnp.broadcast_shapes(x1.shape, x2.shape, (1,)), x1.dtype)
    except ValueError:
        checks.fail(ValueError, names[1], f"broadcast with the shape {x1.shape}", x2.shape)
    axes = checks.axes(axis, pairs, names[0])
    where = checks.mask(where, names[0], pairs)
    x1, x2 = (elementwise.masked(where, _aligned(x, pairs.shape, axes)) for x in (x1, x2))
    squared = checks.number("epsilon", epsilon, x1)
    none = squared == 0  # Where the root has an infinite derivative.
    root = jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, squared)))
    least = jnp.maximum(checks.number("eps", eps, x1), root)
    return x1, x2, least, axes, where


def _aligned(x: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    """x with the rank of the shape, and with its size along the vectors."""
    x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    return jnp.broadcast_to(x, [shape[a] if a in axes else x.shape[a] for a in range(x.ndim)])
