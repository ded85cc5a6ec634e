"""Embeddings of a batch against one another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, norms
from jaxloss._base.call import public
from jaxloss._base.reduction import divide


@public(labels=("labels",), domain={"temperature": checks.POSITIVE})
def ntxent(
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike = 0.07,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Normalised temperature-scaled cross entropy (NT-Xent), the mean over all positive pairs.

    loss = mean over pairs i ≠ j of one label of -log exp(s_ij) / (exp(s_ij) + Σ_k exp(s_ik)), k
    over the examples of other labels, with s = cos / temperature.

    0, with gradient 0, where there is no such pair, and where all labels are the same.

    Args:
      embeddings: floating-point array (N, D), of any length.
      labels: integer array (N,): the same for examples that belong together. Any integers.
      temperature: above 0.
      where: boolean, (N,) or (1,): the examples that take part, neither as one of a pair nor as
        contrast else. The others may hold anything.

    Returns:
      A scalar; at least float32.

    Raises:
      TypeError: `embeddings` is not floating-point or `labels` not integer.
      ValueError: the shapes do not fit, or `temperature` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> embeddings = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
      >>> print(jaxloss.ntxent(embeddings, jnp.array([0, 0, 1, 1]), 0.5).round(4))
      0.2656

    Source: Chen et al., A simple framework for contrastive learning, arXiv:2002.05709.
    """
    losses, positives = _of_examples(embeddings, labels, temperature, where)
    return divide(jnp.sum(losses), jnp.sum(positives))


@public(labels=("labels",), domain={"temperature": checks.POSITIVE})
def ntxent_per_example(
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike = 0.07,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Normalised temperature-scaled cross entropy (NT-Xent) of each example.

    loss_i = mean over j ≠ i of the same label of -log exp(s_ij) / (exp(s_ij) + Σ_k exp(s_ik)), k
    over the examples of other labels, with s = cos / temperature. `ntxent` is their mean, each
    counted as often as it has such a j.

    0, with gradient 0, where an example has none, and where all labels are the same.

    Args:
      embeddings: floating-point array (N, D), of any length.
      labels: integer array (N,): the same for examples that belong together. Any integers.
      temperature: above 0.
      where: boolean, (N,) or (1,): the examples that take part, neither as one of a pair nor as
        contrast else. The others may hold anything: their loss and gradient are 0.

    Returns:
      One loss per example, (N,); at least float32.

    Raises:
      TypeError: `embeddings` is not floating-point or `labels` not integer.
      ValueError: the shapes do not fit, or `temperature` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> embeddings = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
      >>> print(jaxloss.ntxent_per_example(embeddings, jnp.array([0, 0, 1]), 0.5).round(4))
      [0.1278 0.1542 0.    ]

    Source: Chen et al., A simple framework for contrastive learning, arXiv:2002.05709.
    """
    return divide(*_of_examples(embeddings, labels, temperature, where))


def _of_examples(
    embeddings: ArrayLike, labels: ArrayLike, temperature: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Each example's sum over its positives, and how many these are."""
    (embeddings,) = checks.arrays(embeddings=embeddings)
    if embeddings.ndim != 2:
        checks.fail(ValueError, "embeddings", "have shape (N, D)", embeddings.shape)
    labels = checks.labels("labels", labels, embeddings.shape[:1])
    temperature = checks.number("temperature", temperature, embeddings)
    rows = jax.ShapeDtypeStruct(embeddings.shape[:1], embeddings.dtype)
    where = checks.mask(where, "labels", rows)
    present = jnp.ones_like(labels, bool)
    if where is not None:
        present = jnp.broadcast_to(where, present.shape)
        embeddings = jnp.where(present[:, None], embeddings, 0)
    units = norms.unit(embeddings, (1,))
    # The angles of near neighbours are small differences, which a TPU's usual product would lose.
    scores = jnp.matmul(units, units.T, precision=lax.Precision.HIGHEST) / temperature
    return _of_scores(scores, labels, present)


@jax.custom_jvp
def _of_scores(
    scores: jax.Array, labels: jax.Array, present: jax.Array
) -> tuple[jax.Array, jax.Array]:
    positive, _, behind = _behind(scores, labels, present)
    losses = jnp.sum(jnp.where(positive, elementwise.softplus(behind), 0), 1)
    return losses, jnp.sum(positive.astype(scores.dtype), 1)


@_of_scores.defjvp
def _of_scores_jvp(primals, tangents):
    # Autodiff would keep several arrays of all pairs for the backward pass.
    scores, labels, present = primals
    losses, count = _of_scores(*primals)
    positive, log_sum, behind = _behind(scores, labels, present)
    pull = jnp.where(positive, lax.logistic(behind), 0)
    negative = _pairs(present) & (labels[:, None] != labels[None])
    shares = jnp.where(negative, jnp.exp(jnp.where(negative, scores - log_sum, 0)), 0)
    gradient = shares * jnp.sum(pull, 1, keepdims=True) - pull
    return (losses, count), (jnp.sum(gradient * tangents[0], 1), jnp.zeros_like(count))


def _pairs(present: jax.Array) -> jax.Array:
    return present[:, None] & present[None]


def _behind(scores, labels, present):
    """The positive pairs, log Σ exp of each row's negatives, and by how much that is greater."""
    same = labels[:, None] == labels[None]
    row = lax.broadcasted_iota(jnp.int32, labels.shape, 0)
    itself = row[:, None] == row[None]
    pairs = _pairs(present)
    others = jnp.where(pairs & ~same, scores, -jnp.inf)
    peak = jnp.max(lax.stop_gradient(others), 1, keepdims=True, initial=-jnp.inf)
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    total = jnp.sum(jnp.exp(others - peak), 1, keepdims=True)
    alone = total == 0
    log_sum = jnp.where(alone, -jnp.inf, peak + jnp.log(jnp.where(alone, 1, total)))
    positive = pairs & same & ~itself
    return positive, log_sum, jnp.where(positive & ~alone, log_sum - scores, -jnp.inf)
