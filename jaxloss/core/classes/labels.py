"""The class axis: one-hot labels by comparison, bad labels, class weights.

Derivatives compare labels with an iota, which keeps scatters out of the backward pass and works on
classes that are sharded over a mesh.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.typing import ArrayLike

from jaxloss._base import checks, xla

AxisName = str | tuple[str, ...] | None


class Labels(NamedTuple):
    """Where each label points, the class axes kept with size 1 where they are reduced."""

    hot: jax.Array  # True at the label's class; all False for a bad label.
    place: jax.Array  # The label, as a flat index into the classes of this device.
    bad: jax.Array  # Labels of examples that take part which point at no class that does.
    present: jax.Array  # Examples that take part.


def total(x: jax.Array, axes: tuple[int, ...], axis_name: AxisName = None) -> jax.Array:
    """The sum over the classes, kept as dimensions of size 1, here and on the other devices."""
    x = jnp.sum(x, axes, keepdims=True)
    return x if axis_name is None else lax.psum(x, axis_name)


def masks_classes(where: jax.Array | None, axes: tuple[int, ...]) -> bool:
    """Whether `where` tells the classes of an example apart, and not just examples."""
    return where is not None and any(where.shape[a] > 1 for a in axes)


def count(
    scores: jax.Array,
    axes: tuple[int, ...],
    where: jax.Array | None,
    axis_name: AxisName = None,
) -> int | jax.Array:
    """How many classes take part in an example that does, at least 1."""
    if where is None or not masks_classes(where, axes):
        return max(class_count(scores, axes, axis_name), 1)
    repeats = math.prod(scores.shape[a] for a in axes if where.shape[a] == 1)
    return jnp.maximum(total(repeats * where.astype(scores.dtype), axes, axis_name), 1)


def class_shape(like: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(like.shape[a] for a in axes)


def any_class(where: jax.Array, axes: tuple[int, ...], axis_name: AxisName = None) -> jax.Array:
    """Examples of which any class takes part, the class axes kept with size 1."""
    found = jnp.any(where, axes, keepdims=True)
    return found if axis_name is None else lax.pmax(found.astype(jnp.int32), axis_name) > 0


def require_classes(name: str, scores: jax.Array, axes: tuple[int, ...]) -> None:
    if 0 in class_shape(scores, axes):
        checks.fail(ValueError, name, "have at least one class", f"shape {scores.shape}")


def index(
    labels: ArrayLike,
    scores: jax.Array,
    axes: tuple[int, ...],
    where: jax.Array | None,
    *,
    names: tuple[str, str],
    axis_name: AxisName = None,
) -> Labels:
    """Finds each label's class among `scores`; `names` are the arguments' names for errors.

    Over several class axes a label is a flat index, the last axis in `axes` fastest.
    """
    scores_name, labels_name = names
    if not axes:
        checks.fail(ValueError, "axis", f"name a class dimension of `{scores_name}`", axes)
    require_classes(scores_name, scores, axes)
    batch_shape = tuple(size for a, size in enumerate(scores.shape) if a not in axes)
    found = locate(checks.labels(labels_name, labels, batch_shape), scores, axes, where, axis_name)
    rule = f"be a class in [0, {class_count(scores, axes, axis_name)}) that takes part"
    checks.require(~found.bad, labels_name, rule)
    return found


def locate(
    labels: jax.Array,
    scores: jax.Array,
    axes: tuple[int, ...],
    where: jax.Array | None,
    axis_name: AxisName = None,
) -> Labels:
    """`index` behind its checks."""
    labels = jnp.expand_dims(labels, axes)
    here = math.prod(class_shape(scores, axes))
    first = 0 if axis_name is None else here * lax.axis_index(axis_name)
    place = labels - jnp.asarray(first, labels.dtype)
    hot = place == _iota(scores, axes, labels.dtype)
    known = (labels >= 0) & (labels < class_count(scores, axes, axis_name))
    present = known | True  # Not a constant: see `xla.where`.
    if where is not None:
        present = any_class(where, axes, axis_name)
        hot = hot & where
        if masks_classes(where, axes):
            known = any_class(hot, axes, axis_name)
    return Labels(hot, place, ~known & present, present)


def class_count(scores: jax.Array, axes: tuple[int, ...], axis_name: AxisName) -> int:
    """How many classes there are, here and on the other devices."""
    here = math.prod(class_shape(scores, axes))
    return here if axis_name is None else here * lax.axis_size(axis_name)


def _iota(scores: jax.Array, axes: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The flat class index, of size 1 in every other dimension."""
    flat = jnp.zeros((1,) * scores.ndim, dtype)
    for axis in axes:
        shape = [1] * scores.ndim
        shape[axis] = scores.shape[axis]
        flat = flat * jnp.asarray(scores.shape[axis], dtype) + lax.broadcasted_iota(
            dtype, shape, axis
        )
    return flat


def at_label(
    x: jax.Array, labels: Labels, axes: tuple[int, ...], axis_name: AxisName = None
) -> jax.Array:
    """x at each label, the class axes kept; 0 where the label points nowhere."""
    if len(axes) != 1 or AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
        # A gather over several axes needs them last, and over a sharded one it is an error.
        return total(xla.where(labels.hot, x, 0), axes, axis_name)
    axis = axes[0]
    here = labels.present & (labels.place >= 0) & (labels.place < x.shape[axis])
    found = jnp.take_along_axis(x, jnp.where(here, labels.place, 0), axis, mode="clip")
    found = jnp.where(here, found, 0)
    return found if axis_name is None else lax.psum(found, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def pick(scores: jax.Array, labels: Labels, axes: tuple[int, ...]) -> jax.Array:
    """Each label's score, the class axes kept; NaN in value and gradient for a bad label."""
    return xla.nan_where(labels.bad, at_label(scores, labels, axes))


@pick.defjvp
def _pick_jvp(axes, primals, tangents):
    # A gather's own transpose is a scatter. A bad label points nowhere: its whole row gets NaN.
    scores, labels = primals
    picked = jnp.where(labels.hot | labels.bad, tangents[0], 0)
    factor = xla.nan_where(labels.bad, jnp.ones((), scores.dtype))
    return pick(scores, labels, axes), total(picked * factor, axes)


def expand_weights(
    class_weights: ArrayLike | None, scores: jax.Array, axes: tuple[int, ...]
) -> jax.Array | None:
    """One weight per class, laid along the class axes of `scores`."""
    class_weights = checks.follower("class_weights", class_weights, scores)
    if class_weights is None:
        return None
    wanted = class_shape(scores, axes)
    if class_weights.shape != wanted:
        checks.fail(ValueError, "class_weights", f"have shape {wanted}", class_weights.shape)
    order = sorted(range(len(axes)), key=axes.__getitem__)
    others = tuple(a for a in range(scores.ndim) if a not in axes)
    return jnp.expand_dims(jnp.transpose(class_weights, order), others)


def label_weights(
    class_weights: ArrayLike | None, scores: jax.Array, labels: Labels, axes: tuple[int, ...]
) -> jax.Array:
    """The weight of each label's class, 1 by default; 0 for a bad or an absent label."""
    weights = expand_weights(class_weights, scores, axes)
    if weights is None:
        return jnp.squeeze(labels.present & ~labels.bad, axes).astype(scores.dtype)
    return jnp.sum(jnp.where(labels.hot, weights, 0), axes)
