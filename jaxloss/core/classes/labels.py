"""Where labels point: one-hot by comparison, bad labels, and class weights.

Derivatives compare labels with the indices of the classes, which keeps scatters out of the backward
pass and also works for classes that are sharded over a mesh.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, meshes, xla
from jaxloss.core.classes.axes import ClassAxes


class Labels(NamedTuple):
    """Where each label points, the class axes kept with size 1 where they are reduced."""

    hot: jax.Array  # True at the label's class; all False for a bad label.
    place: jax.Array  # The label, as a flat index into the classes of this device.
    bad: jax.Array  # Labels of examples that take part which point at no class that does.
    present: jax.Array  # Examples that take part.


def find(
    labels: ArrayLike,
    scores: jax.Array,
    classes: ClassAxes,
    where: jax.Array | None,
    *,
    names: tuple[str, str],
) -> Labels:
    """Checks labels and finds the class of each among `scores`; `names` are for errors.

    Over several class axes a label is a flat index, the last axis fastest.
    """
    scores_name, labels_name = names
    batch_shape = examples_shape(scores, classes, scores_name)
    labels = checks.labels(labels_name, labels, batch_shape)
    found = locate(labels, scores, classes, where)
    rule = f"be a class in [0, {classes.size(scores)}) that takes part"
    checks.require(~found.bad, labels_name, rule)
    return found


def examples_shape(scores: jax.Array, classes: ClassAxes, name: str) -> tuple[int, ...]:
    """The dimensions besides the classes, of which there have to be some; `name` as in `find`."""
    if not classes.axes:
        checks.fail(ValueError, "axis", f"name a class dimension of `{name}`", classes.axes)
    classes.require(scores, name)
    return tuple(size for a, size in enumerate(scores.shape) if a not in classes.axes)


def locate(
    labels: jax.Array, scores: jax.Array, classes: ClassAxes, where: jax.Array | None = None
) -> Labels:
    """`find` of labels that are checked."""
    labels = meshes.laid_as(classes.expand(labels), scores)
    place = labels - jnp.asarray(classes.first(scores), labels.dtype)
    hot = place == classes.indices(scores, labels.dtype)
    known = (labels >= 0) & (labels < classes.size(scores))
    present = xla.true_like(known)
    if where is not None:
        present = classes.any(where)
        hot = hot & where
        if classes.are_masked(where):
            known = classes.any(hot)
    return Labels(hot, place, ~known & present, present)


def at_label(x: jax.Array, labels: Labels, classes: ClassAxes) -> jax.Array:
    """x at each label, the class axes kept; 0 where the label points nowhere.

    A label of a masked class is bad; for it the result may be x as well.
    """

    def compared():
        return jnp.sum(xla.filled(labels.hot, x, 0), classes.axes, keepdims=True)

    if not classes.may_gather(x):
        return classes.psum(compared())
    (axis,) = classes.axes

    def gathered():
        here = labels.present & (labels.place >= 0) & (labels.place < x.shape[axis])
        found = jnp.take_along_axis(x, jnp.where(here, labels.place, 0), axis, mode="clip")
        return jnp.where(here, found, 0)

    return classes.psum(xla.entry(x.shape, axis, gathered, compared))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def pick(scores: jax.Array, labels: Labels, classes: ClassAxes) -> jax.Array:
    """Each label's score, the class axes kept; NaN in value and gradient for a bad label."""
    return xla.nan_where(labels.bad, at_label(scores, labels, classes))


@pick.defjvp
def _pick_jvp(classes, primals, tangents):
    # A gather's own transpose is a scatter. A bad label points nowhere: its whole row gets NaN.
    scores, labels = primals
    picked = jnp.where(labels.hot | labels.bad, tangents[0], 0)
    factor = xla.nan_where(labels.bad, jnp.ones((), scores.dtype))
    return pick(scores, labels, classes), classes.sum(picked * factor)


def expand_weights(
    class_weights: ArrayLike | None, scores: jax.Array, classes: ClassAxes
) -> jax.Array | None:
    """One weight per class, laid along the class axes of `scores`."""
    class_weights = checks.follower("class_weights", class_weights, scores)
    if class_weights is None:
        return None
    wanted = classes.shape(scores)
    if class_weights.shape != wanted:
        checks.fail(ValueError, "class_weights", f"have shape {wanted}", class_weights.shape)
    order = sorted(range(len(wanted)), key=classes.axes.__getitem__)
    others = tuple(a for a in range(scores.ndim) if a not in classes.axes)
    return jnp.expand_dims(jnp.transpose(class_weights, order), others)


def weighted(losses: jax.Array, class_weights: ArrayLike | None, classes: ClassAxes) -> jax.Array:
    """Losses of each class, times its weight."""
    weights = expand_weights(class_weights, losses, classes)
    if weights is None:
        return losses
    return elementwise.product(jnp.broadcast_to(weights, losses.shape), losses)


def weights_at(labels: Labels, weights: jax.Array, classes: ClassAxes) -> jax.Array:
    """The weight at each label, the class axes kept; 0 where the label points nowhere."""
    return classes.sum(jnp.where(labels.hot, weights, 0))


def label_weights(
    class_weights: ArrayLike | None, scores: jax.Array, labels: Labels, classes: ClassAxes
) -> jax.Array:
    """The weight of each label's class, 1 by default; 0 for a bad or an absent label."""
    weights = expand_weights(class_weights, scores, classes)
    if weights is None:
        return classes.squeeze(labels.present & ~labels.bad).astype(checks.wide(scores.dtype))
    return classes.squeeze(weights_at(labels, weights, classes))
