"""The transducer's loss of the usual joiner, block by block: its logits are never held whole."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from jaxloss._base import checks, meshes
from jaxloss._base.call import public
from jaxloss.core.linear.products import product, product_as
from jaxloss.core.sequences import batch, diagonals, rnnt
from jaxloss.core.sequences.batch import Sequences
from jaxloss.core.sequences.diagonals import Logarithm

# Logits that exist at a time, unless those of one frame are more.
_BLOCK_LOGITS = 4 * 2**20


@public(
    static=("blank_id", "chunk_size", "precision"),
    labels=("labels",),
    domain={"fastemit": checks.NON_NEGATIVE},
)
def rnnt_loss_of_sum(
    encodings: ArrayLike,
    predictions: ArrayLike,
    kernel: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    blank_id: int = 0,
    fastemit: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    precision: PrecisionLike = None,
) -> jax.Array:
    """`rnnt_loss` of the usual joiner, whose logits are never held whole.

    loss = rnnt_loss(tanh(encodings_t + predictions_u) @ kernelᵀ + bias, ...)

    Frames are taken in blocks, whose logits are made for the loss and made again for its gradient.
    Padding, bad labels and impossible sequences are as in `rnnt_loss`, but a bad label also makes
    the gradient of the kernel NaN, which all sequences share. Half operands are added up and go
    through tanh in float32, then into the product as halves, whose sums are in float32.
    The gradient of the logits is rounded to the operands' dtype before its two products, unless
    `precision` is "highest".

    Args:
      encodings: floating-point array (..., T, D), of the frames.
      predictions: (..., U + 1, D): row 0 before any label, row u + 1 after label u.
      kernel: (C, D), one row of weights per symbol, the blank among them.
      logit_paddings: (..., T), not 0 where a frame is padding.
      labels: integer array (..., U), without blanks.
      label_paddings: (..., U), not 0 where a label is padding.
      bias: (C,).
      blank_id: the index of the blank.
      fastemit: as in `rnnt_loss`.
      where: as in `rnnt_loss`.
      chunk_size: how many frames of each sequence have logits at a time. By default as many as make
        4 million logits in all, and at least one.
      precision: of the matrix products, a `jax.lax.PrecisionLike`; "highest" also keeps the
        gradient of the logits in float32, instead of rounding it to the dtype of half operands.

    Returns:
      One loss per sequence, shape (...); at least float32.

    Raises:
      TypeError: an array is not floating-point, `labels` not integer or `where` not boolean.
      ValueError: the shapes or `chunk_size` do not fit, `blank_id` is no symbol or `fastemit` is
        below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> encodings, predictions, kernel = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3))
      >>> paddings, labels, missing = jnp.zeros(2), jnp.array([1]), jnp.zeros(1)
      >>> loss = jaxloss.rnnt_loss_of_sum(
      ...     encodings, predictions, kernel, paddings, labels, missing
      ... )
      >>> print(jnp.exp(-loss))  # As of even logits: paths "1 - -" and "- 1 -", 1/8 + 1/8.
      0.25

    Source: as `rnnt_loss`.
    """
    encodings, predictions, kernel = checks.operands(
        encodings=encodings, predictions=predictions, kernel=kernel
    )
    _check(encodings, predictions, kernel)
    bias = checks.follower("bias", bias, jnp.zeros((), checks.wide(kernel.dtype)))
    if bias is None:
        bias = jnp.zeros(len(kernel), checks.wide(kernel.dtype))
    elif bias.shape != kernel.shape[:1]:
        checks.fail(ValueError, "bias", f"have shape {kernel.shape[:1]}", bias.shape)
    # Of a sequence all that is asked of its scores is how many symbols there are.
    shape = (*encodings.shape[:-1], predictions.shape[-2], len(kernel))
    like = jax.ShapeDtypeStruct(shape, bias.dtype)
    sequences = batch.without_padding(
        like, logit_paddings, labels, label_paddings, blank_id, where, nodes=3
    )
    rnnt.check_rows("labels", sequences.labels, shape[-2])
    fastemit = checks.number("fastemit", fastemit, bias)
    joiner = functools.partial(
        _losses, kernel=kernel, bias=bias, fastemit=fastemit, blank=blank_id,
        chunk_size=chunk_size, precision=precision,
    )  # fmt: skip
    leading = encodings.ndim - 2
    joined = jax.tree.map(
        lambda x: meshes.laid_as(x, encodings, leading),
        sequences._replace(scores=(encodings, predictions)),
    )
    return batch.batched(joiner, joined)


def _check(encodings, predictions, kernel):
    if kernel.ndim != 2:
        checks.fail(ValueError, "kernel", "have shape (C, D)", kernel.shape)
    features = kernel.shape[1]
    if encodings.ndim < 2 or encodings.shape[-1] != features:
        rule = f"have shape (..., T, {features})"
        checks.fail(ValueError, "encodings", rule, encodings.shape)
    shape = encodings.shape[:-2]
    if predictions.ndim != encodings.ndim or (*predictions.shape[:-2], features) != (
        *shape,
        predictions.shape[-1],
    ):
        rule = f"have shape ({', '.join([*map(str, shape), 'U + 1', str(features)])})"
        checks.fail(ValueError, "predictions", rule, predictions.shape)


def _losses(sequences, kernel, bias, fastemit, blank, chunk_size, precision):
    (encodings, predictions), frames, labels, present, _ = sequences
    size = _block_size(encodings, predictions, kernel, chunk_size)
    rows = rnnt.rows(present)
    # What is padding may be NaN, which a derivative would multiply by 0.
    encodings = jnp.where(frames[..., None], encodings, 0)
    predictions = jnp.where(rows[..., None], predictions, 0)
    label = rnnt.next_labels(labels, present)
    operands, wide = kernel.dtype, checks.wide(kernel.dtype)
    # In float32 outside of the loop, which adds up their gradients.
    predictions, kernel = predictions.astype(wide), kernel.astype(wide)

    @jax.checkpoint
    def factors(encodings, predictions, kernel, bias):
        joined = jnp.tanh(encodings[:, :, None].astype(wide) + predictions[:, None])
        if operands == wide:
            logits = product(joined, kernel, precision)
        else:
            logits = product_as(joined, kernel, operands, precision)
        logits = logits + bias[None, None, None]
        everywhere = jnp.ones(logits.shape[:3], bool)
        nodes = rnnt.nodes(logits, everywhere, label, blank, True)
        return nodes.factors

    count = -(-frames.shape[1] // size)
    missing = count * size - frames.shape[1]
    blocks = jnp.pad(encodings, ((0, 0), (0, missing), (0, 0)))
    blocks = jnp.moveaxis(blocks.reshape(frames.shape[0], count, size, blocks.shape[2]), 1, 0)

    def block(_, encodings):
        return None, factors(encodings, predictions, kernel, bias)

    _, found = lax.scan(block, None, blocks)

    def in_time(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(frames.shape[0], count * size, x.shape[3])[:, : frames.shape[1]]

    blanks, labels = jax.tree.map(in_time, found)
    return losses_of_factors(blanks, labels, sequences._replace(scores=bias), fastemit)


def _block_size(encodings, predictions, kernel, chunk_size):
    """How many frames go into a block."""
    frames = encodings.shape[1]
    if chunk_size is None:
        logits_of_a_frame = encodings.shape[0] * predictions.shape[1] * len(kernel)
        size = _BLOCK_LOGITS // max(logits_of_a_frame, 1)
    else:
        checks.at_least(1, "chunk_size", chunk_size)
        size = chunk_size
    return max(1, min(size, frames))


@jax.custom_jvp
def losses_of_factors(
    blanks: Logarithm, labels: Logarithm, sequences: Sequences, fastemit: jax.Array
) -> jax.Array:
    """`rnnt.losses_of_paths` of the factors of the blank and the next label at each node."""
    lattice = rnnt.lattice(blanks, labels, sequences)
    return rnnt.loss(diagonals.meet(lattice).likelihood, sequences, True)


@losses_of_factors.defjvp
def _losses_of_factors_jvp(primals, tangents):
    # As in `rnnt_loss`, with the part of the softmax left to the factors.
    blanks, labels, sequences, fastemit = primals
    lattice = rnnt.lattice(blanks, labels, sequences)
    middle = diagonals.meet(lattice)
    occupancies = diagonals.occupancies(lattice, middle)
    of_blanks, of_labels = (rnnt.in_place(x, sequences) for x in occupancies)
    of_labels = (1 + fastemit) * of_labels
    moved = of_blanks * sum(tangents[0]) + of_labels * sum(tangents[1])
    return rnnt.loss(middle.likelihood, sequences, True), -jnp.sum(moved, (1, 2))
