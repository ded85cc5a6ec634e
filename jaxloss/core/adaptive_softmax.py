"""Adaptive softmax: frequent classes in the head, the rest in clusters with ever fewer features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._base import checks, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import locate
from jaxloss.core.linear.loss import linear_softmax_cross_entropy, losses_of_few

# How many logits of a cluster exist at a time where blocks of absent examples are not left out.
_MOST_LOGITS = 2**26

Tail = Sequence[tuple[ArrayLike, ArrayLike]]


@public(labels=("labels",))
def adaptive_softmax_cross_entropy(
    inputs: ArrayLike,
    head: ArrayLike,
    tail: Tail,
    labels: ArrayLike,
    *,
    head_bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross entropy between the adaptive softmax of `inputs` and the classes `labels`.

    loss = -log softmax(head)_y for the S most frequent classes, and for a class y of cluster i
    -log softmax(head)_{S+i} - log softmax(tail_i)_{y - first class of i}.

    Half operands go into the matrix products as they are, and sums are in float32, as are the
    features of a cluster and all logits; the gradient of the head's logits is rounded to the
    operands' dtype before its two products.

    One program serves every batch, and the logits of a large batch are never kept. A cluster's
    logits are computed only for examples with labels in it, so the time grows with the number of
    rare labels; not on a GPU, where leaving examples out does not pay.
    A label outside [0, C) gives NaN in its own loss, the gradient of its own input and that of the
    head, which all examples share.

    Args:
      inputs: floating-point array (..., D), features.
      head: (S + clusters, D), one row of weights for each frequent class and each cluster.
      tail: for each cluster a projection (Dᵢ, D) and the weights (Cᵢ, Dᵢ) of its classes, which
        are numbered after those of the clusters before it: C = S + C₁ + C₂ + ….
      labels: integer array (...), with classes numbered by falling frequency.
      head_bias: (S + clusters,).
      where: boolean, (..., 1) or broadcastable to it with its rank: the examples that take part.
        The others have loss and gradient 0, whatever they hold.

    Returns:
      One loss per example, shape (...); at least float32.

    Raises:
      TypeError: `inputs` is not floating-point or `labels` not integer.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> inputs = jnp.array([[1.0, 2.0], [0.0, -1.0]])
      >>> head = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # Two classes and a cluster
      >>> tail = [(jnp.array([[1.0, 1.0]]), jnp.array([[1.0], [0.0]]))]  # of two.
      >>> losses = jaxloss.adaptive_softmax_cross_entropy(inputs, head, tail, jnp.array([1, 3]))
      >>> print(losses.round(4))
      [0.6803 1.4935]

    Source: Grave et al., Efficient softmax approximation for GPUs, arXiv:1609.04309.
    """
    inputs, head, tail, head_bias = _layers(inputs, head, tail, head_bias)
    labels = checks.labels("labels", labels, inputs.shape[:-1])
    where = checks.mask(where, "inputs", inputs)
    frequent = len(head) - len(tail)
    edges = [*itertools.accumulate((len(weights) for _, weights in tail), initial=frequent)]
    known = (labels >= 0) & (labels < edges[-1])
    rule = f"be a class in [0, {edges[-1]}) that takes part"
    checks.require(known[..., None], "labels", rule, where)
    members = [(labels >= first) & (labels < end) for first, end in itertools.pairwise(edges)]
    in_head = labels  # What is no class is none of the head's either, which has no more of them.
    for cluster, member in enumerate(members):
        in_head = jnp.where(member, frequent + cluster, in_head)
    losses = linear_softmax_cross_entropy(inputs, head, in_head, bias=head_bias, where=where)
    for (projection, weights), member, first in zip(tail, members, edges, strict=False):
        present = member[..., None] if where is None else member[..., None] & where
        # Masked here already, since NaN times 0 would reach the projection's gradient.
        features = _product(jnp.where(present, inputs, 0), projection)
        losses += _losses_of_cluster(features, weights, labels - first, present)
    return losses


def _losses_of_cluster(
    features: jax.Array, weights: jax.Array, labels: jax.Array, present: jax.Array
) -> jax.Array:
    weights = weights.astype(features.dtype)

    def skipping():
        return losses_of_few(features, weights, labels, present)

    def whole():
        chunk_size = max(1, _MOST_LOGITS // max(labels.size, 1))
        return linear_softmax_cross_entropy(
            features, weights, labels, where=present, chunk_size=chunk_size
        )

    with checks.apart():  # Which of the labels are classes is checked already.
        return xla.for_few(skipping, whole)


@public()
def adaptive_log_softmax(
    inputs: ArrayLike, head: ArrayLike, tail: Tail, *, head_bias: ArrayLike | None = None
) -> jax.Array:
    """Log probabilities of all classes under the adaptive softmax.

    log p_y = log softmax(head)_y for the S most frequent classes, and for a class y of cluster i
    log softmax(head)_{S+i} + log softmax(tail_i)_{y - first class of i}. Their argmax is the most
    likely class.

    Args:
      inputs: as in `adaptive_softmax_cross_entropy`.
      head: as in `adaptive_softmax_cross_entropy`.
      tail: as in `adaptive_softmax_cross_entropy`.
      head_bias: as in `adaptive_softmax_cross_entropy`.

    Returns:
      Log probabilities (..., C); at least float32.

    Raises:
      TypeError: `inputs` is not floating-point.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> head, tail = jnp.zeros((3, 2)), [(jnp.zeros((1, 2)), jnp.zeros((2, 1)))]
      >>> print(jaxloss.adaptive_log_softmax(jnp.zeros(2), head, tail))
      [-1.0986 -1.0986 -1.7918 -1.7918]

    Source: as `adaptive_softmax_cross_entropy`.
    """
    inputs, head, tail, head_bias = _layers(inputs, head, tail, head_bias)
    logits = _product(inputs, head)
    if head_bias is not None:
        logits += jnp.expand_dims(head_bias, range(inputs.ndim - 1))
    edges = np.arange(len(head) - len(tail), len(head))
    frequent, *clusters = jnp.split(_log_softmax(logits), edges, axis=-1)
    within = (
        _log_softmax(_product(_product(inputs, projection), weights))
        for projection, weights in tail
    )
    return jnp.concatenate([frequent, *map(jnp.add, clusters, within)], -1)


def _product(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x @ weights.T; of half operands, summed in float32 and left so."""
    return jnp.inner(x, weights.astype(x.dtype), preferred_element_type=checks.wide(x.dtype))


def _log_softmax(logits: jax.Array) -> jax.Array:
    """Log probabilities over the last axis, accurate where one class has almost all."""
    # Relative to the likeliest class, whose own 1 in the sum is left to log1p, so that it does not
    # swallow what the others add. As a constant 0 it does not in the gradient either.
    classes = ClassAxes((logits.ndim - 1,))
    best = locate(jnp.argmax(logits, -1), logits, classes).hot
    peak = classes.sum(jnp.where(best, logits, 0))
    logits = jnp.where(best, 0, logits - peak)
    return logits - jnp.log1p(classes.sum(jnp.where(best, 0, jnp.exp(logits))))


class _Layers(NamedTuple):
    """The floating-point arguments in one dtype; the bias in that of the logits."""

    inputs: jax.Array
    head: jax.Array
    tail: list[tuple[jax.Array, jax.Array]]
    head_bias: jax.Array | None


def _layers(inputs: ArrayLike, head: ArrayLike, tail: Tail, head_bias: ArrayLike | None) -> _Layers:
    rule = "hold a projection and weights for each cluster"
    if not isinstance(tail, list | tuple) or not all(isinstance(p, list | tuple) for p in tail):
        checks.fail_for_type("tail", f"be a list that {rule.replace('hold', 'holds')}", tail)
    for pair in tail:
        if len(pair) != 2:
            checks.fail(ValueError, "tail", rule, f"{len(pair)} arrays")
    named = {f"tail[{i}][{j}]": x for i, pair in enumerate(tail) for j, x in enumerate(pair)}
    named = {"inputs": inputs, "head": head} | named
    inputs, head, *rest = checks.operands(**named)
    if not inputs.ndim:
        checks.fail(ValueError, "inputs", "have shape (..., D)", inputs.shape)
    features = inputs.shape[-1]
    if head.ndim != 2 or head.shape[1] != features or len(head) <= len(tail):
        rule = f"have shape (S + {len(tail)}, {features})"
        checks.fail(ValueError, "head", rule, head.shape)
    pairs = [*zip(rest[::2], rest[1::2], strict=True)]
    for i, (projection, weights) in enumerate(pairs):
        if projection.ndim != 2 or projection.shape[1] != features:
            rule = f"have shape (D{i + 1}, {features})"
            checks.fail(ValueError, f"tail[{i}][0]", rule, projection.shape)
        if weights.ndim != 2 or weights.shape[1] != len(projection) or not len(weights):
            rule = f"have shape (C{i + 1}, {len(projection)})"
            checks.fail(ValueError, f"tail[{i}][1]", rule, weights.shape)
    head_bias = checks.follower("head_bias", head_bias, inputs)
    if head_bias is not None and head_bias.shape != (len(head),):
        checks.fail(ValueError, "head_bias", f"have shape ({len(head)},)", head_bias.shape)
    return _Layers(inputs, head, pairs, head_bias)
