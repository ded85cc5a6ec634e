"""Sequences as callers pass them: checked, in one batch dimension, with their padding found."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxloss._base import checks, meshes, xla


class Sequences(NamedTuple):
    """Sequences of up to T frames, each with up to L labels to read."""

    scores: jax.Array  # Of C symbols, the last axis, wherever a symbol is read; see each loss.
    frames: jax.Array  # (B, T), True for the frames that take part.
    labels: jax.Array  # (B, L), symbols.
    present: jax.Array  # (B, L), True for the labels that take part.
    bad: jax.Array  # (B,), True where one of these is no symbol.


def sequences(
    scores: jax.Array, frames: jax.Array, labels: ArrayLike, present: jax.Array, blank_id: int
) -> Sequences:
    """Finds labels that are no symbols, and puts symbols in their place."""
    classes = scores.shape[-1]
    labels = checks.labels("labels", labels, present.shape)
    found = tuple(meshes.laid_as(x, scores, frames.ndim - 1) for x in (frames, labels, present))
    # A loop over frames starts from one of these and adds the others: JAX wants them to vary alike.
    frames, labels, present = meshes.varying(found, (scores, found))
    known = (labels >= 0) & (labels < classes)
    checks.require(known, "labels", f"be symbols in [0, {classes})", present)
    checks.require(labels != blank_id, "labels", f"not contain the blank, {blank_id}", present)
    bad = jnp.any(present & ~known, -1)
    return Sequences(scores, frames, jnp.clip(labels, 0, classes - 1), present, bad)


def without_padding(
    logits: Any,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    blank_id: int,
    where: ArrayLike | None,
    nodes: int,
) -> Sequences:
    """The sequences of a loss of the core, whose logits have `nodes` axes from time on.

    Of the logits only the shape matters.
    """
    check_blank("blank_id", blank_id, logits.shape[-1])
    present = taking_part("label_paddings", label_paddings)
    frames = taking_part("logit_paddings", logit_paddings)
    shape = logits.shape[: logits.ndim - nodes + 1]
    if frames.shape != shape:
        checks.fail(ValueError, "logit_paddings", f"have shape {shape}", frames.shape)
    if present.ndim != frames.ndim or present.shape[:-1] != frames.shape[:-1]:
        rule = f"have shape ({', '.join([*map(str, frames.shape[:-1]), 'L'])})"
        checks.fail(ValueError, "label_paddings", rule, present.shape)
    where = checks.mask(where, f"logits[..., {', '.join(['0'] * nodes)}]", jnp.any(frames, -1))
    if where is not None:
        # What is left of an excluded sequence, no frames and no labels, has the loss 0.
        frames, present = frames & where[..., None], present & where[..., None]
    return sequences(logits, frames, labels, present, blank_id)


def check_blank(name: str, blank: int, classes: int, least: int = 0) -> None:
    try:
        known = least <= operator.index(blank) < classes
    except TypeError:
        checks.fail(TypeError, name, "be an integer", repr(blank))
    if not known:
        checks.fail(ValueError, name, f"be a symbol in [{least}, {classes})", blank)


def taking_part(name: str, paddings: ArrayLike) -> jax.Array:
    """Where paddings are 0."""
    paddings = jnp.asarray(paddings)
    if jnp.iscomplexobj(paddings):
        checks.fail(TypeError, name, "be real", paddings.dtype)
    return paddings == jnp.zeros((), paddings.dtype)


def batched(f: Callable[[Sequences], Any], sequences: Sequences) -> Any:
    """Calls f with exactly one batch dimension."""
    shape = sequences.bad.shape
    if len(shape) == 1:
        return f(sequences)
    if len(shape) > 1:  # Merged, dimensions that are spread could not stay where they are.
        frames = sequences.frames
        if meshes.explicit_axes(frames)[1]:
            spec = PartitionSpec(*jax.typeof(frames).sharding.spec[: len(shape)])
            specs = jax.tree.map(lambda _: spec, (sequences,))
            each = functools.partial(batched, f)
            return meshes.by_device(each, (sequences,), frames, specs, spec)
        if meshes.spread() > 1:
            for _ in shape[1:]:
                f = jax.vmap(f)
            return f(sequences)
    merged = jax.tree.map(lambda x: x.reshape(math.prod(shape), *x.shape[len(shape) :]), sequences)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), f(merged))


def finished(
    loss: jax.Array, possible: jax.Array, sequences: Sequences, steps: jax.Array | None
) -> jax.Array:
    """Losses, none below 0 by rounding alone; +inf where no path fits, NaN where bad.

    Without a number of steps every loss is 0 or more. With one, losses are of factors, which may be
    greater than 1.
    """
    rounding = loss < 0
    if steps is not None:
        # But log probabilities that were rounded sum to 1 only within a few epsilon, of which each
        # step may add its share.
        classes = jnp.asarray(sequences.scores.shape[-1], loss.dtype)
        slack = 2 * float(jnp.finfo(loss.dtype).eps) * (2 + jnp.log(classes))
        rounding = rounding & (loss >= -slack * steps.astype(loss.dtype))
    loss = jnp.where(rounding, loss - lax.stop_gradient(loss), loss)
    return xla.nan_where(sequences.bad, jnp.where(possible, loss, jnp.inf))


def order(present: jax.Array) -> jax.Array:
    """For each row the indices of what takes part, and behind them any index."""
    size = present.shape[1]
    indices = jnp.sort(jnp.where(present, iota(present, 1), size), 1)
    return jnp.minimum(indices, size - 1)


def rank(present: jax.Array) -> jax.Array:
    """Where `order` puts what takes part."""
    return jnp.maximum(jnp.cumsum(present, 1, dtype=jnp.int32) - 1, 0)


def count(present: jax.Array) -> jax.Array:
    """How much of each row takes part."""
    return jnp.sum(present, 1, dtype=jnp.int32)


def iota(like: jax.Array, axis: int) -> jax.Array:
    shape = [size if a == axis else 1 for a, size in enumerate(like.shape)]
    return lax.broadcasted_iota(jnp.int32, shape, axis)
