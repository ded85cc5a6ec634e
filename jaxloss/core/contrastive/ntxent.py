"""NT-Xent: the embeddings of a batch against one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, norms, xla
from jaxloss._base.call import public
from jaxloss._base.reduction import divide
from jaxloss.core.contrastive.pairs import BLOCK_SCORES
from jaxloss.core.linear.cutting import divisor_near
from jaxloss.core.linear.scanning import each


@public(labels=("labels",), domain={"temperature": checks.POSITIVE})
def ntxent(
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike = 0.07,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Normalised temperature-scaled cross entropy (NT-Xent), the mean over all positive pairs.

    loss = mean over pairs i ≠ j of one label of -log exp(s_ij) / (exp(s_ij) + Σ_k exp(s_ik)), with
    k over the examples of other labels and s = cos / temperature.

    0, with gradient 0, if there is no such pair, or if all labels are the same. Of more than 2048
    examples, the cosines of a block of rows exist at a time, in either direction.

    Args:
      embeddings: floating-point array (N, D), of any length.
      labels: integer array (N,), equal for examples that belong together; any integers.
      temperature: above 0.
      where: boolean, (N,) or (1,): the examples that take part. The others count neither in pairs
        nor as contrast, and may hold anything.

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
      0.2899

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

    loss_i = mean over j ≠ i of the same label of -log exp(s_ij) / (exp(s_ij) + Σ_k exp(s_ik)), with
    k over the examples of other labels and s = cos / temperature. `ntxent` is the mean of these,
    weighted by how many such j each i has.

    0, with gradient 0, if an example has no such j, or if all labels are the same.

    Args:
      embeddings: floating-point array (N, D), of any length.
      labels: integer array (N,), equal for examples that belong together; any integers.
      temperature: above 0.
      where: boolean, (N,) or (1,): the examples that take part. The others count neither in pairs
        nor as contrast, have loss and gradient 0, and may hold anything.

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
      [0.1281 0.1542 0.    ]

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
    places = lax.broadcasted_iota(jnp.int32, labels.shape, 0)
    columns = Examples(labels, present, places)

    def of_rows(rows):
        units_of_rows, rows = rows
        # Angles of near neighbours are small differences, which a TPU's usual product would lose.
        scores = jnp.matmul(units_of_rows, units.T, precision=lax.Precision.HIGHEST) / temperature
        return _of_scores(scores, rows, columns)

    return _in_blocks(of_rows, (units, columns), labels.shape[0])


class Examples(NamedTuple):
    """The examples in the rows of scores, or those in the columns."""

    labels: jax.Array
    present: jax.Array  # True for those that take part.
    places: jax.Array  # Which tell an example from those of its label.


def _in_blocks(f: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """f of all rows, a block of them after the other, each with its scores to all columns.

    Scores of all pairs at once, and what is made of them, would be five arrays on a CPU and one on
    a chip. Making them once more for the gradient is the price: for 8192 examples of 128 numbers
    1.7 of the cycles on a TPU v5e and 2.3 of the time on an H100, as compiled, at 0.6 MB for 269
    and 34 MB for 285.
    """
    # What is exported for any number of examples cannot tell how many blocks they make.
    known = isinstance(size, int)
    count = divisor_near(size, -(-(size**2) // BLOCK_SCORES)) if known else 1
    if count == 1:
        return f(rows)

    def cut(x):
        x = jnp.pad(x, [(0, -size % count)] + [(0, 0)] * (x.ndim - 1))
        # Where rows are spread over devices, each has its share of every block.
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    found = each(f, jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.T.ravel()[:size], found)


@jax.custom_jvp
def _of_scores(scores: jax.Array, rows: Examples, columns: Examples) -> tuple[jax.Array, jax.Array]:
    positive, negative = _pairs(rows, columns, scores.dtype)
    behind = _log_sum(scores, negative) - scores
    return jnp.sum(positive * elementwise.softplus(behind), 1), jnp.sum(positive, 1)


@_of_scores.defjvp
def _of_scores_jvp(primals, tangents):
    # Autodiff would keep several arrays of all pairs for the backward pass. Here it is the scores,
    # and the gradient, which is made of nothing else.
    scores, rows, columns = primals
    losses, count = _of_scores(*primals)
    positive, negative = _pairs(rows, columns, scores.dtype)
    log_sum, again = _log_sum(scores, negative), xla.recomputed(scores)
    total = jnp.sum(positive * lax.logistic(log_sum - scores), 1, keepdims=True)
    pulls = positive * lax.logistic(log_sum - again)
    gradient = negative * _exp_below(again - log_sum) * total - pulls
    return (losses, count), (jnp.sum(gradient * tangents[0], 1), jnp.zeros_like(count))


def _pairs(rows: Examples, columns: Examples, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """1 for pairs of different examples that have one label, and for those that have two; else 0.

    Factors, as XLA stores selections before it sums them; no score is infinite.
    """
    there = rows.present[:, None] & columns.present[None]
    same = rows.labels[:, None] == columns.labels[None]
    positive = there & same & (rows.places[:, None] != columns.places[None])
    return positive.astype(dtype), (there & ~same).astype(dtype)


def _log_sum(scores: jax.Array, negative: jax.Array) -> jax.Array:
    """log Σ exp over the negatives of each row, (N, 1); very low if there are none."""
    low = float(jnp.finfo(scores.dtype).min) / 4
    peak = jnp.max(lax.stop_gradient(scores) + low * (1 - negative), 1, keepdims=True, initial=low)
    total = jnp.sum(negative * _exp_below(scores - peak), 1, keepdims=True)
    alone = total == 0
    return jnp.where(alone, low, peak + jnp.log(jnp.where(alone, 1, total)))


def _exp_below(x: jax.Array) -> jax.Array:
    """exp(x) where x is below 0, as it is for negatives; 1 above, where it would be infinite."""
    return jnp.exp(x - lax.stop_gradient(jnp.maximum(x, 0)))
