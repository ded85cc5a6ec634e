"""The transducer's loss (RNN-T), from the scores of a joiner at every frame and label."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, exact, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import Labels, locate, pick
from jaxloss.core.sequences import batch, diagonals
from jaxloss.core.sequences import normalizer as normalizers
from jaxloss.core.sequences.batch import Sequences
from jaxloss.core.sequences.diagonals import Lattice, Logarithm
from jaxloss.core.sequences.normalizer import Normalizer
from jaxloss.core.sequences.scaled import Scaled

_SYMBOLS = ClassAxes((3,))


@public(static=("blank_id",), labels=("labels",), domain={"fastemit": checks.NON_NEGATIVE})
def rnnt_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    fastemit: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Transducer loss (RNN-T), from a joiner's logits.

    loss = -log Σ_π Π_(t, u) ∈ π softmax(logits_tu)[symbol], over all paths π that start in frame 0
    with no label read and leave the last frame with all labels read. At each node (t, u) a path
    either reads the next label and stays in the frame, or reads a blank and goes to the next frame.

    Never negative. Where no path fits, because there are labels and no frame or a symbol has
    probability 0, the loss is +inf and its gradient 0; without frames and labels the loss is 0.
    Padded frames and labels may hold anything, NaN included, may stand anywhere, and count for
    nothing; with a padded label the row of logits after it is padding too. A label outside [0, C)
    gives NaN in that example's value and gradient only. In float32 the gradient stays within 2e-6
    of the exact one for thousands of frames. Apart from the logits and their gradient nothing of
    their size is stored, and the recursion takes T + U steps.

    Args:
      logits: floating-point array (..., T, U + 1, C), unnormalized log probabilities of C symbols,
        the blank among them, in each of T frames: row 0 before any label, row u + 1 after label u.
      logit_paddings: (..., T), not 0 where a frame is padding.
      labels: integer array (..., U), without blanks.
      label_paddings: (..., U), not 0 where a label is padding.
      blank_id: the index of the blank.
      fastemit: λ, 0 or more, makes a model emit labels early (FastEmit): the gradient, in both
        modes, counts the log probability of each label's step 1 + λ times. The value stays as it
        is, so the gradient is then not that of the value.
      where: boolean, one per sequence: of as many dimensions as (...) and broadcastable to it.
        A sequence that it excludes may hold anything in every argument, and has the loss 0 and a
        gradient of exactly 0.

    Returns:
      One loss per sequence, shape (...); at least float32. Do not mask an impossible sequence by
      multiplying with 0, which gives NaN: use `where`, here or in `reduce`, or `reduce(weights=)`.

    Raises:
      TypeError: `logits` is not floating-point, `labels` not integer or `where` not boolean.
      ValueError: the shapes do not fit, `blank_id` is no symbol or `fastemit` is below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.log(jnp.full((2, 2, 2), 0.5))
      >>> loss = jaxloss.rnnt_loss(logits, jnp.zeros(2), jnp.array([1]), jnp.zeros(1))
      >>> print(jnp.exp(-loss))  # Paths "1 - -" and "- 1 -": 1/8 + 1/8.
      0.25

    Source: Graves, Sequence Transduction with Recurrent Neural Networks, 2012; Yu et al., FastEmit,
    ICASSP 2021.
    """
    (logits,) = checks.arrays(logits=logits)
    if logits.ndim < 3:
        checks.fail(ValueError, "logits", "have shape (..., T, U + 1, C)", logits.shape)
    sequences = batch.without_padding(
        logits, logit_paddings, labels, label_paddings, blank_id, where, nodes=3
    )
    check_rows("labels", sequences.labels, logits.shape[-2])
    slopes = Slopes(checks.number("fastemit", fastemit, logits), None)
    return batch.batched(lambda s: losses_of_paths(s, slopes, blank_id, True), sequences)


def check_rows(name: str, labels: jax.Array, rows: int) -> None:
    """An error unless there is one label fewer than rows of scores."""
    if labels.shape[-1] != rows - 1:
        shape = (*labels.shape[:-1], rows - 1)
        checks.fail(ValueError, name, f"have shape {shape}, one fewer than rows", labels.shape)


class Slopes(NamedTuple):
    """Where the gradient is not that of the value."""

    fastemit: jax.Array  # Labels' steps count so much more.
    clamp: jax.Array | None  # The greatest magnitude of a sequence's entries, if above 0.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def losses_of_paths(sequences: Sequences, slopes: Slopes, blank: int, normalize: bool) -> jax.Array:
    """-log of the sum over the paths that read the labels, (B,), of scores (B, T, U + 1, C).

    Without `normalize` the scores are the logarithms of factors themselves.
    """
    here = _nodes(sequences, blank, normalize)
    return loss(diagonals.meet(lattice(*here.factors, sequences)).likelihood, sequences, normalize)


@losses_of_paths.defjvp
def _losses_of_paths_jvp(blank, normalize, primals, tangents):
    # Autodiff would store every step of the recursion and each symbol's part in the normalizers.
    # The gradient is known instead (Graves 2012): at each node its own occupancy times the softmax,
    # less that of the step with a symbol, at this symbol.
    sequences, slopes = primals
    here = _nodes(sequences, blank, normalize)
    walked = lattice(*here.factors, sequences)
    middle = diagonals.meet(walked)
    blanks, labels = (in_place(x, sequences) for x in diagonals.occupancies(walked, middle))
    labels = (1 + slopes.fastemit) * labels
    gradient = _minus_at(here.labels, labels) + _minus_at(here.blanks, blanks)
    if here.normalizer is not None:
        probs = normalizers.softmax(sequences.scores, here.present, here.normalizer)
        gradient = probs * (blanks + labels)[..., None] + gradient
    if slopes.clamp is not None:
        most = jnp.where(slopes.clamp > 0, slopes.clamp, jnp.inf)
        gradient = jnp.clip(gradient, -most, most)
    losses = loss(middle.likelihood, sequences, normalize)
    return losses, jnp.sum(gradient * tangents[0].scores, (1, 2, 3))


def _minus_at(symbols: Labels, occupancies: jax.Array) -> jax.Array:
    return jnp.where(symbols.hot, -occupancies[..., None], 0)


class Nodes(NamedTuple):
    """What scores say of each node (b, t, u)."""

    factors: tuple[Logarithm, Logarithm]  # (B, T, U + 1), of the blank and the next label.
    present: jax.Array  # (B, T, U + 1), True where frame and row take part.
    blanks: Labels
    labels: Labels
    normalizer: Normalizer | None


def _nodes(sequences: Sequences, blank: int, normalize: bool) -> Nodes:
    scores, frames, labels, present, _ = sequences
    taking_part = frames[..., None] & rows(present)[:, None]
    return nodes(scores, taking_part, next_labels(labels, present), blank, normalize)


def nodes(
    scores: jax.Array, present: jax.Array, label: jax.Array, blank: int, normalize: bool
) -> Nodes:
    """Of scores (B, T, U + 1, C), and the next label of each row, (B, U + 1)."""
    label = jnp.broadcast_to(label[:, None], present.shape)
    blanks = locate(jnp.full_like(label, blank), scores, _SYMBOLS)
    labels = locate(label, scores, _SYMBOLS)
    of_blank, of_label = (_SYMBOLS.squeeze(pick(scores, x, _SYMBOLS)) for x in (blanks, labels))
    normalizer, peak, less = None, jnp.zeros_like(of_blank), jnp.zeros_like(of_blank)
    if normalize:
        is_label = of_label > of_blank
        symbol, score = jnp.where(is_label, label, blank), jnp.where(is_label, of_label, of_blank)
        normalizer = normalizers.normalizer(scores, present, symbol, score)
        peak, less = normalizer
    sums = (exact.two_sum(x, -peak) for x in (of_blank, of_label))
    of_blank, of_label = (Logarithm(large, small - less) for large, small in sums)
    return Nodes((of_blank, of_label), present, blanks, labels, normalizer)


def rows(present: jax.Array) -> jax.Array:
    """Which rows of scores take part, (B, U + 1): the first, and those behind labels that do."""
    return jnp.pad(present, ((0, 0), (1, 0)), constant_values=True)


def next_labels(labels: jax.Array, present: jax.Array) -> jax.Array:
    """The label that follows each row that takes part, (B, U + 1); any label for the last."""
    own = batch.rank(rows(present))
    labels, present = (jnp.pad(x, ((0, 0), (0, 1))) for x in (labels, present))
    return jnp.take_along_axis(jnp.take_along_axis(labels, batch.order(present), 1), own, 1)


def lattice(blank: Logarithm, label: Logarithm, sequences: Sequences) -> Lattice:
    """The lattice of factors (B, T, U + 1), without padding between them."""
    frames, own = batch.order(sequences.frames), batch.order(rows(sequences.present))
    blank, label = jax.tree.map(
        lambda x: _ordered(x, frames[..., None], own[:, None]), (blank, label)
    )
    counts = batch.count(sequences.frames), batch.count(sequences.present)
    return diagonals.lattice(blank, label, *counts)


def in_place(occupancies: jax.Array, sequences: Sequences) -> jax.Array:
    """Occupancies of a diagonal's steps as those of nodes, frames and rows in their places."""
    frames, own = sequences.frames, rows(sequences.present)
    of_nodes = diagonals.by_node(occupancies, frames.shape[1])
    of_nodes = _ordered(of_nodes, batch.rank(frames)[..., None], batch.rank(own)[:, None])
    of_nodes = xla.nan_where(sequences.bad[:, None, None], of_nodes)
    return jnp.where(frames[..., None] & own[:, None], of_nodes, 0)


def _ordered(x: jax.Array, frames: jax.Array, rows: jax.Array) -> jax.Array:
    """x (B, T, U + 1) at indices (B, T, 1) and (B, 1, U + 1) of its frames and rows."""
    x = jnp.take_along_axis(x, frames, 1, mode="promise_in_bounds")
    return jnp.take_along_axis(x, rows, 2, mode="promise_in_bounds")


def loss(likelihood: Scaled, sequences: Sequences, normalize: bool) -> jax.Array:
    large, small = (x[0, :, 0] for x in likelihood.log_parts())
    steps = None
    if not normalize:
        steps = batch.count(sequences.frames) + batch.count(sequences.present)
    possible = likelihood.mantissa[0, :, 0] != 0
    return batch.finished(0 - (large + small), possible, sequences, steps)
