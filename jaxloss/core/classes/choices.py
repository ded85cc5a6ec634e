"""Several labels for each example, (..., K): where they point, and what is found there."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloss._base import meshes, xla
from jaxloss.core.classes.axes import ClassAxes


class Choices(NamedTuple):
    """Labels of an example, K of them in the last dimension, behind the examples'."""

    place: jax.Array  # As flat indices into the classes of this device.
    bad: jax.Array  # Those of examples that take part which point at no class that does.
    is_one: bool  # Whether labels were given without the dimension of K.


def choose(
    labels: jax.Array, scores: jax.Array, classes: ClassAxes, where: jax.Array | None = None
) -> Choices:
    """Where labels point that are checked, integers (...) or (..., K) beside scores (..., C)."""
    is_one = labels.ndim == scores.ndim - len(classes.axes)
    labels = labels[..., None] if is_one else labels
    labels = classes.squeeze(meshes.laid_as(classes.expand(labels), scores, scores.ndim))
    place = labels - jnp.asarray(classes.first(scores), labels.dtype)
    known = (labels >= 0) & (labels < classes.size(scores))
    if where is not None and classes.are_masked(where):
        kept = jnp.broadcast_to(where, scores.shape).astype(jnp.float32)
        known = known & (at_choices(kept, place, classes) > 0)
    if where is not None:
        known = known | ~classes.squeeze(classes.any(where))[..., None]
    return Choices(place, ~known, is_one)


def at_choices(x: jax.Array, place: jax.Array, classes: ClassAxes) -> jax.Array:
    """x at each label, (..., K); 0 where it points nowhere. Its transpose is no scatter."""
    found = xla.linear(
        lambda place, x: _taken(x, place, classes),
        lambda place, y: _put(y, place, x, classes),
        place,
        x,
        _taken(x, place, classes),
    )
    return classes.psum(found)


def _taken(x: jax.Array, place: jax.Array, classes: ClassAxes) -> jax.Array:
    if not classes.may_gather(x):
        hot = classes.expand(place) == classes.indices(x, place.dtype)[..., None]
        return jnp.sum(xla.filled(hot, x[..., None], 0), classes.axes)
    (axis,) = classes.axes
    place = jnp.moveaxis(place, -1, axis)
    here = (place >= 0) & (place < x.shape[axis])
    found = jnp.take_along_axis(x, jnp.where(here, place, 0), axis, mode="clip")
    return jnp.moveaxis(jnp.where(here, found, 0), axis, -1)


def _put(y: jax.Array, place: jax.Array, like: jax.Array, classes: ClassAxes) -> jax.Array:
    """Each label's y at its class, added up where several point at one; shaped as `like`."""
    indices = classes.indices(like, place.dtype)

    def at_class(place, y):
        return jnp.where(place == indices, y, jnp.zeros_like(like))

    return xla.sum_over_last(at_class, classes.expand(place), classes.expand(y))
