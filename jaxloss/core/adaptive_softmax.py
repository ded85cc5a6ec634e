"""Adaptive softmax: frequent classes in the head, the rest in clusters of ever fewer features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss import _checks
from jaxloss._public import public
from jaxloss.core import linear_cross_entropy

Tail = Sequence[tuple[ArrayLike, ArrayLike]]


@public()
def adaptive_softmax_cross_entropy(
    inputs: ArrayLike,
    head: ArrayLike,
    tail: Tail,
    labels: ArrayLike,
    *,
    head_bias: ArrayLike | None = None,
) -> jax.Array:
    """Cross entropy between the adaptive softmax of `inputs` and the classes `labels`.

    loss = -log softmax(head)_y for the S most frequent classes, and for a class y of cluster i
    -log softmax(head)_{S+i} - log softmax(tail_i)_{y - first class of i}.

    The shapes do not depend on the labels, so that one program serves every batch; and no logits of
    a whole batch are kept. A label outside [0, C) gives NaN in its own loss and the gradient of
    its own input.

    Args:
      inputs: floating-point array (..., D), features.
      head: (S + clusters, D), one row of weights for each frequent class and each cluster.
      tail: for each cluster a projection (Dᵢ, D) and the weights (Cᵢ, Dᵢ) of its classes, which
        come behind those before it: C = S + C₁ + C₂ + ….
      labels: integer array (...), classes sorted by falling frequency.
      head_bias: (S + clusters,).

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
      [0.6803 1.2933]

    Source: Grave et al., Efficient softmax approximation for GPUs, arXiv:1609.04309.
    """
    layers = _layers(inputs, head, tail, head_bias)
    inputs, frequent = layers.inputs, layers.frequent
    shape = inputs.shape[:-1]
    labels = _checks.labels("labels", labels, shape)
    classes = frequent + sum(len(weights) for _, weights in layers.tail)
    known = (labels >= 0) & (labels < classes)
    _checks.require(known, "labels", f"be a class in [0, {classes})")

    def loss(inputs, kernel, labels, bias=None, where=None):
        options = {"class_weights": None, "label_smoothing": 0.0, "z_loss": 0.0}
        rows, shared = linear_cross_entropy.problem(
            inputs,
            kernel,
            labels,
            bias=bias,
            where=where,
            chunk_size=None,
            axis_name=None,
            **options,
        )
        return linear_cross_entropy.losses(rows, shared, shape, None)

    of_head, of_tail, first = labels, [], frequent
    for cluster, (projection, weights) in enumerate(layers.tail):
        own = (labels >= first) & (labels < first + len(weights))
        of_head = jnp.where(own, frequent + cluster, of_head)
        relative = jnp.where(own, labels - first, 0)
        of_tail.append(loss(inputs @ projection.T, weights, relative, where=own[..., None]))
        first += len(weights)
    of_head = jnp.where(known, of_head, -1)
    return sum(of_tail, loss(inputs, layers.head, of_head, layers.head_bias))


@public()
def adaptive_log_softmax(
    inputs: ArrayLike, head: ArrayLike, tail: Tail, *, head_bias: ArrayLike | None = None
) -> jax.Array:
    """Log probabilities of all classes under the adaptive softmax.

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
      >>> head, tail = jnp.zeros((3, 2)), [(jnp.zeros((1, 2)), jnp.zeros((2, 1)))]
      >>> print(jnp.exp(jaxloss.adaptive_log_softmax(jnp.zeros(2), head, tail)).round(4))
      [0.3333 0.3333 0.1667 0.1667]

    Source: as `adaptive_softmax_cross_entropy`.
    """
    inputs, head, head_bias, tail = _layers(inputs, head, tail, head_bias)
    logits = inputs @ head.T
    if head_bias is not None:
        logits = logits + head_bias.reshape(*[1] * (inputs.ndim - 1), -1)
    frequent, of_clusters = jnp.split(
        jax.nn.log_softmax(logits), [logits.shape[-1] - len(tail)], axis=-1
    )
    parts = [
        of_clusters[..., i : i + 1] + jax.nn.log_softmax(inputs @ projection.T @ weights.T)
        for i, (projection, weights) in enumerate(tail)
    ]
    return jnp.concatenate([frequent, *parts], -1)


class Layers(NamedTuple):
    """The arguments in one dtype."""

    inputs: jax.Array
    head: jax.Array
    head_bias: jax.Array | None
    tail: list[tuple[jax.Array, jax.Array]]

    @property
    def frequent(self) -> int:
        """How many classes are in the head."""
        return len(self.head) - len(self.tail)


def _layers(inputs: ArrayLike, head: ArrayLike, tail: Tail, head_bias: ArrayLike | None) -> Layers:
    for pair in tail:
        if len(pair) != 2:
            rule = "hold a projection and weights for each cluster"
            _checks.fail(ValueError, "tail", rule, f"{len(pair)} arrays")
    named = {f"tail[{i}][{j}]": x for i, pair in enumerate(tail) for j, x in enumerate(pair)}
    named = {"inputs": inputs, "head": head} | named
    inputs, head, *layers = _checks.arrays(complex_too=False, **named)
    if not inputs.ndim:
        _checks.fail(ValueError, "inputs", "have shape (..., D)", inputs.shape)
    features = inputs.shape[-1]
    if head.ndim != 2 or head.shape[1] != features or len(head) <= len(tail):
        rule = f"have shape (S + {len(tail)}, {features})"
        _checks.fail(ValueError, "head", rule, head.shape)
    pairs = list(zip(layers[::2], layers[1::2], strict=True))
    for i, (projection, weights) in enumerate(pairs):
        if projection.ndim != 2 or projection.shape[1] != features:
            rule = f"have shape (D{i + 1}, {features})"
            _checks.fail(ValueError, f"tail[{i}][0]", rule, projection.shape)
        if weights.ndim != 2 or weights.shape[1] != len(projection):
            rule = f"have shape (C{i + 1}, {len(projection)})"
            _checks.fail(ValueError, f"tail[{i}][1]", rule, weights.shape)
    head_bias = _checks.follower("head_bias", head_bias, inputs)
    if head_bias is not None and head_bias.shape != (len(head),):
        _checks.fail(ValueError, "head_bias", f"have shape ({len(head)},)", head_bias.shape)
    return Layers(inputs, head, head_bias, pairs)
