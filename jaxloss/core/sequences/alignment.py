"""Which frames read which labels: the best path, what it reads, and how many errors are in that."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, exact, xla
from jaxloss._base.call import public
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import locate, pick
from jaxloss.core.sequences import batch
from jaxloss.core.sequences import normalizer as normalizers
from jaxloss.core.sequences.batch import Sequences

_SYMBOLS = ClassAxes((2,))


class Alignment(NamedTuple):
    """A path of one symbol per frame."""

    symbols: jax.Array  # (..., T), -1 in padded frames and where there is no path.
    log_probs: jax.Array  # (..., T), of these symbols; 0 where there is none.
    score: jax.Array  # (...), the sum; -inf where there is no path, NaN for a bad label.


class Spans(NamedTuple):
    """Runs of frames that read a label, at the front, with room for as many as there may be."""

    labels: jax.Array  # (..., T), -1 behind the last one.
    first: jax.Array  # (..., T), the first frame.
    last: jax.Array  # (..., T), the last frame; -1 behind the last one, before any first.
    probs: jax.Array  # (..., T), the mean probability of the label in these frames; 0 behind.


@public(static=("blank_id",), labels=("labels",))
def ctc_forced_alignment(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
) -> Alignment:
    """The most likely path of CTC that reads the labels: a symbol for each frame.

    argmax_π Σ_t log softmax(logits_t)[π_t] over the paths π that `ctc_loss` sums over: its
    recursion with the maximum in place of the sum (Viterbi).

    Of several equally good paths it is one that reads labels later. The symbols have no derivative;
    the log probabilities and their sum differentiate along the path. Padded frames and labels may
    hold anything, may stand anywhere, and count for nothing. `ctc_spans` turns a path into spans of
    time; `ctc_alignment` weighs all paths.

    Args:
      logits: as in `ctc_loss`.
      logit_paddings: as in `ctc_loss`.
      labels: as in `ctc_loss`.
      label_paddings: as in `ctc_loss`.
      blank_id: the index of the blank.

    Returns:
      An `Alignment` of `symbols` (..., T), their `log_probs` (..., T) and the `score` (...), the
      sum of these. In a padded frame the symbol is -1 and its log probability 0. The same holds in
      all frames if no path fits, and the score is -inf; or if a label is no symbol, and it is NaN.

    Raises:
      TypeError: `logits` is not floating-point or `labels` not integer.
      ValueError: the shapes do not fit or `blank_id` is no symbol.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]))
      >>> path = jaxloss.ctc_forced_alignment(logits, jnp.zeros(3), jnp.array([1, 2]), jnp.zeros(2))
      >>> print(path.symbols, f"{jnp.exp(path.score):.3f}")
      [0 1 2] 0.200

    Source: Graves et al., Connectionist Temporal Classification, ICML 2006; Viterbi, 1967.
    """
    (logits,) = checks.arrays(logits=logits)
    if logits.ndim < 2:
        checks.fail(ValueError, "logits", "have shape (..., T, C)", logits.shape)
    sequences = batch.without_padding(
        logits, logit_paddings, labels, label_paddings, blank_id, None, nodes=2
    )
    return batch.batched(lambda s: best_path(s, blank_id, True), sequences)


def best_path(sequences: Sequences, blank: int, normalize: bool) -> Alignment:
    """The best path of scores (B, T, C), which are log probabilities without `normalize`."""
    scores, frames, _, _, bad = sequences
    symbols, possible = _best_symbols(sequences, blank)
    found = frames & (possible & ~bad)[:, None]
    labels = locate(symbols, scores, _SYMBOLS)
    picked = _SYMBOLS.squeeze(pick(scores, labels, _SYMBOLS))
    log_probs = jnp.where(found, picked, 0)
    if normalize:
        normalizer = normalizers.normalizer(scores, found, symbols, picked)
        log_probs = (log_probs - normalizer.peak) - normalizer.log_sum
    total, rest = exact.long_sum(log_probs)
    score = jnp.where(possible, total + rest, -jnp.inf)
    return Alignment(jnp.where(found, symbols, -1), log_probs, xla.nan_where(bad, score))


def _best_symbols(sequences: Sequences, blank: int) -> tuple[jax.Array, jax.Array]:
    """The symbols of the best path, (B, T), and whether there is one, (B,).

    The recursion of α over the states of l' (see the lattice), with the maximum for the sum.
    """
    scores, frames, labels, present, _ = sequences
    labels = jnp.take_along_axis(labels, batch.order(present), 1)
    # The blank before, between and behind the labels.
    states = jnp.pad(labels[..., None], ((0, 0), (0, 0), (1, 0)), constant_values=blank)
    states = states.reshape(labels.shape[0], 2 * labels.shape[1])
    states = jnp.pad(states, ((0, 0), (0, 1)), constant_values=blank)
    skips = jnp.pad(states[:, 2:] != states[:, :-2], ((0, 0), (2, 0)))[:, : states.shape[1]]
    # What all symbols of a frame have in common would only cost digits.
    scores = lax.stop_gradient(jnp.where(frames[..., None], scores, 0))
    scores = jnp.moveaxis(scores - jnp.max(scores, 2, keepdims=True), 1, 0)

    def walk(best, inputs):
        scores, frame = inputs
        # Taken for all frames at once, they would be more than the scores where labels outnumber
        # the symbols: for (64, 1000, 32) and 100 labels 73 MB instead of 30 on a CPU, in twice the
        # time, and 65 instead of 13 on an H100, in the same.
        scores = jnp.take_along_axis(scores, states, 1, mode="promise_in_bounds")
        # From the lowest state on, so that it wins a tie.
        total, rest = _from(best, 2)
        chosen = jnp.where(skips, total, -jnp.inf), rest
        back = jnp.full(skips.shape, 2, jnp.int8)
        for step in (1, 0):
            other = _from(best, step)
            is_more = _is_more(other, chosen)
            chosen = tuple(jnp.where(is_more, x, y) for x, y in zip(other, chosen, strict=True))
            back = jnp.where(is_more, jnp.int8(step), back)
        total, rest = exact.two_sum(chosen[0], scores)
        here = _behind_none(total, jnp.where(total > -jnp.inf, chosen[1] + rest, 0))
        best = tuple(jnp.where(frame, x, y) for x, y in zip(here, best, strict=True))
        return best, jnp.where(frame, back, jnp.int8(0))

    start = jnp.where(lax.broadcasted_iota(jnp.int32, states.shape, 1) == 0, 0, -jnp.inf)
    start = xla.tied(start.astype(scores.dtype), scores)
    start = _behind_none(start, xla.tied(jnp.zeros_like(start), scores))
    inputs = scores, jnp.moveaxis(frames, 1, 0)[..., None]
    best, backs = xla.scan(walk, start, inputs)
    best = _from(best, 0)
    last = 2 * batch.count(present)[:, None]
    ends = [
        tuple(jnp.take_along_axis(x, jnp.maximum(state, 0), 1) for x in best)
        for state in (last - 1, last)
    ]
    is_last = _is_more(ends[1], ends[0]) | (last == 0)
    state = jnp.where(is_last, last, last - 1)
    possible = (jnp.maximum(ends[0][0], ends[1][0]) > -jnp.inf)[:, 0]

    def walk_back(state, back):
        before = state - jnp.take_along_axis(back, state, 1).astype(state.dtype)
        return before, state

    _, path = xla.scan(walk_back, state, backs, reverse=True)
    path = jnp.moveaxis(path[..., 0], 0, 1)
    return jnp.take_along_axis(states, path, 1), possible


def _behind_none(total: jax.Array, rest: jax.Array) -> tuple[jax.Array, ...]:
    """Sums and their rests behind two states that no path reaches, as `_from` takes them.

    With these carried along, a frame pads two arrays, where it would pad four to shift them: 0.4 of
    the loop's time on a CPU, 0.74 of all cycles on a TPU v5e, the same on an H100.
    """
    pairs = zip((total, rest), (-jnp.inf, 0), strict=True)
    return tuple(jnp.pad(x, ((0, 0), (2, 0)), constant_values=fill) for x, fill in pairs)


def _from(best: tuple[jax.Array, ...], steps: int) -> tuple[jax.Array, ...]:
    """The best paths that come to each state from the one so many steps before it."""
    return tuple(x[:, 2 - steps : x.shape[1] - steps] for x in best)


def _is_more(x: tuple[jax.Array, ...], y: tuple[jax.Array, ...]) -> jax.Array:
    """Whether one sum and its rest are more than another."""
    both = (x[0] > -jnp.inf) & (y[0] > -jnp.inf)
    difference = jnp.where(both, x[0] - y[0], 0) + (x[1] - y[1])
    return jnp.where(both, difference > 0, x[0] > y[0])


@public(static=("blank_id",), labels=("symbols",))
def ctc_spans(
    symbols: ArrayLike,
    log_probs: ArrayLike,
    *,
    blank_id: int = 0,
) -> Spans:
    """The spans of time that a path of CTC gives to labels: its repeated symbols merged.

    Args:
      symbols: integer array (..., T), a symbol for each frame, below 0 where a frame does not
        count, as in an alignment.
      log_probs: floating-point array (..., T), the logarithms of their probabilities.
      blank_id: the index of the blank.

    Returns:
      `Spans` of `labels`, `first` and `last` frames, and mean probabilities `probs`, each (..., T),
      in order of time; after the last span `labels` and `last` are -1, `first` and `probs` 0.

    Raises:
      TypeError: `symbols` is not integer or `log_probs` not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> symbols, probs = jnp.array([0, 2, 2, 0, 1]), jnp.array([0.9, 0.5, 0.75, 0.8, 1.0])
      >>> spans = jaxloss.ctc_spans(symbols, jnp.log(probs))
      >>> print(spans.labels, spans.first, spans.last)
      [ 2  1 -1 -1 -1] [1 4 0 0 0] [ 2  4 -1 -1 -1]
      >>> print(spans.probs)
      [0.625 1.    0.    0.    0.   ]

    Source: as `ctc_forced_alignment`; torchaudio.functional.merge_tokens.
    """
    (log_probs,) = checks.arrays(log_probs=log_probs)
    symbols = checks.labels("symbols", symbols, log_probs.shape)
    if not symbols.ndim:
        checks.fail(ValueError, "symbols", "have shape (..., T)", symbols.shape)
    shape = symbols.shape
    symbols, log_probs = (x.reshape(math.prod(shape[:-1]), shape[-1]) for x in (symbols, log_probs))
    spans = _spans(symbols, log_probs, blank_id)
    return jax.tree.map(lambda x: x.reshape(shape), spans)


def _spans(symbols: jax.Array, log_probs: jax.Array, blank: int) -> Spans:
    present = symbols >= 0
    reads = present & (symbols != blank)
    starts = reads & (symbols != _before(symbols, present))
    ends = reads & (symbols != _before(symbols[:, ::-1], present[:, ::-1])[:, ::-1])
    there = batch.iota(symbols, 1) < batch.count(starts)[:, None]
    first, last = batch.order(starts), batch.order(ends)
    labels = jnp.take_along_axis(symbols, first, 1)
    probs = jnp.exp(jnp.where(reads, log_probs, -jnp.inf))
    span = jnp.where(reads, batch.rank(starts), symbols.shape[1])
    sums = jax.vmap(lambda x, i: jnp.zeros_like(x).at[i].add(x, mode="drop"))
    totals, counts = sums(probs, span), sums(reads.astype(probs.dtype), span)
    return Spans(
        jnp.where(there, labels, -1),
        jnp.where(there, first, 0),
        jnp.where(there, last, -1),
        totals / jnp.maximum(counts, 1),
    )


def _before(symbols: jax.Array, present: jax.Array) -> jax.Array:
    """The last symbol before each frame in a frame that counts; -1 if there is none."""
    places = lax.cummax(jnp.where(present, batch.iota(symbols, 1), -1), 1)
    places = jnp.pad(places, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    found = jnp.take_along_axis(symbols, jnp.maximum(places, 0), 1)
    return jnp.where(places >= 0, found, -1)


@public(static=("blank_id",))
def ctc_greedy_decode(
    logits: ArrayLike, logit_paddings: ArrayLike, *, blank_id: int = 0
) -> tuple[jax.Array, jax.Array]:
    """What the most likely symbol of each frame reads: repeats merged, then blanks removed.

    Of equally likely symbols the lowest counts. For beam search, where a language model can take
    part, see flashlight-text and pyctcdecode.

    Args:
      logits: floating-point array (..., T, C), as in `ctc_loss`.
      logit_paddings: (..., T), not 0 where a frame is padding.
      blank_id: the index of the blank.

    Returns:
      The labels (..., T), at the front with zeros after them, and their paddings (..., T), True
      after them.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: the shapes do not fit or `blank_id` is no symbol.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.eye(4)[jnp.array([0, 3, 3, 0, 3, 1])]
      >>> print(jaxloss.ctc_greedy_decode(logits, jnp.zeros(6))[0])
      [3 3 1 0 0 0]

    Source: Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2.
    """
    (logits,) = checks.arrays(logits=logits)
    if logits.ndim < 2:
        checks.fail(ValueError, "logits", "have shape (..., T, C)", logits.shape)
    batch.check_blank("blank_id", blank_id, logits.shape[-1])
    present = batch.taking_part("logit_paddings", logit_paddings)
    shape = logits.shape[:-1]
    if present.shape != shape:
        checks.fail(ValueError, "logit_paddings", f"have shape {shape}", present.shape)
    symbols = jnp.argmax(logits, -1).astype(jnp.int32)
    symbols, present = (x.reshape(math.prod(shape[:-1]), shape[-1]) for x in (symbols, present))
    reads = present & (symbols != blank_id) & (symbols != _before(symbols, present))
    missing = batch.iota(symbols, 1) >= batch.count(reads)[:, None]
    labels = jnp.where(missing, 0, jnp.take_along_axis(symbols, batch.order(reads), 1))
    return labels.reshape(shape), missing.reshape(shape)


@public(labels=("labels1", "labels2"))
def edit_distance(
    labels1: ArrayLike, label_paddings1: ArrayLike, labels2: ArrayLike, label_paddings2: ArrayLike
) -> jax.Array:
    """The fewest insertions, deletions and substitutions that turn one sequence into another.

    The sum over a test set, divided by the number of true labels in it, is the character or word
    error rate. Padding may hold anything, may stand anywhere, and counts for nothing.

    Args:
      labels1: integer array (..., L1).
      label_paddings1: (..., L1), not 0 where a label is padding.
      labels2: integer array (..., L2).
      label_paddings2: (..., L2), not 0 where a label is padding.

    Returns:
      One integer per pair, shape (...).

    Raises:
      TypeError: labels are not integer.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> kitten, sitting = (jnp.array([*map(ord, word)]) for word in ("kitten", "sitting"))
      >>> print(jaxloss.edit_distance(kitten, jnp.zeros(6), sitting, jnp.zeros(7)))
      3

    Source: Levenshtein, 1966; Wagner and Fischer, 1974.
    """
    rows = []
    given = (("1", labels1, label_paddings1), ("2", labels2, label_paddings2))
    for suffix, labels, paddings in given:
        present = batch.taking_part(f"label_paddings{suffix}", paddings)
        if not present.ndim:
            checks.fail(ValueError, f"label_paddings{suffix}", "have shape (..., L)", present.shape)
        rows.append((checks.labels(f"labels{suffix}", labels, present.shape), present))
    shape = rows[0][1].shape[:-1]
    if rows[1][1].shape[:-1] != shape:
        rule = f"have shape ({', '.join([*map(str, shape), 'L2'])})"
        checks.fail(ValueError, "label_paddings2", rule, rows[1][1].shape)
    flat = jax.tree.map(lambda x: x.reshape(math.prod(shape), x.shape[-1]), rows)
    return _edit_distance(*flat).reshape(shape)


def _edit_distance(
    one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """One distance for each row of two batches of labels, and whether these take part."""
    (labels, present), (others, others_present) = one, other
    others = jnp.take_along_axis(others, batch.order(others_present), 1)
    width = others.shape[1] + 1
    places = lax.broadcasted_iota(jnp.int32, (others.shape[0], width), 1)

    def walk(row, inputs):
        label, takes_part = inputs
        replaced = row[:, :-1] + (others != label).astype(row.dtype)
        after = jnp.concatenate([row[:, :1] + 1, jnp.minimum(row[:, 1:] + 1, replaced)], 1)
        # Insertions, any number of which may stand one behind the other.
        after = lax.cummin(after - places, 1) + places
        return jnp.where(takes_part, after, row), None

    columns = (jnp.moveaxis(x, 1, 0)[..., None] for x in (labels, present))
    # As it varies over devices inside `jax.shard_map`.
    start = places + 0 * (batch.count(present) + batch.count(others_present))[:, None]
    row, _ = xla.scan(walk, start, tuple(columns))
    return jnp.take_along_axis(row, batch.count(others_present)[:, None], 1)[:, 0]
