"""NT-Xent: the embeddings of a batch against one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, meshes, norms, xla
from jaxloss._base.call import public
from jaxloss._base.reduction import divide
from jaxloss.core.classes.capping import inverse
from jaxloss.core.contrastive.statistics import exp_below
from jaxloss.core.linear.cutting import divisor_near
from jaxloss.core.linear.scanning import each

_BLOCK_SCORES = 2**23  # How many scores a block makes.


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

    0, with gradient 0, if there is no such pair, or if all labels are the same. With more than 2896
    examples, the cosines exist for one block of rows at a time, forwards and backwards. On a mesh
    with explicit axis types each device has its own rows of them, and the embeddings of all
    examples.

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
    places = lax.broadcasted_iota(jnp.int32, labels.shape, 0)
    embeddings, labels, present, places = meshes.by_rows((embeddings, labels, present, places))
    if where is not None:
        embeddings = jnp.where(present[:, None], embeddings, 0)
    # The scores of these with one another are cosines over the temperature.
    vectors = norms.unit(embeddings, (1,)) * jnp.sqrt(inverse(temperature))
    given = vectors, Examples(labels, present, places)
    return _sums(*meshes.varying(given, given))


class Examples(NamedTuple):
    """The examples in the rows of scores, or those in the columns."""

    labels: jax.Array
    present: jax.Array  # True for those that take part.
    places: jax.Array  # They tell apart examples of the same label.


class Found(NamedTuple):
    """What is known of each example, (N,), once all its scores have been seen."""

    losses: jax.Array  # The sums over the positives.
    counts: jax.Array  # How many these are.
    log_sums: jax.Array  # log Σ exp over the negatives.
    pushes: jax.Array  # The derivatives of the losses by these.


@jax.custom_jvp
def _sums(vectors: jax.Array, examples: Examples) -> tuple[jax.Array, jax.Array]:
    found = _found(vectors, examples)
    return found.losses, found.counts


@_sums.defjvp
def _sums_jvp(primals, tangents):
    # Autodiff would keep the scores, or make the reductions anew as well, and multiply the slopes
    # with the rows and with the columns. As scores are symmetric, one product does: of the slopes
    # of both of its examples, which what was found of them gives.
    vectors, examples = primals
    found = _found(vectors, examples)

    def along(given, dots):
        vectors, examples, found = given
        columns, columns_dot, others = meshes.whole((vectors, dots, examples))

        def block(rows):
            x, x_dot, rows, of_rows = rows
            scores = _product(x, columns)
            slopes = _slopes(scores, *_pairs(rows, others, scores.dtype), of_rows, 1)
            return jnp.sum(slopes * (_product(x, columns_dot) + _product(x_dot, columns)), 1)

        return _in_blocks(block, (vectors, dots, examples, found))

    def gradient(given, factors):
        columns, others, of_columns, by_columns = meshes.whole((*given, factors))

        def block(rows):
            x, rows, of_rows, by_rows = rows
            scores = _product(x, columns)
            pairs = _pairs(rows, others, scores.dtype)
            slopes = by_rows[:, None] * _slopes(scores, *pairs, of_rows, 1)
            slopes = slopes + by_columns[None] * _slopes(scores, *pairs, of_columns, 0)
            return jnp.matmul(slopes, columns, precision=lax.Precision.HIGHEST)

        return _in_blocks(block, (*given, factors))

    given = vectors, examples, found
    losses_dot = xla.linear(along, gradient, given, tangents[0], found.losses)
    return (found.losses, found.counts), (losses_dot, jnp.zeros_like(found.counts))


def _found(vectors: jax.Array, examples: Examples) -> Found:
    columns, others = meshes.whole((vectors, examples))

    def block(rows):
        x, rows = rows
        scores = _product(x, columns)
        positive, negative = _pairs(rows, others, scores.dtype)
        log_sum = _log_sum(scores, negative)
        behind = log_sum - scores
        losses = jnp.sum(positive * elementwise.softplus(behind), 1)
        pushes = jnp.sum(positive * lax.logistic(behind), 1)
        # A GPU takes a kernel in every turn for each array; the second the value does not need.
        sums = jnp.stack([losses, jnp.sum(positive, 1)], 1)
        return sums, jnp.stack([jnp.squeeze(log_sum, 1), pushes], 1)

    sums, rest = _in_blocks(block, (vectors, examples))
    return Found(*sums.T, *rest.T)


def _slopes(
    scores: jax.Array, positive: jax.Array, negative: jax.Array, found: Found, axis: int
) -> jax.Array:
    """The derivatives by the scores of the losses of the examples in the rows, or the columns."""
    log_sums, pushes = (jnp.expand_dims(x, axis) for x in (found.log_sums, found.pushes))
    away = negative * exp_below(scores - log_sums) * pushes
    return away - positive * lax.logistic(log_sums - scores)


def _product(x: jax.Array, vectors: jax.Array) -> jax.Array:
    # Angles of near neighbours are small differences, which a TPU's usual product would lose.
    return jnp.matmul(x, vectors.T, precision=lax.Precision.HIGHEST)


def _in_blocks(f: Callable[[Any], Any], rows: Any) -> Any:
    """f of all rows, one block after the other, each with its scores to all columns.

    Scores of all pairs at once, and what is made of them, would be three arrays on a CPU and one
    on a chip. Making them once more for the gradient is the price: for 8192 examples of 128 numbers
    1.3 of the cycles on a TPU v5e and 1.5 of the time on an H100, as compiled, at 0.7 MB for 269
    and 47 MB for 277. Blocks of half the size would take 1.9 of the time on the H100, for their
    many small kernels, and 30 MB.
    """
    first = jax.tree.leaves(rows)[0]
    size, shares = first.shape[0], meshes.shares(first)
    # What is exported for any number of examples cannot tell how many blocks they make.
    known = isinstance(size, int)
    own = size // shares if known else size
    count = divisor_near(own, -(-(size * own) // _BLOCK_SCORES)) if known else 1
    if count == 1:
        return f(rows)

    def cut(x):
        x = x.reshape(shares, own, *x.shape[1:])
        x = jnp.pad(x, [(0, 0), (0, -own % count)] + [(0, 0)] * (x.ndim - 2))
        # Where rows are spread over devices, each has its share of every block.
        x = jnp.moveaxis(x.reshape(shares, -1, count, *x.shape[2:]), 2, 0)
        return x.reshape(count, -1, *x.shape[3:])

    def joined(x):
        x = jnp.moveaxis(x.reshape(count, shares, -1, *x.shape[2:]), 0, 2)
        return x.reshape(shares, -1, *x.shape[3:])[:, :own].reshape(size, *x.shape[3:])

    return jax.tree.map(joined, each(f, jax.tree.map(cut, rows)))


def _pairs(rows: Examples, columns: Examples, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Two masks: pairs of different examples with the same label, and pairs with different labels.

    They are factors, 1 or 0, since XLA stores selections before it sums them; no score is infinite.
    """
    there = rows.present[:, None] & columns.present[None]
    same = rows.labels[:, None] == columns.labels[None]
    positive = there & same & (rows.places[:, None] != columns.places[None])
    return positive.astype(dtype), (there & ~same).astype(dtype)


def _log_sum(scores: jax.Array, negative: jax.Array) -> jax.Array:
    """log Σ exp over the negatives of each row, (N, 1); very low if there are none."""
    low = float(jnp.finfo(scores.dtype).min) / 4
    peak = jnp.max(lax.stop_gradient(scores) + low * (1 - negative), 1, keepdims=True, initial=low)
    total = jnp.sum(negative * exp_below(scores - peak), 1, keepdims=True)
    alone = total == 0
    return jnp.where(alone, low, peak + jnp.log(jnp.where(alone, 1, total)))
