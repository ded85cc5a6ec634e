"""Connectionist temporal classification: the loss, and the alignment that it sums over."""

from __future__ import annotations

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, exact, xla
from jaxloss._base.call import public
from jaxloss.core.sequences import lattice as lattices
from jaxloss.core.sequences.lattice import Lattice
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
    probability 0, the loss is +inf and its gradient 0. A frame or label that is padding may hold
    anything, NaN included, may stand anywhere, and counts for nothing. A label outside [0, C)
    gives NaN in that example's value and gradient only. In float32 the gradient stays within 2e-6
    of the exact one for thousands of frames.

    Args:
      logits: floating-point array (..., T, C), unnormalized log probabilities of C symbols, the
        blank among them, in each of T frames.
      logit_paddings: (..., T), not 0 where a frame is padding.
      labels: integer array (..., L), without blanks.
      label_paddings: (..., L), not 0 where a label is padding.
      blank_id: the index of the blank.
      log_epsilon: optax's stand-in for log 0; without effect, for there is none here.
      where: boolean, one per sequence: of as many dimensions as (...) and broadcastable to it.
        A sequence that it excludes may hold anything in every argument, and has the loss 0 and a
        gradient of exactly 0.

    Returns:
      One loss per sequence, shape (...); at least float32. Where a sequence is impossible a product
      with 0 is NaN: exclude it with `where`, here or in `reduce`, or by `weights` of `reduce`.

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
    return _batched(lambda s: losses_of_paths(s, blank_id, LOGITS), sequences)


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

    alignment_tl = P(frame t reads label l | the sequence reads `labels`); what is missing to 1 in
    a frame is the blank's. Differentiable, and 0 in padded frames, for padded labels and where no
    path fits. Each frame is a sum over all paths: the most likely symbol of each, one frame after
    the other, need not be a path that reads the labels.

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
    return _batched(lambda s: _alignment(s, blank_id), sequences)


class Kind(NamedTuple):
    """What the scores of sequences are."""

    normalize: bool  # Whether they are logits; else they are the logarithms of factors themselves.
    batch_axis: int  # 0 or 1; the other is time.


LOGITS = Kind(normalize=True, batch_axis=0)
LOG_PROBS = Kind(normalize=False, batch_axis=1)


class Sequences(NamedTuple):
    """Sequences of up to T frames, each with up to L labels to read."""

    scores: jax.Array  # (B, T, C) or (T, B, C), of the C symbols in each frame.
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
    known = (labels >= 0) & (labels < classes)
    checks.require(known, "labels", f"be symbols in [0, {classes})", present)
    checks.require(labels != blank_id, "labels", f"not contain the blank, {blank_id}", present)
    bad = jnp.any(present & ~known, -1)
    return Sequences(scores, frames, jnp.clip(labels, 0, classes - 1), present, bad)


def check_blank(name: str, blank: int, classes: int) -> None:
    try:
        known = 0 <= operator.index(blank) < classes
    except TypeError:
        checks.fail(TypeError, name, "be an integer", repr(blank))
    if not known:
        checks.fail(ValueError, name, f"be a symbol in [0, {classes})", blank)


def _sequences(logits, logit_paddings, labels, label_paddings, blank_id, where):
    (logits,) = checks.arrays(logits=logits)
    if logits.ndim < 2:
        checks.fail(ValueError, "logits", "have shape (..., T, C)", logits.shape)
    check_blank("blank_id", blank_id, logits.shape[-1])
    present = _present("label_paddings", label_paddings)
    frames = _present("logit_paddings", logit_paddings)
    if frames.shape != logits.shape[:-1]:
        checks.fail(ValueError, "logit_paddings", f"have shape {logits.shape[:-1]}", frames.shape)
    if present.ndim != frames.ndim or present.shape[:-1] != frames.shape[:-1]:
        rule = f"have shape ({', '.join([*map(str, frames.shape[:-1]), 'L'])})"
        checks.fail(ValueError, "label_paddings", rule, present.shape)
    where = checks.mask(where, "logits[..., 0, 0]", jnp.any(frames, -1))
    if where is not None:
        # What is left of an excluded sequence, no frames and no labels, has the loss 0.
        frames, present = frames & where[..., None], present & where[..., None]
    return sequences(logits, frames, labels, present, blank_id)


def _present(name, paddings):
    paddings = jnp.asarray(paddings)
    if jnp.iscomplexobj(paddings):
        checks.fail(TypeError, name, "be real", paddings.dtype)
    return paddings == jnp.zeros((), paddings.dtype)


def _batched(f, sequences):
    """Calls f with exactly one batch dimension."""
    shape = sequences.bad.shape
    if len(shape) == 1:
        return f(sequences)
    merged = jax.tree.map(lambda x: x.reshape(math.prod(shape), *x.shape[len(shape) :]), sequences)
    result = f(merged)
    return result.reshape(*shape, *result.shape[1:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def losses_of_paths(sequences: Sequences, blank_id: int, kind: Kind) -> jax.Array:
    """-log of the sum over the paths that read the labels, (B,)."""
    lattice, _, normalizer = _lattice(sequences, blank_id, kind)
    return _loss(lattices.meet(lattice).likelihood, normalizer, sequences)


@losses_of_paths.defjvp
def _losses_of_paths_jvp(blank_id, kind, primals, tangents):
    # Autodiff would store every step of the recursion and go through it backwards. The gradient is
    # known instead: the factors' share in all paths less their share in those that read the labels.
    (sequences,), (sequences_dot,) = primals, tangents
    lattice, symbols, normalizer = _lattice(sequences, blank_id, kind)
    middle = lattices.meet(lattice)
    loss = _loss(middle.likelihood, normalizer, sequences)
    shares = _by_sequence(lattices.occupancies(lattice, middle), sequences)
    gradient = -_of_classes(shares, symbols[:, :-1], sequences.scores.shape, kind)
    if normalizer is not None:
        fits = middle.likelihood.mantissa[0] != 0
        gradient = _softmax(sequences.scores, sequences.frames & fits, normalizer) + gradient
    axes = tuple(a for a in range(3) if a != kind.batch_axis)
    return loss, jnp.sum(gradient * sequences_dot.scores, axes)


def _alignment(sequences: Sequences, blank_id: int) -> jax.Array:
    lattice, _, _ = _lattice(sequences, blank_id, LOGITS)
    shares = _by_sequence(lattices.occupancies(lattice, lattices.meet(lattice)), sequences)
    labels = jax.vmap(lambda x, rank: x[:, 1 + rank])(shares, _rank(sequences.present))
    return jnp.where(sequences.present[:, None], labels, 0 * jnp.sum(shares, 2, keepdims=True))


class Normalizer(NamedTuple):
    """log Σ exp(scores) over C in two parts, the greatest score and the rest: (B, T)."""

    peak: jax.Array
    log_sum: jax.Array


@jax.custom_jvp
def _normalizer(
    scores: jax.Array, frames: jax.Array, symbol: jax.Array, score: jax.Array
) -> Normalizer:
    """The normalizer, accurate where one symbol of each frame, with its score, has almost all."""
    # One sum over plain arithmetic, masked afterwards, is what XLA turns into a fast loop on a CPU.
    peak = jnp.max(lax.stop_gradient(scores), 2)
    classes = lax.broadcasted_iota(scores.dtype, (1, 1, scores.shape[2]), 2)
    other = jnp.minimum(jnp.abs(classes - symbol[..., None].astype(scores.dtype)), 1)
    others = jnp.sum(jnp.exp(scores - peak[..., None]) * other, 2)
    log_sum = jnp.log1p(others + jnp.expm1(score - peak))
    return Normalizer(jnp.where(frames, peak, 0), jnp.where(frames, log_sum, 0))


@_normalizer.defjvp
def _normalizer_jvp(primals, tangents):
    # Autodiff would multiply the NaN in a padded frame by 0.
    scores, frames, _, _ = primals
    normalizer = _normalizer(*primals)
    tangent = jnp.sum(_softmax(scores, frames, normalizer) * tangents[0], 2)
    return normalizer, Normalizer(jnp.zeros_like(tangent), tangent)


def _softmax(scores: jax.Array, frames: jax.Array, normalizer: Normalizer) -> jax.Array:
    log_probs = (scores - normalizer.peak[..., None]) - normalizer.log_sum[..., None]
    return jnp.exp(jnp.where(frames[..., None], log_probs, -jnp.inf))


def _lattice(
    sequences: Sequences, blank_id: int, kind: Kind
) -> tuple[Lattice, jax.Array, Normalizer | None]:
    """The lattice, its symbols (B, L + 2), the labels between blanks, and the normalizer."""
    scores, frames, labels, present, _ = sequences
    labels = jnp.take_along_axis(labels, _order(present), 1)
    symbols = jnp.pad(labels, ((0, 0), (1, 1)), constant_values=blank_id)
    factors = _along_symbols(scores, jnp.expand_dims(symbols, 1 - kind.batch_axis))
    normalizer = None
    if kind.normalize:
        best = jnp.max(factors, 2, keepdims=True) == factors
        symbol = jnp.max(jnp.where(best, symbols[:, None], 0), 2)
        # Of this symbol alone also where others are as likely, or derivatives would mix them.
        is_symbol = symbols[:, None] == symbol[..., None]
        score = jnp.max(jnp.where(is_symbol, factors, -jnp.inf), 2)
        normalizer = _normalizer(scores, frames, symbol, score)
        factors = factors - normalizer.peak[..., None]
    factors = jnp.moveaxis(factors, kind.batch_axis, 1)
    lattice = lattices.lattice(symbols, factors, frames.T, _count(present))
    return lattice, symbols, normalizer


def _loss(likelihood: Scaled, normalizer: Normalizer | None, sequences: Sequences) -> jax.Array:
    large, small = (x[0, :, 0] for x in likelihood.log_parts())
    if normalizer is None:
        loss = 0 - (large + small)
        # Factors may be greater than 1 and the loss below 0. But log probabilities that were
        # rounded sum to 1 only within a few epsilon, of which each frame may add its share.
        classes = jnp.asarray(sequences.scores.shape[2], loss.dtype)
        slack = 2 * float(jnp.finfo(loss.dtype).eps) * (2 + jnp.log(classes))
        frames = _count(sequences.frames)
        rounding = (loss < 0) & (loss >= -slack * frames.astype(loss.dtype))
    else:
        # Two sums of thousands of terms, of which the loss may be a small difference.
        total, total_rest = exact.long_sum(normalizer.log_sum)
        loss, rest = exact.two_sum(total, -large)
        loss = loss + ((rest + total_rest) - small)
        rounding = loss < 0
    loss = jnp.where(rounding, loss - lax.stop_gradient(loss), loss)
    loss = jnp.where(likelihood.mantissa[0, :, 0] == 0, jnp.inf, loss)
    return xla.nan_where(sequences.bad, loss)


def _by_sequence(shares: jax.Array, sequences: Sequences) -> jax.Array:
    """Occupancies with every frame in its place, (B, T, L + 1)."""
    shares = jnp.moveaxis(shares[: sequences.frames.shape[1]], 0, 1)
    shares = xla.nan_where(sequences.bad[:, None, None], shares)
    return jnp.where(sequences.frames[..., None], shares, 0)


def _of_classes(
    shares: jax.Array, symbols: jax.Array, shape: tuple[int, ...], kind: Kind
) -> jax.Array:
    """The shares of symbols as those of all classes, in the shape of the scores."""
    # Each class looks for its share, which is faster than sending shares to their classes. For that
    # a symbol in several places first gets the sum over them in each; behind them all stands a 0.
    columns = jnp.pad(symbols, ((0, 0), (0, 1)), constant_values=-1)
    same = symbols[:, :, None] == columns[:, None, :]
    shares = jnp.einsum("btl,blm->btm", shares, same.astype(shares.dtype), precision="highest")
    is_class = symbols[..., None] == lax.broadcasted_iota(symbols.dtype, (1, 1, shape[2]), 2)
    places = jnp.where(is_class, _iota(symbols, 1)[..., None], symbols.shape[1])
    places = jnp.min(places, 1)[:, None]
    shares, places = (jnp.moveaxis(x, 0, kind.batch_axis) for x in (shares, places))
    return _along_symbols(shares, places)


def _along_symbols(x: jax.Array, indices: jax.Array) -> jax.Array:
    """x at indices along its last axis; in the others their size may be 1."""
    # Left to broadcast them itself, the gather would end with time, and be copied into order.
    indices = jnp.broadcast_to(indices, (*x.shape[:2], indices.shape[2]))
    return jnp.take_along_axis(x, indices, 2, mode="promise_in_bounds")


def _order(present: jax.Array) -> jax.Array:
    """Of each row the indices of what takes part, in front, and some index behind."""
    size = present.shape[1]
    indices = jnp.sort(jnp.where(present, _iota(present, 1), size), 1)
    return jnp.minimum(indices, size - 1)


def _rank(present: jax.Array) -> jax.Array:
    """Where `_order` puts what takes part."""
    return jnp.maximum(jnp.cumsum(present, 1, dtype=jnp.int32) - 1, 0)


def _count(present: jax.Array) -> jax.Array:
    """How much of each row takes part."""
    return jnp.sum(present, 1, dtype=jnp.int32)


def _iota(like: jax.Array, axis: int) -> jax.Array:
    shape = [size if a == axis else 1 for a, size in enumerate(like.shape)]
    return lax.broadcasted_iota(jnp.int32, shape, axis)
