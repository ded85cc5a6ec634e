"""Connectionist temporal classification: the loss, and the alignment that it sums over."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, exact, xla
from jaxloss._base.call import public
from jaxloss.core.sequences import batch
from jaxloss.core.sequences import lattice as lattices
from jaxloss.core.sequences import normalizer as normalizers
from jaxloss.core.sequences.batch import Sequences
from jaxloss.core.sequences.lattice import Lattice
from jaxloss.core.sequences.normalizer import Normalizer
from jaxloss.core.sequences.scaled import Scaled


@public(static=("blank_id",), labels=("labels",))
def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Connectionist temporal classification loss, from logits.

    loss = -log Σ_π Π_t softmax(logits_t)[π_t], over all paths π of one symbol per frame that read
    `labels` once repeated symbols are merged and blanks removed.

    Never negative. Where no path fits, because there are too few frames or a symbol has
    probability 0, the loss is +inf and its gradient 0. Padded frames and labels may hold
    anything, NaN included, may stand anywhere, and count for nothing. A label outside [0, C)
    gives NaN in that example's value and gradient only. In float32 the gradient stays within 2e-6
    of the exact one for thousands of frames.

    Args:
      logits: floating-point array (..., T, C), unnormalized log probabilities of C symbols, the
        blank among them, in each of T frames.
      logit_paddings: (..., T), not 0 where a frame is padding.
      labels: integer array (..., L), without blanks.
      label_paddings: (..., L), not 0 where a label is padding.
      blank_id: the index of the blank.
      log_epsilon: optax's stand-in for log 0; without effect, as none is needed here.
      where: boolean, one per sequence: of as many dimensions as (...) and broadcastable to it.
        A sequence that it excludes may hold anything in every argument, and has the loss 0 and a
        gradient of exactly 0.

    Returns:
      One loss per sequence, shape (...); at least float32. Do not mask an impossible sequence by
      multiplying with 0, which gives NaN: use `where`, here or in `reduce`, or `reduce(weights=)`.

    Raises:
      TypeError: `logits` is not floating-point, `labels` not integer or `where` not boolean.
      ValueError: the shapes do not fit or `blank_id` is no symbol.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]]))
      >>> losses = jaxloss.ctc_loss(logits, jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1)))
      >>> print(jnp.exp(-losses))  # Paths "1 -", "- 1" and "1 1": 1/8 + 1/8 + 1/16.
      [0.3125]

    Source: Graves et al., Connectionist Temporal Classification, ICML 2006.
    """
    checks.number("log_epsilon", log_epsilon, jnp.zeros(()))
    sequences = _sequences(logits, logit_paddings, labels, label_paddings, blank_id, where)
    return batch.batched(lambda s: losses_of_paths(s, blank_id, LOGITS), sequences)


@public(static=("blank_id",), labels=("labels",))
def ctc_alignment(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Where in time each label is read: the posterior that `ctc_loss` sums over.

    alignment_tl = P(frame t reads label l | the sequence reads `labels`) = α_t β_t / p, the label's
    occupancy; what a frame lacks to 1 belongs to the blank. Differentiable, and 0 in padded frames,
    for padded labels and where no path fits. Each frame is a sum over all paths, so the most likely
    symbols of the frames need not form a path that reads the labels.

    Args:
      logits: as in `ctc_loss`.
      logit_paddings: as in `ctc_loss`.
      labels: as in `ctc_loss`.
      label_paddings: as in `ctc_loss`.
      blank_id: as in `ctc_loss`.
      where: as in `ctc_loss`; 0 for a sequence that it excludes.

    Returns:
      Probabilities of shape (..., T, L); at least float32.

    Raises:
      TypeError: `logits` is not floating-point, `labels` not integer or `where` not boolean.
      ValueError: the shapes do not fit or `blank_id` is no symbol.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
      >>> print(jaxloss.ctc_alignment(logits, jnp.zeros(2), jnp.array([1]), jnp.zeros(1)))
      [[0.6]
       [0.6]]

    Source: Graves et al., Connectionist Temporal Classification, ICML 2006, equation 14.
    """
    sequences = _sequences(logits, logit_paddings, labels, label_paddings, blank_id, where)
    return batch.batched(lambda s: _alignment(s, blank_id), sequences)


class Kind(NamedTuple):
    """What the scores of sequences are."""

    normalize: bool  # Whether they are logits; else they are the logarithms of factors themselves.
    batch_axis: int  # 0 or 1; the other is time.


LOGITS = Kind(normalize=True, batch_axis=0)
LOG_PROBS = Kind(normalize=False, batch_axis=1)


def _sequences(logits, logit_paddings, labels, label_paddings, blank_id, where):
    (logits,) = checks.arrays(logits=logits)
    if logits.ndim < 2:
        checks.fail(ValueError, "logits", "have shape (..., T, C)", logits.shape)
    return batch.without_padding(
        logits, logit_paddings, labels, label_paddings, blank_id, where, nodes=2
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def losses_of_paths(sequences: Sequences, blank_id: int, kind: Kind) -> jax.Array:
    """-log of the sum over the paths that read the labels, (B,)."""
    lattice, _, normalizer = _lattice(sequences, blank_id, kind)
    return _loss(lattices.meet(lattice).likelihood, normalizer, sequences)


@losses_of_paths.defjvp
def _losses_of_paths_jvp(blank_id, kind, primals, tangents):
    # Autodiff would store every step of the recursion and go through it backwards. The gradient is
    # known instead (Graves 2006, equation 16): the softmax, or nothing where scores are factors,
    # less the occupancies α β / p(l | x).
    (sequences,), (sequences_dot,) = primals, tangents
    lattice, symbols, normalizer = _lattice(sequences, blank_id, kind)
    middle = lattices.meet(lattice)
    loss = _loss(middle.likelihood, normalizer, sequences)
    occupancies = _by_sequence(lattices.occupancies(lattice, middle), sequences)
    gradient = -_of_classes(occupancies, symbols[:, :-1], sequences.scores.shape, kind)
    if normalizer is not None:
        present = sequences.frames & (middle.likelihood.mantissa[0] != 0)
        gradient = normalizers.softmax(sequences.scores, present, normalizer) + gradient
    axes = tuple(a for a in range(3) if a != kind.batch_axis)
    return loss, jnp.sum(gradient * sequences_dot.scores, axes)


def _alignment(sequences: Sequences, blank_id: int) -> jax.Array:
    lattice, _, _ = _lattice(sequences, blank_id, LOGITS)
    occupancies = _by_sequence(lattices.occupancies(lattice, lattices.meet(lattice)), sequences)
    labels = jax.vmap(lambda x, rank: x[:, 1 + rank])(occupancies, batch.rank(sequences.present))
    absent = 0 * jnp.sum(occupancies, 2, keepdims=True)
    return jnp.where(sequences.present[:, None], labels, absent)


def _lattice(
    sequences: Sequences, blank_id: int, kind: Kind
) -> tuple[Lattice, jax.Array, Normalizer | None]:
    """The lattice, its symbols (B, L + 2), the labels between blanks, and the normalizer."""
    scores, frames, labels, present, _ = sequences
    labels = jnp.take_along_axis(labels, batch.order(present), 1)
    symbols = jnp.pad(labels, ((0, 0), (1, 1)), constant_values=blank_id)
    factors = _along_symbols(scores, jnp.expand_dims(symbols, 1 - kind.batch_axis))
    normalizer = None
    if kind.normalize:
        best = jnp.max(factors, 2, keepdims=True) == factors
        symbol = jnp.max(jnp.where(best, symbols[:, None], 0), 2)
        # Of this symbol alone also where others are as likely, or derivatives would mix them.
        is_symbol = symbols[:, None] == symbol[..., None]
        score = jnp.max(jnp.where(is_symbol, factors, -jnp.inf), 2)
        normalizer = normalizers.normalizer(scores, frames, symbol, score)
        factors = factors - normalizer.peak[..., None]
    factors = jnp.moveaxis(factors, kind.batch_axis, 1)
    lattice = lattices.lattice(symbols, factors, frames.T, batch.count(present))
    return lattice, symbols, normalizer


def _loss(likelihood: Scaled, normalizer: Normalizer | None, sequences: Sequences) -> jax.Array:
    large, small = (x[0, :, 0] for x in likelihood.log_parts())
    possible = likelihood.mantissa[0, :, 0] != 0
    if normalizer is None:
        steps = batch.count(sequences.frames)
        return batch.finished(0 - (large + small), possible, sequences, steps)
    # Two sums of thousands of terms, of which the loss may be a small difference.
    total, total_rest = exact.long_sum(normalizer.log_sum)
    loss, rest = exact.two_sum(total, -large)
    return batch.finished(loss + ((rest + total_rest) - small), possible, sequences, None)


def _by_sequence(occupancies: jax.Array, sequences: Sequences) -> jax.Array:
    """Occupancies with every frame in its place, (B, T, L + 1)."""
    occupancies = jnp.moveaxis(occupancies[: sequences.frames.shape[1]], 0, 1)
    occupancies = xla.nan_where(sequences.bad[:, None, None], occupancies)
    return jnp.where(sequences.frames[..., None], occupancies, 0)


def _of_classes(
    occupancies: jax.Array, symbols: jax.Array, shape: tuple[int, ...], kind: Kind
) -> jax.Array:
    """The occupancies of symbols as those of all classes, in the shape of the scores."""
    # Each class looks for its own, which is faster than sending them to their classes. For that a
    # symbol in several places first gets the sum over them in each; behind them all stands a 0.
    columns = jnp.pad(symbols, ((0, 0), (0, 1)), constant_values=-1)
    same = symbols[:, :, None] == columns[:, None, :]
    same = same.astype(occupancies.dtype)
    sums = jnp.einsum("btl,blm->btm", occupancies, same, precision="highest")
    is_class = symbols[..., None] == lax.broadcasted_iota(symbols.dtype, (1, 1, shape[2]), 2)
    places = jnp.where(is_class, batch.iota(symbols, 1)[..., None], symbols.shape[1])
    places = jnp.min(places, 1)[:, None]
    sums, places = (jnp.moveaxis(x, 0, kind.batch_axis) for x in (sums, places))
    return _along_symbols(sums, places)


def _along_symbols(x: jax.Array, indices: jax.Array) -> jax.Array:
    """x at indices along its last axis; in the others their size may be 1."""
    # Left to broadcast them itself, the gather would end with time, and be copied into order.
    indices = jnp.broadcast_to(indices, (*x.shape[:2], indices.shape[2]))
    return jnp.take_along_axis(x, indices, 2, mode="promise_in_bounds")
